//! Whether two archives hold the same WAL under one name, as two repositories of one cluster should.

use std::io::{self, Write};

use futures_util::future::try_join;
use walpoint_base::{SegmentName, WalFileName};
use walpoint_storage::error::{RepoError, Result};
use walpoint_storage::object::ContentHash;

use super::WalArchive;
use super::header::WalHeader;

impl WalArchive {
    /// Whether a segment has the same content here and in another archive. `None` where one of them has nothing that proves it: the
    /// segment is missing, damaged, or was accepted although damaged. Two ranged requests at the same time; where each repository hashes with a key
    /// of its own, the segment is read, a frame at a time.
    pub async fn same_segment(&self, other: &Self, name: SegmentName) -> Result<Option<bool>> {
        let (ours, theirs) = try_join(self.sound_header(name), other.sound_header(name)).await?;
        let (Some(ours), Some(theirs)) = (ours, theirs) else { return Ok(None) };
        if ours.hash == theirs.hash {
            return Ok(Some(true));
        }
        if ours.chain != theirs.chain || ours.content_len != theirs.content_len {
            return Ok(Some(false));
        }
        let hashed = match self.hashed_as(other, WalFileName::Segment(name)).await {
            Err(RepoError::Corrupt { .. }) => None,
            hashed => hashed?,
        };
        Ok(hashed.map(|hash| hash == theirs.hash))
    }

    /// Whether a file has the same bytes here and in another archive, whatever is wrong with them: of segments that were accepted
    /// although damaged. `None` where one of them does not have it. The file is read here, a frame at a time, unless the hashes are
    /// the same.
    pub async fn same_copy(&self, other: &Self, name: WalFileName) -> Result<Option<bool>> {
        let (Some(ours), Some(theirs)) = (self.read(name).await?, other.read(name).await?) else {
            return Ok(None);
        };
        let (Some(ours), Some(theirs)) = (ours.header(), theirs.header()) else { return Ok(None) };
        if ours.hash == theirs.hash {
            return Ok(Some(true));
        }
        if ours.content_len != theirs.content_len {
            return Ok(Some(false));
        }
        Ok(self.hashed_as(other, name).await?.map(|hash| hash == theirs.hash))
    }

    /// The hash of a file's content as another archive would store it.
    async fn hashed_as(&self, other: &Self, name: WalFileName) -> Result<Option<ContentHash>> {
        let Some(reader) = self.read(name).await? else { return Ok(None) };
        let (hasher, _) = reader.write_to(other.sealer().content_hasher()).await?;
        Ok(Some(ContentHash(*hasher.finalize().as_bytes())))
    }

    /// The hash of the first bytes of a file, as this archive hashes contents; `None` if there is no such file. All of the file is
    /// read and checked, a frame at a time.
    pub async fn hash_of_beginning(&self, name: WalFileName, length: u64) -> Result<Option<ContentHash>> {
        let Some(reader) = self.read(name).await? else { return Ok(None) };
        let beginning = Beginning { hasher: self.sealer().content_hasher(), left: length };
        let (beginning, _) = reader.write_to(beginning).await?;
        Ok(Some(ContentHash(*beginning.hasher.finalize().as_bytes())))
    }

    async fn sound_header(&self, name: SegmentName) -> Result<Option<WalHeader>> {
        match self.header(name).await {
            Ok(header) => Ok(header.filter(|header| !header.damaged)),
            Err(RepoError::Corrupt { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Hashes the first bytes that it is given.
struct Beginning {
    hasher: blake3::Hasher,
    left: u64,
}

impl Write for Beginning {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let wanted = usize::try_from(self.left).unwrap_or(usize::MAX);
        let hashed = buffer.get(..wanted).unwrap_or(buffer);
        self.hasher.update(hashed);
        self.left -= hashed.len() as u64;
        Ok(buffer.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
