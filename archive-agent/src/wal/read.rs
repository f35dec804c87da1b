//! Reading a file of `pg_wal`, with its identity before and after: equal, so what was read is one state of the file.

use std::fs::File;
use std::io;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use walpoint_base::WalFileName;
use walpoint_base::socket::FileIdentity;
use walpoint_repo::cpu::without_core;
use walpoint_repo::wal::WalContent;

/// History and backup files are text of a few lines; longer ones are none.
const MAX_TEXT: u64 = 1 << 20;

/// Why a file was not read. The text is for PostgreSQL's log.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    /// It cannot be opened or read.
    #[error("{path:?} cannot be read: {source}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It has another length than such a file has.
    #[error("{path:?} has {size} bytes, {expected}")]
    Length {
        /// Which file.
        path: PathBuf,
        /// Its length.
        size: u64,
        /// What it should be.
        expected: String,
    },
    /// It was written to meanwhile.
    #[error(
        "{path:?} changed while it was read\nHINT: Find out which process changes it: PostgreSQL does not change a \
             finished file."
    )]
    Changed {
        /// Which file.
        path: PathBuf,
    },
}

/// A file that is open and has a length that fits its name.
#[derive(Debug)]
pub(crate) struct OpenFile {
    path: PathBuf,
    file: File,
    is_segment: bool,
    /// What it was when it was opened.
    pub(crate) identity: FileIdentity,
}

impl OpenFile {
    /// Opens a file. `segment_size` is the cluster's, in bytes.
    pub(crate) fn open(path: &Path, name: WalFileName, segment_size: u64) -> Result<Self, ReadError> {
        let failed = |source| ReadError::Io { path: path.to_owned(), source };
        let is_segment = matches!(name, WalFileName::Segment(_));
        let file = File::open(path).map_err(failed)?;
        let identity = FileIdentity::of(&file, is_segment).map_err(failed)?;
        let size = identity.size;
        let expected = match name {
            WalFileName::Segment(_) | WalFileName::Partial(_) if size != segment_size => {
                format!(
                    "but this cluster's segments have {segment_size}: it is cut short, or another cluster's"
                )
            }
            // An empty history is a timeline without ancestors, to PostgreSQL too.
            WalFileName::Backup(..) if size == 0 => "so it says nothing".to_owned(),
            WalFileName::History(_) | WalFileName::Backup(..) if size > MAX_TEXT => {
                "too many for a file of that kind".to_owned()
            }
            _ => return Ok(Self { path: path.to_owned(), file, is_segment, identity }),
        };
        Err(ReadError::Length { path: path.to_owned(), size, expected })
    }

    /// Reads all of it, in order, in pieces as long as `buffer` and a last one that may be shorter, until there is no more or
    /// `each` has had enough. Blocks.
    pub(crate) fn read(
        &self,
        buffer: &mut [u8],
        mut each: impl FnMut(&[u8]) -> ControlFlow<()>,
    ) -> Result<(), ReadError> {
        let failed = |source| ReadError::Io { path: self.path.clone(), source };
        let mut offset = 0;
        while offset < self.identity.size {
            let left = usize::try_from(self.identity.size - offset).unwrap_or(usize::MAX);
            let length = left.min(buffer.len());
            let Some(piece) = buffer.get_mut(..length).filter(|piece| !piece.is_empty()) else {
                return Err(failed(io::ErrorKind::InvalidInput.into()));
            };
            without_core(|| self.file.read_exact_at(piece, offset)).map_err(failed)?;
            offset += length as u64;
            if each(piece).is_break() {
                break;
            }
        }
        self.unchanged()
    }

