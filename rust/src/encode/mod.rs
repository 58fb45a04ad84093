//! A batch's changes as the bytes that a sink takes.

pub mod arrays;
pub mod avro;
pub mod copy;
pub mod copy_columns;
pub mod crate_rows;
pub mod dynamodb;
pub mod json;
pub mod kafka;
pub mod kafka_aside;
#[cfg(feature = "parquet")]
mod leaf;
#[cfg(feature = "parquet")]
pub mod parquet;
#[cfg(feature = "parquet")]
pub mod parquet_rows;
pub mod planned;
pub mod registered;
