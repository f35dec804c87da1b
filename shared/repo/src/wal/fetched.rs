//! A file of WAL in memory.

use std::fmt;

use super::header::WalHeader;

/// A file that was read back and checked as a whole.
#[derive(Clone, PartialEq, Eq)]
pub struct FetchedWal {
    /// What is stored about a segment; `None` for PostgreSQL's other files.
    pub header: Option<WalHeader>,
    /// Its bytes.
    pub content: Vec<u8>,
}

impl fmt::Debug for FetchedWal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WalFile({:?}, {} bytes)", self.header, self.content.len())
    }
}
