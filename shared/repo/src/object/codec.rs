//! Compression contexts and scratch buffers that are used again: fresh ones cost more than the work itself.

use std::io::Cursor;
use std::sync::Mutex;

use super::frame::MAX_FRAME;

/// zstd's level: higher ones are half as fast on WAL and no smaller.
const LEVEL: i32 = 1;

/// Spare codecs are kept up to this many; each holds about 2 MiB after use.
const SPARE: usize = 4;

static POOL: Mutex<Vec<Codec>> = Mutex::new(Vec::new());

/// A compressor, a decompressor and room for what they make. One per thread that works at a time.
pub struct Codec {
    compressor: Option<zstd::bulk::Compressor<'static>>,
    decompressor: Option<zstd::bulk::Decompressor<'static>>,
    /// For compressed bytes on their way out.
    pub(super) packed: Vec<u8>,
    /// For decrypted bytes on their way in.
    pub(super) opened: Vec<u8>,
}

impl Codec {
    /// One from the pool of spare ones, or a new one; given back when dropped.
    pub fn take() -> PooledCodec {
        let spare = POOL.lock().ok().and_then(|mut pool| pool.pop());
        PooledCodec(Some(spare.unwrap_or_default()))
    }

    /// Frees the spare ones: for a process that has nothing to compress for a while.
    pub fn release_spare() {
        if let Ok(mut pool) = POOL.lock() {
            pool.clear();
        }
    }

    /// A new one, outside the pool.
    pub fn new() -> Self {
        Self { compressor: None, decompressor: None, packed: Vec::new(), opened: Vec::new() }
    }

    /// Compresses into [`Self::packed`]; `false` where that gains nothing.
    pub(super) fn compress(&mut self, plain: &[u8]) -> bool {
        if self.compressor.is_none() {
            self.compressor = zstd::bulk::Compressor::new(LEVEL).ok();
        }
        let Some(compressor) = &mut self.compressor else { return false };
        self.packed.clear();
        self.packed.reserve(zstd::zstd_safe::compress_bound(plain.len().min(MAX_FRAME)));
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
        if let (Some(codec), Ok(mut pool)) = (self.0.take(), POOL.lock())
            && pool.len() < SPARE
        {
            pool.push(codec);
        }
    }
}
