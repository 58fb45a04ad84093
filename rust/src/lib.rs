//! The core of `replicator`: bytes in, bytes out, a batch at a time.
//!
//! The way of one change through the files:
//!
//! 1. [`frame`] takes the body of SubscribeToShard apart and checks both checksums; [`answer`] reads the JSON of
//!    its events, and of GetRecords, and decodes the base64 of every `Data` into one arena, [`records`], where
//!    [`aggregate`] takes apart what a producer put together. ([`document`] does the same for files.)
//! 2. [`record`] reads one record's envelope, comparing with a [`template`] what a table's records share; [`value`]
//!    checks its images and, in the same pass, writes the new one as plain JSON ([`mod@set`] sorts sets), of the old
//!    one the [`fingerprint`]; [`number`] keeps 38-digit decimals exact, [`binary`] reads base64; [`key`] makes the key canonical. All of them
//!    walk the bytes with [`scan`]; [`escape`] undoes a string's escapes.
//! 3. [`change`] puts the changes of a batch together, the refused records beside them ([`error`] lists why).
//! 4. [`dedupe`] takes exact duplicates out, orders what is left, and knows the newest change per key; [`instant`]
//!    tells which of several changes at one instant is the last. For log sinks [`window`] holds changes until they
//!    are in order, and knows those that came before.
//! 5. [`filter`] tells which changes a sink wants, [`project`] which attributes it may see, masked or hashed,
//!    [`partition`] which of them go into one place.
//! 6. [`encode`] writes what sinks take: PostgreSQL's binary COPY and arrays, JSON lines, Kafka's record batches,
//!    Avro, Parquet, requests to DynamoDB and CrateDB; [`columns`] says which attributes have a column of their own there,
//!    [`split`] takes items apart by it; [`compress`] makes them small. ([`nul`] keeps U+0000 out of documents that
//!    may not hold it.)
//! 7. [`settle`] brings changes of one instant together when a sink holds some of them already.
//!
//! The crate does no I/O and owns no thread, clock or global state (its allocator apart). Only `python/` knows Python.

pub mod aggregate;
pub mod answer;
pub mod binary;
pub mod canonical;
pub mod change;
pub mod columns;
pub mod compact;
pub mod compress;
pub mod dedupe;
pub mod document;
pub mod encode;
pub mod error;
pub mod escape;
pub mod extent;
pub mod filter;
pub mod fingerprint;
pub mod frame;
pub mod instant;
pub mod key;
pub mod members;
pub mod nul;
pub mod number;
pub mod partition;
pub mod position;
pub mod project;
pub mod record;
pub mod records;
pub mod scan;
pub mod set;
pub mod settle;
pub mod split;
pub mod template;
pub mod value;
pub mod window;

/// A batch's arenas are megabytes that live for milliseconds. The system's allocator hands such back to the kernel
/// and gets them anew, page fault by page fault: a third of the time of small records (`make bench`).
#[cfg(feature = "mimalloc")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[cfg(feature = "python")]
mod python;