    /// Reads the first bytes, at most as many as `buffer` holds; how many these were. Blocks.
    pub(crate) fn beginning(&self, buffer: &mut [u8]) -> Result<usize, ReadError> {
        let failed = |source| ReadError::Io { path: self.path.clone(), source };
        let length = usize::try_from(self.identity.size).unwrap_or(usize::MAX).min(buffer.len());
        let piece = buffer.get_mut(..length).unwrap_or_default();
        without_core(|| self.file.read_exact_at(piece, 0)).map_err(failed)?;
        self.unchanged().map(|()| length)
    }

    /// Whether it is still what it was when it was opened.
    pub(crate) fn unchanged(&self) -> Result<(), ReadError> {
        let now = without_core(|| FileIdentity::of(&self.file, self.is_segment))
            .map_err(|source| ReadError::Io { path: self.path.clone(), source })?;
        if now == self.identity { Ok(()) } else { Err(ReadError::Changed { path: self.path.clone() }) }
    }

    /// Its content, read when it is stored. To be called before anything is read, so that the two are one state of it.
    pub(crate) fn content(&self) -> Result<WalContent, ReadError> {
        let failed = |source| ReadError::Io { path: self.path.clone(), source };
        self.file.try_clone().and_then(WalContent::file).map_err(failed)
    }

    /// Asks the kernel to drop what it holds of the file, so that the next read sees the disk: a page damaged in memory
    /// is not a damaged file.
    pub(crate) fn drop_cached(&self) {
        if let Err(error) = rustix::fs::fadvise(&self.file, 0, None, rustix::fs::Advice::DontNeed) {
            tracing::debug!("{}: cached pages were not dropped: {error}", self.path.display());
        }
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use walpoint_base::durable;

    use super::*;

    const SIZE: u64 = 1 << 20;

    fn open(name: &str, content: &[u8]) -> Result<OpenFile, ReadError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        durable::create(&path, content).unwrap();
        OpenFile::open(&path, name.parse().unwrap(), SIZE)
    }

    #[test]
    fn lengths_that_do_not_fit_the_name_are_refused() {
        for (name, length, says) in [
            ("000000010000000000000001", 0, "0 bytes"),
            ("000000010000000000000001", (1 << 20) - 1, "cut short"),
            ("000000010000000000000001.partial", 1 << 24, "1048576"),
            ("000000010000000000000001.00000028.backup", 0, "says nothing"),
            ("00000002.history", 2 << 20, "too many"),
        ] {
            let error = open(name, &vec![0; length]).unwrap_err().to_string();
            assert!(error.contains(says) && error.contains(name), "{error}");
        }
    }

    #[test]
    fn a_file_is_read_whole_or_as_far_as_it_is_wanted() {
        let content: Vec<u8> = (0..1 << 20).map(|n: u32| n.to_le_bytes()[1]).collect();
        let file = open("000000010000000000000001", &content).unwrap();
        for length in [1 << 20, 1 << 21, 300_001] {
            let (mut got, mut pieces) = (Vec::new(), 0);
            let mut each = |piece: &[u8]| {
                got.extend_from_slice(piece);
                pieces += 1;
                ControlFlow::Continue(())
            };
            file.read(&mut vec![9; length], &mut each).unwrap();
            assert!(got == content && pieces == content.len().div_ceil(length));
        }
        let mut seen = 0;
        file.read(&mut [0; 1000], |piece| {
            seen += piece.len();
            ControlFlow::Break(())
        })
        .unwrap();
        assert_eq!(seen, 1000);
        let mut beginning = [0; 700];
        assert_eq!(file.beginning(&mut beginning).unwrap(), 700);
        assert_eq!(beginning[..], content[..700]);
    }

    #[test]
    fn a_file_that_changes_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("00000002.history");
        durable::create(&path, b"1\t0/3000000\treason\n").unwrap();
        let file = OpenFile::open(&path, "00000002.history".parse().unwrap(), SIZE).unwrap();
        std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(5).unwrap();
        assert!(file.read(&mut [0; 100], |_| ControlFlow::Continue(())).is_err());
        assert!(matches!(file.unchanged(), Err(ReadError::Changed { .. })));
    }
}
