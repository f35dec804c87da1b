//! Compression contexts and scratch buffers that are used again: fresh ones cost more than the work itself.

use std::io::Cursor;
use std::sync::Mutex;

use zstd::zstd_safe::{CParameter, compress_bound};

use super::frame::MAX_FRAME;
use super::pieces::Pieces;

/// Spare codecs are kept up to this many; each holds about 2 MiB after use.
const SPARE: usize = 4;

static POOL: Mutex<Vec<Codec>> = Mutex::new(Vec::new());

/// How much work goes into compressing: zstd's level, 1 to 19.
///
/// Level 1 is zstd's but for two of its parameters: matches may be as short as 5 bytes, which stores pages in about 5 % fewer
/// bytes, and its hash table is small enough for a core's first cache, which makes up for the time that takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Level(i32);

impl Level {
    /// The level of that number, or the nearest one that there is.
    pub fn nearest(number: i32) -> Self {
        Self(number.clamp(1, 19))
    }

    /// The same up to 6: beyond that a core compresses less WAL in a second than a busy server writes, and each codec takes
    /// many times the memory.
    pub fn for_wal(self) -> Self {
        Self(self.0.min(6))
    }

    fn compressor(self) -> std::io::Result<zstd::bulk::Compressor<'static>> {
        let mut compressor = zstd::bulk::Compressor::new(self.0)?;
        if self.0 == 1 {
            compressor.set_parameter(CParameter::MinMatch(5))?;
            compressor.set_parameter(CParameter::HashLog(12))?;
        }
        Ok(compressor)
    }
}

impl Default for Level {
    fn default() -> Self {
        Self(1)
    }
}

/// A compressor, a decompressor and room for what they make. One per thread that works at a time.
pub struct Codec {
    level: Level,
    compressor: Option<zstd::bulk::Compressor<'static>>,
    decompressor: Option<zstd::bulk::Decompressor<'static>>,
    /// For compressed bytes on their way out.
    pub(super) packed: Vec<u8>,
    /// For decrypted bytes on their way in.
    pub(super) opened: Vec<u8>,
}

impl Codec {
    /// One for opening what is stored: from the pool of spare ones, or a new one; given back when dropped. What is to be
    /// stored is compressed by [`Sealer::codec`](super::Sealer::codec).
    pub fn for_opening() -> PooledCodec {
        let spare = POOL.lock().ok().and_then(|mut pool| pool.pop());
        PooledCodec(Some(spare.unwrap_or_default()))
    }

    /// One for compressing at a level, and for opening.
    pub(super) fn take(level: Level) -> PooledCodec {
        let spare = POOL.lock().ok().and_then(|mut pool| {
            let place = pool.iter().rposition(|codec| codec.level == level)?;
            Some(pool.swap_remove(place))
        });
        PooledCodec(Some(spare.unwrap_or_else(|| Self::at(level))))
    }

    /// Frees the spare ones, and the memory of objects that were made: for a process that has nothing to compress for a while.
    pub fn release_spare() {
        Pieces::release_spare();
        if let Ok(mut pool) = POOL.lock() {
            pool.clear();
        }
    }

    /// A new one, outside the pool, at the default level.
    pub fn new() -> Self {
        Self::at(Level::default())
    }

    /// A new one, outside the pool.
    fn at(level: Level) -> Self {
        Self { level, compressor: None, decompressor: None, packed: Vec::new(), opened: Vec::new() }
    }

    /// Compresses into [`Self::packed`]; `false` where that gains nothing.
    pub(super) fn compress(&mut self, plain: &[u8]) -> bool {
        if self.compressor.is_none() {
            self.compressor = self.level.compressor().ok();
        }
        let Some(compressor) = &mut self.compressor else { return false };
        self.packed.clear();
        self.packed.reserve(compress_bound(plain.len().min(MAX_FRAME)));
        let packed = compressor.compress_to_buffer(plain, &mut self.packed);
        packed.is_ok_and(|length| length < plain.len())
    }

    /// Appends the decompressed bytes to `out`: exactly `length`, or `false` and nothing appended.
    pub(super) fn decompress(&mut self, packed: &[u8], length: usize, out: &mut Vec<u8>) -> bool {
        decompress(&mut self.decompressor, packed, length, out)
    }
}

fn decompress(
    decompressor: &mut Option<zstd::bulk::Decompressor<'static>>,
    packed: &[u8],
    length: usize,
    out: &mut Vec<u8>,
) -> bool {
    if decompressor.is_none() {
        *decompressor = zstd::bulk::Decompressor::new().ok();
    }
    let Some(decompressor) = decompressor else { return false };
    let start = out.len();
    out.reserve(length);
    // Writes behind what is there, at most into what is allocated: no zeroing first, and a frame that holds more than
    // it says is an error, not a longer output.
    let mut target = Cursor::new(&mut *out);
    target.set_position(start as u64);
    let good = decompressor.decompress_to_buffer(packed, &mut target).is_ok_and(|n| n == length);
    if !good {
        out.truncate(start);
    }
    good
}

impl Default for Codec {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for Codec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Codec")
    }
}

/// A codec on loan from the pool.
#[derive(Debug)]
pub struct PooledCodec(Option<Codec>);

impl std::ops::Deref for PooledCodec {
    type Target = Codec;

    #[allow(clippy::expect_used, reason = "only drop takes it out")]
    fn deref(&self) -> &Codec {
        self.0.as_ref().expect("on loan until dropped")
    }
}

impl std::ops::DerefMut for PooledCodec {
    #[allow(clippy::expect_used, reason = "only drop takes it out")]
    fn deref_mut(&mut self) -> &mut Codec {
        self.0.as_mut().expect("on loan until dropped")
    }
}

impl Drop for PooledCodec {
    fn drop(&mut self) {
        if let (Some(codec), Ok(mut pool)) = (self.0.take(), POOL.lock()) {
            // Levels that nobody uses any more make room for those in use.
            if pool.len() >= SPARE {
                pool.remove(0);
            }
            pool.push(codec);
        }
    }
}
