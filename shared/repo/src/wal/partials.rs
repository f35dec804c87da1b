//! Which of several `.partial` files of a segment is read where one is wanted.
//!
//! Promotions leave their parent's last segment each with what they had of it, and zeros behind the last record that is
//! complete. So those of one server's history agree as far as both go, and the longest holds what the others hold. Files that
//! contradict each other come from two servers: none of them is believed.

use std::io::{self, Write};

use walpoint_base::SegmentName;

use super::WalArchive;
use super::get::WalReader;
use crate::error::{RepoError, Result};
use crate::layout::NameHash;
use crate::object::ContentHash;

impl WalArchive {
    /// The `.partial` file of a segment that holds most; `None` if there is none. Where there are several, all are read.
    pub(super) async fn longest_partial(&self, segment: SegmentName) -> Result<Option<WalReader>> {
        let hashes = self.partials(segment).await?;
        let chosen = match hashes[..] {
            [] => return Ok(None),
            [only] => only,
            _ => self.choose(segment, &hashes).await?,
        };
        self.read_partial(segment, chosen).await
    }

    async fn choose(&self, segment: SegmentName, hashes: &[NameHash]) -> Result<NameHash> {
        let mut read = Vec::new();
        for &hash in hashes {
            match self.extent(segment, hash, u64::MAX).await {
                Ok(Some(extent)) => read.push((extent.filled, hash, extent.hash())),
                // Damaged, or deleted since: the others may do.
                Ok(None) | Err(RepoError::Corrupt { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        read.sort_unstable_by_key(|(filled, hash, _)| (*filled, *hash));
        let Some((_, longest, _)) = read.pop() else {
            // Reading the first one tells what is wrong with all.
            return Ok(hashes.first().copied().unwrap_or(NameHash([0; 16])));
        };
        for (filled, hash, content) in read {
            let same = self.extent(segment, longest, filled).await?.map(|extent| extent.hash());
            if same != Some(content) {
                let what = format!(
                    "it contradicts \"{}\": two servers wrote this timeline, and which of them the others followed is not known",
                    self.paths().partial(segment, hash)
                );
                return Err(RepoError::corrupt(&self.paths().partial(segment, longest), what));
            }
        }
        Ok(longest)
    }

    /// How much of a `.partial` file is filled, of its first `limit` bytes.
    async fn extent(&self, segment: SegmentName, hash: NameHash, limit: u64) -> Result<Option<Extent>> {
        let Some(reader) = self.read_partial(segment, hash).await? else { return Ok(None) };
        let extent = Extent { hasher: blake3::Hasher::new(), given: 0, filled: 0, limit };
        Ok(Some(reader.write_to(extent).await?.0))
    }
}

/// Takes a file, and knows where the zeros begin with which it ends.
struct Extent {
    /// Of what is before them.
    hasher: blake3::Hasher,
    given: u64,
    filled: u64,
    /// Bytes from here on are not looked at.
    limit: u64,
}

impl Extent {
    fn hash(&self) -> ContentHash {
        ContentHash(*self.hasher.finalize().as_bytes())
    }
}

impl Write for Extent {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let wanted = usize::try_from(self.limit.saturating_sub(self.given)).unwrap_or(usize::MAX);
        let looked_at = buffer.get(..wanted).unwrap_or(buffer);
        if let Some(last) = looked_at.iter().rposition(|byte| *byte != 0) {
            // Zeros before this belong to the content after all.
            io::copy(&mut io::Read::take(io::repeat(0), self.given - self.filled), &mut self.hasher)?;
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
