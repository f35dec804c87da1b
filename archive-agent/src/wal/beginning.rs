//! What a segment begins with, read out of a file or an archive for a comparison.

use std::io::{self, Read, Write};
use std::path::Path;

use walpoint_base::{SegmentName, WalFileName};
use walpoint_repo::wal::{WalArchive, WalReader};
use walpoint_storage::RepoError;

use super::disk;
use super::neighbors::{self, StoredNeighbor};

/// The beginning of a segment, without the zeros that it ends with.
pub(super) struct Beginning {
    hasher: blake3::Hasher,
    given: u64,
    /// Bytes before the zeros.
    pub(super) filled: u64,
    /// Bytes from here on are not looked at.
    limit: u64,
}

impl Beginning {
    fn new(limit: u64) -> Self {
        Self { hasher: blake3::Hasher::new(), given: 0, filled: 0, limit }
    }

    pub(super) async fn of_stored(reader: WalReader, limit: u64) -> Result<Self, RepoError> {
        Ok(reader.write_to(Self::new(limit)).await?.0)
    }

    /// Of a file; `None` if it cannot be read.
    pub(super) async fn of_file(path: &Path, limit: u64) -> Option<Self> {
        let (directory, path) = (path.parent().unwrap_or(path), path.to_owned());
        let read = move || {
            let mut beginning = Self::new(limit);
            io::copy(&mut std::fs::File::open(path)?.take(limit), &mut beginning).map(|_| beginning)
        };
        disk::run(directory, read).await.ok()?.ok()
    }

    pub(super) fn is(&self, other: &Self) -> bool {
        (self.filled, self.hasher.finalize()) == (other.filled, other.hasher.finalize())
    }
}

impl Write for Beginning {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let wanted = usize::try_from(self.limit.saturating_sub(self.given)).unwrap_or(usize::MAX);
        let looked_at = buffer.get(..wanted).unwrap_or(buffer);
        if let Some(last) = looked_at.iter().rposition(|byte| *byte != 0) {
            io::copy(&mut Read::take(io::repeat(0), self.given - self.filled), &mut self.hasher)?;
            self.hasher.update(looked_at.get(..=last).unwrap_or(looked_at));
            self.filled = self.given + last as u64 + 1;
        }
        self.given += buffer.len() as u64;
        Ok(buffer.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The beginning of a segment that is stored; `None` if it is not, or is damaged and proves nothing.
pub(super) async fn stored(
    archive: &WalArchive,
    name: SegmentName,
    limit: u64,
) -> Result<Option<Beginning>, RepoError> {
    let StoredNeighbor::Sound(_) = neighbors::header(archive, name).await? else { return Ok(None) };
    let read = async {
        match archive.read(WalFileName::Segment(name)).await? {
            Some(reader) => Ok(Some(Beginning::of_stored(reader, limit).await?)),
            None => Ok(None),
        }
    };
    match read.await {
        Err(RepoError::Corrupt { .. }) => Ok(None),
        read => read,
    }
}
