//! Which of several incomplete copies of a segment is read where one is wanted: `.partial` files, and what came under the
//! complete name and ended early.
//!
//! Promotions leave their parent's last segment each with what they had of it, and zeros behind the last record that is
//! complete; a dead primary's last segment is stored so, too. So those of one server's history agree as far as both go, and the longest holds what the others hold. Files that
//! contradict each other come from two servers: none of them is believed.

use std::io::{self, Write};

use futures_util::future::try_join;
use walpoint_base::{Lsn, SegmentName, WalFileName};

use super::WalArchive;
use super::get::WalReader;
use crate::error::{RepoError, Result};
use crate::layout::{Key, NameHash};
use crate::object::ContentHash;

/// An incomplete copy of a segment.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Copy {
    /// A `.partial` file.
    Partial(NameHash),
    /// What came under the complete name and ended there.
    Ended(Lsn, NameHash),
}

impl WalArchive {
    /// The `.partial` file of a segment that holds most; `None` if there is none. Where there are several, all are read.
    pub(super) async fn longest_partial(&self, segment: SegmentName) -> Result<Option<WalReader>> {
        let copies = self.partials(segment).await?.into_iter().map(Copy::Partial);
        self.longest(segment, copies.collect()).await
    }

    /// The incomplete copy of a segment that holds most, a `.partial` file or one that ended early; `None` if there is none.
    /// Where there are several, all are read.
    pub async fn read_incomplete(&self, segment: SegmentName) -> Result<Option<WalReader>> {
        let (partials, ended) = try_join(self.partials(segment), self.ended(segment)).await?;
        let mut copies: Vec<Copy> = partials.into_iter().map(Copy::Partial).collect();
        copies.extend(ended.into_iter().map(|(end, hash)| Copy::Ended(end, hash)));
        match (self.longest(segment, copies).await?, self.parent_of(WalFileName::Partial(segment))) {
            (None, Some(parent)) => Box::pin(parent.read_incomplete(segment)).await,
            (own, _) => Ok(own),
        }
    }

    async fn longest(&self, segment: SegmentName, copies: Vec<Copy>) -> Result<Option<WalReader>> {
        let chosen = match copies[..] {
            [] => return Ok(None),
            [only] => only,
            _ => self.choose(segment, &copies).await?,
        };
        self.read_copy(segment, chosen).await
    }

    async fn read_copy(&self, segment: SegmentName, copy: Copy) -> Result<Option<WalReader>> {
        match copy {
            Copy::Partial(hash) => self.read_partial(segment, hash).await,
            Copy::Ended(end, hash) => self.read_ended(segment, end, hash).await,
        }
    }

    fn key_of(&self, segment: SegmentName, copy: Copy) -> Key {
        match copy {
            Copy::Partial(hash) => self.paths().partial(segment, hash),
            Copy::Ended(end, hash) => self.paths().ended(segment, end, hash),
        }
    }

    async fn choose(&self, segment: SegmentName, copies: &[Copy]) -> Result<Copy> {
        let mut read = Vec::new();
        for &copy in copies {
            match self.extent(segment, copy, u64::MAX).await {
                Ok(Some(extent)) => read.push((extent.filled, copy, extent.hash())),
                // Damaged, or deleted since: the others may do.
                Ok(None) | Err(RepoError::Corrupt { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        read.sort_unstable_by_key(|(filled, copy, _)| (*filled, *copy));
        let Some((_, longest, _)) = read.pop() else {
            // Reading the first one tells what is wrong with all.
            return Ok(copies.first().copied().unwrap_or(Copy::Partial(NameHash([0; 16]))));
        };
        for (filled, copy, content) in read {
            let same = self.extent(segment, longest, filled).await?.map(|extent| extent.hash());
            if same != Some(content) {
                let what = format!(
                    "it contradicts \"{}\": two servers wrote this timeline, and which of them the others followed is not known",
                    self.key_of(segment, copy)
                );
                return Err(RepoError::corrupt(&self.key_of(segment, longest), what));
            }
        }
        Ok(longest)
    }

    /// How much of an incomplete copy is filled, of its first `limit` bytes.
    async fn extent(&self, segment: SegmentName, copy: Copy, limit: u64) -> Result<Option<Extent>> {
        let Some(reader) = self.read_copy(segment, copy).await? else { return Ok(None) };
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
