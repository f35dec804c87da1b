//! The bytes of a file that is to be archived: in memory, or read from a file a part at a time.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;

use walpoint_storage::object::Keeper;

/// What a file to be archived holds. Cheap to clone.
#[derive(Clone, Debug)]
pub struct WalContent {
    kind: Kind,
    /// Bytes from here on count as zero.
    valid: u64,
    /// Lives as long as what is sealed of it.
    keeper: Option<Keeper>,
}

#[derive(Clone, Debug)]
enum Kind {
    Memory(Bytes),
    File(Arc<File>, u64),
}

impl WalContent {
    /// A file of the length it has now. It must not change until it is stored; if it does, storing fails.
    pub fn file(file: File) -> io::Result<Self> {
        let length = file.metadata()?.len();
        Ok(Self { kind: Kind::File(Arc::new(file), length), valid: u64::MAX, keeper: None })
    }

    /// Its length in bytes.
    pub fn len(&self) -> u64 {
        match &self.kind {
            Kind::Memory(bytes) => bytes.len() as u64,
            Kind::File(_, length) => *length,
        }
    }

    /// The same as if there were zeros from `valid` on, whatever is there: what a recycled file held before says nothing.
    #[must_use]
    pub fn with_zeros_from(mut self, valid: u64) -> Self {
        self.valid = self.valid.min(valid);
        self
    }

    /// The same, with something that lives until the last byte is dropped that is sealed of it to be stored, or was before: a write
    /// that hangs keeps its bytes longer than the request that made it.
    #[must_use]
    pub fn kept_with(mut self, keeper: Keeper) -> Self {
        self.keeper = Some(keeper);
        self
    }

    pub(super) fn keeper(&self) -> Option<&Keeper> {
        self.keeper.as_ref()
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The `length` bytes from `offset` on, read into `buffer` if they are not in memory. Blocks.
    pub fn piece<'a>(&'a self, offset: u64, length: usize, buffer: &'a mut Vec<u8>) -> io::Result<&'a [u8]> {
        let kept = usize::try_from(self.valid.saturating_sub(offset)).unwrap_or(usize::MAX);
        match &self.kind {
            Kind::Memory(bytes) => {
                let begin = usize::try_from(offset).unwrap_or(usize::MAX);
                let end = begin.saturating_add(length);
                let piece = bytes.get(begin..end).ok_or(io::ErrorKind::UnexpectedEof)?;
                if kept >= length {
                    return Ok(piece);
                }
                buffer.clear();
                buffer.extend_from_slice(piece);
            }
            Kind::File(file, _) => {
                // A buffer that had this length before costs nothing.
                buffer.resize(length, 0);
                crate::cpu::without_core(|| file.read_exact_at(buffer, offset))?;
            }
        }
        if let Some(behind) = buffer.get_mut(kept..) {
            behind.fill(0);
        }
        Ok(buffer)
    }
}

impl From<Bytes> for WalContent {
    fn from(bytes: Bytes) -> Self {
        Self { kind: Kind::Memory(bytes), valid: u64::MAX, keeper: None }
    }
}

impl From<Vec<u8>> for WalContent {
    fn from(bytes: Vec<u8>) -> Self {
        Bytes::from(bytes).into()
    }
}
