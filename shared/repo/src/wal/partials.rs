//! Which of several incomplete copies of a segment is read where one is wanted: `.partial` files, and what came under the
//! complete name and ended early.
//!
//! Promotions leave their parent's last segment each with what they had of it, and zeros behind the last record that is
//! complete; a dead primary's last segment is stored so, too. So those of one server's history agree as far as both go, and the
//! longest holds what the others hold. Copies that contradict each other come from two servers. Then younger timelines decide, which
//! left the timeline in that segment: their first segment begins with what they took over, so a copy that differs before the switch
//! point is not the one that they come from, and what lies behind the last switch point is not read. Where that does not decide,
//! none is believed, and a person is asked.

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

/// Which of several copies is read.
enum Choice {
    One(Copy),
    /// None can be read.
    Unreadable,
    /// None is believed: these contradict each other.
    Contradicting(Vec<String>),
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

    /// The copies of a segment that contradict each other, so that none of them is read; empty if one is.
    pub async fn contradicting_copies(&self, segment: SegmentName) -> Result<Vec<String>> {
        let mut copies: Vec<Copy> = self.partials(segment).await?.into_iter().map(Copy::Partial).collect();
        copies.extend(self.ended(segment).await?.into_iter().map(|(end, hash)| Copy::Ended(end, hash)));
        Ok(match self.choice(segment, &copies).await? {
            Choice::Contradicting(keys) => keys,
            Choice::One(_) | Choice::Unreadable => Vec::new(),
        })
    }

