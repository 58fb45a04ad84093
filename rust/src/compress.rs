//! Finished bytes made small: gzip, zstd and lz4.
//!
//! In: bytes. Out: one gzip member, zstd frame or lz4 frame, appended. Invariant: what is written is read by every
//! reader of the format, Kafka's Java client included: its lz4 reader wants independent blocks.
//!
//! gzip is libdeflate's, whose lowest level is several times as fast as zlib's default at a size close to it
//! (`make bench`); ISA-L would be faster still, but building it takes an assembler and autotools.

use std::io::Write;

use libdeflater::CompressionLvl;
use lz4::liblz4::BlockChecksum;
use lz4::{BlockMode, BlockSize, ContentChecksum, EncoderBuilder};
use zstd::zstd_safe::CParameter;

/// A format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    /// RFC 1952.
    Gzip,
    /// RFC 8878.
    Zstd,
    /// <https://github.com/lz4/lz4/blob/dev/doc/lz4_Frame_format.md>.
    Lz4,
}

impl Codec {
    /// The codec of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "gzip" => Self::Gzip,
            "zstd" => Self::Zstd,
            "lz4" => Self::Lz4,
            _ => return None,
        })
    }
}

/// The least work that still gives gzip a size close to zlib's level 6.
const GZIP_LEVEL: i32 = 1;
const GZIP_LEVELS: std::ops::RangeInclusive<i32> = 1..=12;
/// The format's own default, and what Kafka's producers use.
const ZSTD_LEVEL: i32 = 3;
/// Tables of that level that stay in a core's own cache: a tenth faster, sizes within two percent (`make bench`).
const ZSTD_TABLES: [CParameter; 2] = [CParameter::HashLog(16), CParameter::ChainLog(14)];
const ZSTD_LEVELS: std::ops::RangeInclusive<i32> = -7..=22;

/// Why nothing was compressed.
#[derive(Debug, thiserror::Error)]
pub enum CompressFault {
    /// The codec has no such level.
    #[error("level must be {0}")]
    Level(&'static str),
    /// The codec failed: not enough memory.
    #[error("compression failed: {0}")]
    Failed(String),
}

impl CompressFault {
    fn failed(error: impl std::fmt::Display) -> Self {
        Self::Failed(error.to_string())
    }
}

enum State {
    Gzip(libdeflater::Compressor),
    Zstd(zstd::bulk::Compressor<'static>),
    Lz4(EncoderBuilder),
}

/// A codec and its working memory, for many pieces of data.
pub struct Compressor {
    state: State,
    /// As long as the longest output could have been: it is zeroed once, not for each piece.
    room: Vec<u8>,
}

impl Compressor {
    /// With the codec's own default where no level is given.
    pub fn new(codec: Codec, level: Option<i32>) -> Result<Self, CompressFault> {
        let state = match codec {
            Codec::Gzip => {
                let level = Some(level.unwrap_or(GZIP_LEVEL)).filter(|level| GZIP_LEVELS.contains(level));
                let level = level.and_then(|level| CompressionLvl::new(level).ok());
                let level = level.ok_or(CompressFault::Level("1 to 12 for gzip"))?;
                State::Gzip(libdeflater::Compressor::new(level))
            }
            Codec::Zstd => {
                let wanted = Some(level.unwrap_or(ZSTD_LEVEL)).filter(|level| ZSTD_LEVELS.contains(level));
                let wanted = wanted.ok_or(CompressFault::Level("-7 to 22 for zstd"))?;
                let mut compressor = zstd::bulk::Compressor::new(wanted).map_err(CompressFault::failed)?;
                if level.is_none() {
                    for size in ZSTD_TABLES {
                        compressor.set_parameter(size).map_err(CompressFault::failed)?;
                    }
                }
                State::Zstd(compressor)
            }
            Codec::Lz4 if level.is_some() => return Err(CompressFault::Level("None for lz4, which has one only")),
            Codec::Lz4 => State::Lz4(lz4_frames()),
        };
        Ok(Self { state, room: Vec::new() })
    }

    /// Appends the data, compressed, to `out`.
    pub fn compress(&mut self, data: &[u8], out: &mut Vec<u8>) -> Result<(), CompressFault> {
        match &mut self.state {
            State::Gzip(compressor) => {
                let room = at_least(&mut self.room, compressor.gzip_compress_bound(data.len()));
                let len = compressor.gzip_compress(data, room).map_err(CompressFault::failed)?;
                out.extend_from_slice(&room[..len]);
            }
            State::Zstd(compressor) => {
                let room = at_least(&mut self.room, zstd::zstd_safe::compress_bound(data.len()));
                let len = compressor.compress_to_buffer(data, room).map_err(CompressFault::failed)?;
                out.extend_from_slice(&room[..len]);
            }
            State::Lz4(frames) => {
                let mut encoder = frames.build(out).map_err(CompressFault::failed)?;
                encoder.write_all(data).map_err(CompressFault::failed)?;
                encoder.finish().1.map_err(CompressFault::failed)?;
            }
        }
        Ok(())
    }
}

fn at_least(room: &mut Vec<u8>, len: usize) -> &mut [u8] {
    if room.len() < len {
        room.resize(len, 0);
    }
    room
}

/// Blocks that don't depend on each other, and no checksums: a record batch has its own.
fn lz4_frames() -> EncoderBuilder {
    let mut frames = EncoderBuilder::new();
    frames
        .block_size(BlockSize::Max64KB)
        .block_mode(BlockMode::Independent)
        .block_checksum(BlockChecksum::NoBlockChecksum)
        .checksum(ContentChecksum::NoChecksum);
    frames
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn compressed(codec: Codec, level: Option<i32>, data: &[u8]) -> Vec<u8> {
        let mut out = b"before".to_vec();
        let mut compressor = Compressor::new(codec, level).unwrap();
        compressor.compress(b"something else first", &mut Vec::new()).unwrap();
        compressor.compress(data, &mut out).unwrap();
        assert!(out.starts_with(b"before"));
        out.split_off(6)
    }

    #[test]
    fn gives_back_what_went_in() {
        let large: Vec<u8> = (0..300_000_u32).flat_map(|i| (i / 7).to_string().into_bytes()).collect();
        for data in [&b""[..], b"a", &large] {
            let gzip = compressed(Codec::Gzip, None, data);
            let mut found = vec![0; data.len()];
            let len = libdeflater::Decompressor::new().gzip_decompress(&gzip, &mut found).unwrap();
            assert_eq!(&found[..len], data);

            let zstd = compressed(Codec::Zstd, Some(1), data);
            assert_eq!(zstd::bulk::decompress(&zstd, data.len()).unwrap(), data);

            let lz4 = compressed(Codec::Lz4, None, data);
            let mut found = Vec::new();
            lz4::Decoder::new(&lz4[..]).unwrap().read_to_end(&mut found).unwrap();
            assert_eq!(found, data);
        }
    }

    /// Kafka's Java client refuses dependent blocks: flags are version 01, independence, no checksums.
    #[test]
    fn lz4_blocks_are_independent() {
        let frame = compressed(Codec::Lz4, None, b"data");
        assert_eq!(frame[..6], [0x04, 0x22, 0x4D, 0x18, 0b0110_0000, 4 << 4]);
    }

    #[test]
    fn levels_are_checked() {
        for (codec, level) in [(Codec::Gzip, 0), (Codec::Gzip, 13), (Codec::Zstd, 23), (Codec::Lz4, 1)] {
            assert!(matches!(Compressor::new(codec, Some(level)), Err(CompressFault::Level(_))), "{codec:?} {level}");
        }
    }
}
