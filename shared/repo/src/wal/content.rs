//! The bytes of a file that is to be archived: in memory, or read from a file a part at a time.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;

/// What a file to be archived holds. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Content(Kind);

#[derive(Clone, Debug)]
enum Kind {
    Memory(Bytes),
    File(Arc<File>, u64),
}

impl Content {
    /// A file of the length it has now. It must not change until it is stored; if it does, storing fails.
    pub fn file(file: File) -> io::Result<Self> {
        let length = file.metadata()?.len();
        Ok(Self(Kind::File(Arc::new(file), length)))
    }

    /// Its length in bytes.
    pub fn len(&self) -> u64 {
        match &self.0 {
            Kind::Memory(bytes) => bytes.len() as u64,
            Kind::File(_, length) => *length,
        }
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The `length` bytes from `offset` on, read into `buffer` if they are not in memory. Blocks.
    pub(super) fn piece<'a>(
        &'a self,
        offset: u64,
        length: usize,
        buffer: &'a mut Vec<u8>,
    ) -> io::Result<&'a [u8]> {
        match &self.0 {
            Kind::Memory(bytes) => {
                let begin = usize::try_from(offset).unwrap_or(usize::MAX);
                let end = begin.saturating_add(length);
                bytes.get(begin..end).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
            }
            Kind::File(file, _) => {
                // A buffer that had this length before costs nothing.
                buffer.resize(length, 0);
                file.read_exact_at(buffer, offset)?;
                Ok(buffer)
            }
        }
    }
}

impl From<Bytes> for Content {
    fn from(bytes: Bytes) -> Self {
        Self(Kind::Memory(bytes))
    }
}

impl From<Vec<u8>> for Content {
    fn from(bytes: Vec<u8>) -> Self {
        Bytes::from(bytes).into()
    }
}