    /// What is wrong with a copy of a segment that holds more than one that goes to `until`, or may: a copy says in its name where it
    /// ended, a `.partial` file does not.
    pub(crate) async fn damaged_copy_beyond(
        &self,
        segment: SegmentName,
        until: Option<Lsn>,
    ) -> Result<Option<String>> {
        let (partials, ended) = try_join(self.partials(segment), self.ended(segment)).await?;
        if partials.len() + ended.len() < 2 {
            return Ok(None);
        }
        let beyond = ended.into_iter().filter(|(end, _)| Some(end.align()) > until);
        let beyond = beyond.map(|(end, hash)| Copy::Ended(end, hash));
        for copy in partials.into_iter().map(Copy::Partial).chain(beyond) {
            match self.extent(segment, copy, u64::MAX).await {
                Ok(_) => {}
                Err(error @ RepoError::Corrupt { .. }) => return Ok(Some(error.to_string())),
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    async fn choose(&self, segment: SegmentName, copies: &[Copy]) -> Result<Copy> {
        match self.choice(segment, copies).await? {
            Choice::One(copy) => Ok(copy),
            // Reading the first one tells what is wrong with all.
            Choice::Unreadable => Ok(copies.first().copied().unwrap_or(Copy::Partial(NameHash([0; 16])))),
            Choice::Contradicting(keys) => {
                let what = format!(
                    "these copies contradict each other, so two servers wrote this timeline, and which of them the others \
                     followed is not known: {}",
                    keys.join(", ")
                );
                let first = copies.first().copied().unwrap_or(Copy::Partial(NameHash([0; 16])));
                Err(RepoError::corrupt(&self.key_of(segment, first), what))
            }
        }
    }

    async fn choice(&self, segment: SegmentName, copies: &[Copy]) -> Result<Choice> {
        let mut read = Vec::new();
        for &copy in copies {
            match self.extent(segment, copy, u64::MAX).await {
                Ok(Some(extent)) => read.push((extent.filled, copy)),
                // Damaged, or deleted since: the others may do.
                Ok(None) | Err(RepoError::Corrupt { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        read.sort_unstable();
        if read.is_empty() {
            return Ok(Choice::Unreadable);
        }
        if let Some(longest) = self.longest_of(segment, &read, u64::MAX).await? {
            return Ok(Choice::One(longest));
        }
        let longest = match self.agree_with_heirs(segment, &mut read).await? {
            Some(limit) => self.longest_of(segment, &read, limit).await?,
            None => None,
        };
        Ok(longest.map_or_else(|| Choice::Contradicting(self.keys_of(segment, &read)), Choice::One))
    }

    fn keys_of(&self, segment: SegmentName, read: &[(u64, Copy)]) -> Vec<String> {
        read.iter().map(|(_, copy)| format!("\"{}\"", self.key_of(segment, *copy))).collect()
    }

    /// The last of these copies, which are sorted by how much is filled, if it holds what the others hold of the first `limit` bytes.
    async fn longest_of(
        &self,
        segment: SegmentName,
        read: &[(u64, Copy)],
        limit: u64,
    ) -> Result<Option<Copy>> {
        let Some(((_, longest), others)) = read.split_last() else { return Ok(None) };
        for &(filled, copy) in others {
            let limit = filled.min(limit);
            let one = self.extent(segment, copy, limit).await?.map(|extent| extent.content());
            let other = self.extent(segment, *longest, limit).await?.map(|extent| extent.content());
            if one.is_none() || one != other {
                return Ok(None);
            }
        }
        Ok(Some(*longest))
    }

    /// Takes out the copies that differ from what a younger timeline took over of them. How much of a segment may be wanted then:
    /// nothing behind the last switch point. `None` if no younger timeline tells, or all are taken out: then none is.
    async fn agree_with_heirs(
        &self,
        segment: SegmentName,
        read: &mut Vec<(u64, Copy)>,
    ) -> Result<Option<u64>> {
        let (mut agree, mut limit) = (read.clone(), None);
        for (heir, took) in self.heirs(segment).await? {
            let mut kept = Vec::new();
            for &(filled, copy) in &agree {
                let upto = filled.min(took);
                let theirs = self.extent_of(WalFileName::Segment(heir), upto).await?;
                let ours = self.extent(segment, copy, upto).await?;
                if theirs.map(|extent| extent.content()) == ours.map(|extent| extent.content()) {
                    kept.push((filled, copy));
                }
            }
            (agree, limit) = (kept, limit.max(Some(took)));
        }
        if limit.is_none() || agree.is_empty() {
            return Ok(None);
        }
        *read = agree;
        Ok(limit)
    }

    /// The segments of younger timelines that begin with bytes of this one, and how many.
    async fn heirs(&self, segment: SegmentName) -> Result<Vec<(SegmentName, u64)>> {
        let size = self.lineage().segment_size;
        let Some(number) = segment.number(size) else { return Ok(Vec::new()) };
        let mut heirs = Vec::new();
        for timeline in self.histories().await?.into_iter().filter(|timeline| *timeline > segment.timeline) {
            let history = match Box::pin(self.history(timeline)).await {
                Ok(history) => history,
                // What it took over is not known.
                Err(RepoError::Corrupt { .. }) => None,
                Err(error) => return Err(error),
            };
            let left = history.and_then(|history| {
                let end = history.end_of(segment.timeline)?;
                (history.begin_of(segment.timeline)? < end
                    && number.start(size) < end
                    && end < number.end(size))
                .then_some(end)
            });
            let heir = number.name(timeline, size);
            if let Some(left) = left
                && let Ok(Some(header)) = self.header(heir).await
                && !header.damaged
            {
                heirs.push((heir, left.since(number.start(size))));
            }
        }
        Ok(heirs)
    }

    /// How much of a file is filled, of its first `limit` bytes; `None` if it cannot be read.
    async fn extent_of(&self, name: WalFileName, limit: u64) -> Result<Option<Extent>> {
        let reader = match Box::pin(self.read(name)).await {
            Ok(reader) => reader,
            Err(RepoError::Corrupt { .. }) => None,
            Err(error) => return Err(error),
        };
        let Some(reader) = reader else { return Ok(None) };
        Ok(Some(reader.write_to(Extent::new(limit)).await?.0))
    }

    /// How much of an incomplete copy is filled, of its first `limit` bytes.
    async fn extent(&self, segment: SegmentName, copy: Copy, limit: u64) -> Result<Option<Extent>> {
        let Some(reader) = self.read_copy(segment, copy).await? else { return Ok(None) };
        Ok(Some(reader.write_to(Extent::new(limit)).await?.0))
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
    fn new(limit: u64) -> Self {
        Self { hasher: blake3::Hasher::new(), given: 0, filled: 0, limit }
    }

    /// The same for the same bytes.
    fn content(&self) -> (u64, ContentHash) {
        (self.filled, ContentHash(*self.hasher.finalize().as_bytes()))
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
