//! What was received of each file, in the order of the stream, in a scratch file: memory does not grow with the cluster.
//!
//! A record: length of the path (32 bits), path, size (64 bits), CRC-32C (32 bits), all little-endian. It is read back by the
//! process that wrote it, and thrown away.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, ErrorKind, Read, Seek, SeekFrom, Write};

/// No path is longer.
const MAX_PATH: u32 = 1 << 14;

/// What was received of a file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Received {
    /// Its path below the data directory, tablespaces under `pg_tblspc/<oid>`.
    pub path: Vec<u8>,
    /// Its length.
    pub size: u64,
    /// The CRC-32C of its content.
    pub crc: u32,
}

/// The list of what was received.
#[derive(Debug)]
pub struct ReceivedFiles {
    records: BufWriter<File>,
}

impl ReceivedFiles {
    /// A list in this file, which is empty and nobody else's.
    pub fn new(scratch: File) -> Self {
        Self { records: BufWriter::new(scratch) }
    }

    /// Adds a file.
    pub(super) fn note(&mut self, received: &Received) -> io::Result<()> {
        let length = u32::try_from(received.path.len()).unwrap_or(u32::MAX);
        self.records.write_all(&length.to_le_bytes())?;
        self.records.write_all(&received.path)?;
        self.records.write_all(&received.size.to_le_bytes())?;
        self.records.write_all(&received.crc.to_le_bytes())
    }

    /// Reads it from its beginning.
    pub(super) fn read(self) -> io::Result<LedgerReader> {
        let mut file = self.records.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.seek(SeekFrom::Start(0))?;
        Ok(LedgerReader { records: BufReader::new(file) })
    }
}

/// A list that is read.
#[derive(Debug)]
pub(super) struct LedgerReader {
    records: BufReader<File>,
}

impl LedgerReader {
    /// The next file; `None` after the last.
    pub(super) fn next(&mut self) -> io::Result<Option<Received>> {
        let mut length = [0; 4];
        match self.records.read_exact(&mut length) {
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(None),
            read => read?,
        }
        let length = u32::from_le_bytes(length);
        if length > MAX_PATH {
            return Err(io::Error::new(ErrorKind::InvalidData, "the scratch file was changed"));
        }
        let mut path = vec![0; usize::try_from(length).unwrap_or(0)];
        self.records.read_exact(&mut path)?;
        let (mut size, mut crc) = ([0; 8], [0; 4]);
        self.records.read_exact(&mut size)?;
        self.records.read_exact(&mut crc)?;
        Ok(Some(Received { path, size: u64::from_le_bytes(size), crc: u32::from_le_bytes(crc) }))
    }
}
