//! Whether two copies of a segment begin with the same bytes, as far as both go: whole segments, `.partial` files, copies that ended
//! early, slices, of one archive or of two.
//!
//! Copies of one server's WAL agree as far as both go; behind the end of one there are zeros. A damaged copy still tells something:
//! its frames up to the damage, each checked by itself; its name, which has the hash of its content, so that a longer copy can be cut
//! to its length and compared with that; and its header, which says what records are in it. That a longer damaged copy continues a
//! shorter one is not proven by that: nothing contradicts it. Of slices each one is named: one session stores the same bytes in all
//! repositories, so sound slices of that session in another one stand for a damaged one here, however they are cut there.

use std::io::{self, Write};

use walpoint_base::{Lsn, SegmentName, WalFileName};
use walpoint_storage::error::{RepoError, Result};
use walpoint_storage::layout::{Key, NameHash};
use walpoint_storage::object::ContentHash;

use super::WalArchive;
use super::get::WalReader;
use super::header::WalHeader;
use super::seal::SealedName;
use super::slices::{SliceName, SlicedBeginning};

/// A copy of a segment in an archive.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum SegmentCopy {
    /// The segment itself.
    Whole,
    /// A `.partial` file.
    Partial(NameHash),
    /// What came under the complete name and ended there.
    Ended(Lsn, NameHash),
    /// What was streamed of it, put together.
    Sliced,
}

/// A copy that was read as far as it can be.
#[derive(Clone, Debug)]
pub(crate) struct Surveyed {
    archive: WalArchive,
    segment: SegmentName,
    copy: SegmentCopy,
    /// Where the zeros begin with which it ends, or what can be read of it, and the hash of what is before that.
    filled: u64,
    content: ContentHash,
    fault: Option<String>,
    sliced: Option<SlicedExtent>,
}

/// How far slices go that were put together.
#[derive(Clone, Debug)]
struct SlicedExtent {
    /// Those that were read and are sound.
    taken: Vec<SliceName>,
    /// Those that are damaged, or continue such.
    hidden: Vec<SliceName>,
}

/// What a comparison shows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum PrefixComparison {
    /// As far as both go they are the same.
    Same,
    /// They are not.
    Different,
    /// One is damaged and holds more than the other. What can be read of what it says about itself does not contradict that one.
    Fits,
    /// One is damaged, or both are, and neither its length nor anything else is known.
    Unknown,
}

impl WalArchive {
    pub(super) async fn read_copy(
        &self,
        segment: SegmentName,
        copy: SegmentCopy,
    ) -> Result<Option<WalReader>> {
        match copy {
            SegmentCopy::Whole => self.read(WalFileName::Segment(segment)).await,
            SegmentCopy::Partial(hash) => self.read_partial(segment, hash).await,
            SegmentCopy::Ended(end, hash) => self.read_ended(segment, end, hash).await,
            SegmentCopy::Sliced => self.read_sliced(segment).await,
        }
    }

    pub(super) fn key_of_copy(&self, segment: SegmentName, copy: SegmentCopy) -> Key {
        match copy {
            SegmentCopy::Whole => self.paths().segment(segment),
            SegmentCopy::Partial(hash) => self.paths().partial(segment, hash),
            SegmentCopy::Ended(end, hash) => self.paths().ended(segment, end, hash),
            SegmentCopy::Sliced => self.paths().sliced(segment),
        }
    }

    /// Reads a copy as far as it can be; `None` if there is none.
    pub(crate) async fn look_into(
        &self,
        segment: SegmentName,
        copy: SegmentCopy,
    ) -> Result<Option<Surveyed>> {
        if copy == SegmentCopy::Sliced {
            return self.look_into_slices(segment).await;
        }
        let (extent, fault) = match self.read_copy(segment, copy).await {
            Ok(Some(reader)) => reader.write_readable(ZeroTail::new(u64::MAX)).await?,
            Ok(None) => return Ok(None),
            Err(error @ RepoError::Corrupt { .. }) => (ZeroTail::new(0), Some(error)),
            Err(error) => return Err(error),
        };
        let fault = fault.map(|error| error.to_string());
        let (filled, content) = extent.content();
        Ok(Some(Surveyed { archive: self.clone(), segment, copy, filled, content, fault, sliced: None }))
    }

    async fn look_into_slices(&self, segment: SegmentName) -> Result<Option<Surveyed>> {
        let all = Lsn(u64::MAX);
        let Some((extent, beginning)) = self.write_slices(segment, all, || ZeroTail::new(u64::MAX)).await?
        else {
            return Ok(None);
        };
        let SlicedBeginning { taken, fault, hidden, .. } = beginning;
        let (filled, content) = extent.content();
        Ok(Some(Surveyed {
            archive: self.clone(),
            segment,
            copy: SegmentCopy::Sliced,
            filled,
            content,
            fault: fault.map(|fault| fault.to_string()),
            sliced: Some(SlicedExtent { taken, hidden }),
        }))
    }
}

impl Surveyed {
    /// Opens it to be read.
    pub(super) async fn open(&self) -> Result<Option<WalReader>> {
        self.archive.read_copy(self.segment, self.copy).await
    }

    /// Bytes before the zeros with which it ends, or before the damage.
    pub(crate) fn filled(&self) -> u64 {
        self.filled
    }

    /// What is wrong with it; `None` if it is sound.
    pub(crate) fn fault(&self) -> Option<&str> {
        self.fault.as_deref()
    }

    /// Whether it can be read: of slices those can that come before a damaged one.
    pub(super) fn is_readable(&self) -> bool {
        self.fault.is_none() || self.sliced.is_some() && self.filled > 0
    }

    pub(super) fn copy(&self) -> SegmentCopy {
        self.copy
    }

    pub(super) fn is_elsewhere(&self, other: &Self) -> bool {
        self.archive.repository().id() != other.archive.repository().id()
    }

    pub(crate) fn repository(&self) -> &str {
        self.archive.repository().name()
    }

    /// Its object.
    pub(crate) fn key(&self) -> Key {
        self.archive.key_of_copy(self.segment, self.copy)
    }

    /// Whether it may hold more than one that goes to `until`: its name says where it ended, but for that of a `.partial` file, and the
    /// names of slices do where none contradicts them.
    pub(crate) fn may_go_beyond(&self, until: Option<Lsn>) -> bool {
        match self.copy {
            SegmentCopy::Ended(end, _) => Some(end.align()) > until,
            SegmentCopy::Whole | SegmentCopy::Partial(_) => true,
            SegmentCopy::Sliced => {
                let named = self.hidden().iter().map(|slice| slice.end).max();
                named.is_none_or(|end| Some(end) > until)
            }
        }
    }

    /// The slices of it that cannot be read.
    fn hidden(&self) -> &[SliceName] {
        self.sliced.as_ref().map_or(&[], |sliced| &sliced.hidden)
    }

    /// Whether the first `limit` bytes are those of another copy, as far as both go.
    pub(crate) async fn compare(&self, other: &Self, limit: u64) -> Result<PrefixComparison> {
        let upto = self.filled.min(other.filled).min(limit);
        if self.content(upto).await? != other.content(upto).await? {
            return Ok(PrefixComparison::Different);
        }
        match (&self.fault, &other.fault) {
            (None, None) => Ok(PrefixComparison::Same),
            (None, Some(_)) => self.compare_damaged(other, upto, limit).await,
            (Some(_), None) => other.compare_damaged(self, upto, limit).await,
            (Some(_), Some(_)) if upto > 0 && !self.hidden().is_empty() && !other.hidden().is_empty() => {
                Ok(PrefixComparison::Fits)
            }
            (Some(_), Some(_)) => Ok(PrefixComparison::Unknown),
        }
    }

    /// The same for a damaged one whose first `upto` bytes are the same.
    async fn compare_damaged(&self, damaged: &Self, upto: u64, limit: u64) -> Result<PrefixComparison> {
        if upto >= self.filled.min(limit) || damaged.is_beginning_of(self).await? {
            return Ok(PrefixComparison::Same);
        }
        match damaged.length() {
            // It would begin with that.
            Some(length) if self.filled >= length && length <= limit => {
                return Ok(PrefixComparison::Different);
            }
            Some(length) if self.filled < length => {}
            None if damaged.copy == SegmentCopy::Whole => {}
            // As much of it as there is before the damage is the same.
            None if upto > 0 && !damaged.hidden().is_empty() => return Ok(PrefixComparison::Fits),
            _ => return Ok(PrefixComparison::Unknown),
        }
        Ok(match (self.header().await?, damaged.header().await?) {
            (Some(ours), Some(theirs)) if !continues(&ours, &theirs) => PrefixComparison::Different,
            _ => PrefixComparison::Fits,
        })
    }

    /// Whether another copy begins with what this one holds, and this one holds no more, by the hash in its name. `false` also where
    /// that does not show.
    pub(crate) async fn is_beginning_of(&self, other: &Self) -> Result<bool> {
        if self.copy == SegmentCopy::Sliced {
            return self.is_streamed_to(other).await;
        }
        let (name, length) = match (self.copy, self.length()) {
            (SegmentCopy::Ended(_, name), Some(length)) => (name, length),
            (SegmentCopy::Partial(name), _) => (name, u64::MAX),
            _ => return Ok(false),
        };
        let Some(reader) = other.archive.read_copy(other.segment, other.copy).await? else {
            return Ok(false);
        };
        let cut = Cut { hasher: self.archive.sealer().content_hasher(), left: length };
        match reader.write_to(cut).await {
            Ok((cut, _)) => Ok(NameHash::of(&ContentHash(*cut.hasher.finalize().as_bytes())) == name),
            Err(RepoError::Corrupt { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Whether the bytes of all its slices that cannot be read are in sound ones of another archive, which the same sessions stored.
    async fn is_streamed_to(&self, other: &Self) -> Result<bool> {
        let Some(there) = other.sliced.as_ref().filter(|_| !self.hidden().is_empty()) else {
            return Ok(false);
        };
        let upto = self.filled.min(other.filled);
        if self.content(upto).await? != other.content(upto).await? {
            return Ok(false);
        }
        Ok(self.hidden().iter().all(|name| name.is_held_by(&there.taken)))
    }

    /// Bytes that count of one that ended early.
    fn length(&self) -> Option<u64> {
        match self.copy {
            SegmentCopy::Ended(end, _) => {
                Some(SealedName::Ended(end).valid(self.segment, self.archive.lineage().segment_size))
            }
            SegmentCopy::Whole | SegmentCopy::Partial(_) | SegmentCopy::Sliced => None,
        }
    }

    async fn header(&self) -> Result<Option<WalHeader>> {
        let read = match self.copy {
            SegmentCopy::Whole => self.archive.header(self.segment).await,
            SegmentCopy::Ended(end, hash) => self.archive.ended_header(self.segment, end, hash).await,
            SegmentCopy::Partial(_) | SegmentCopy::Sliced => return Ok(None),
        };
        match read {
            Err(RepoError::Corrupt { .. }) => Ok(None),
            read => read,
        }
    }

    /// What the first `limit` bytes hold: the same for the same bytes.
    pub(super) async fn content(&self, limit: u64) -> Result<(u64, ContentHash)> {
        if limit >= self.filled {
            return Ok((self.filled, self.content));
        }
        let extent = match self.archive.read_copy(self.segment, self.copy).await {
            Ok(Some(reader)) if limit > 0 => reader.write_readable(ZeroTail::new(limit)).await?.0,
            Ok(_) | Err(RepoError::Corrupt { .. }) => ZeroTail::new(0),
            Err(error) => return Err(error),
        };
        Ok(extent.content())
    }
}

/// Whether a copy may continue a shorter one, by what both say about their records. Another server's transactions ended at other
/// moments.
fn continues(short: &WalHeader, long: &WalHeader) -> bool {
    let records = short.first_record.is_none_or(|first| long.first_record == Some(first))
        && short.chain.begin == long.chain.begin
        && short.first_page_timeline == long.first_page_timeline
        && short.records <= long.records
        && short.end <= long.end;
    let transactions = short.transactions.is_none_or(|short| {
        long.transactions.is_some_and(|long| {
            short.earliest == long.earliest && short.latest <= long.latest && short.count <= long.count
        })
    });
    records && transactions
}

/// Hashes what it is given, with zeros from a position on.
struct Cut {
    hasher: blake3::Hasher,
    left: u64,
}

impl Write for Cut {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let kept = usize::try_from(self.left).map_or(buffer.len(), |left| left.min(buffer.len()));
        let (content, behind) = buffer.split_at(kept);
        self.hasher.update(content);
        io::copy(&mut io::Read::take(io::repeat(0), behind.len() as u64), &mut self.hasher)?;
        self.left -= kept as u64;
        Ok(buffer.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Takes a file, and knows where the zeros begin with which it ends.
#[derive(Debug)]
pub(super) struct ZeroTail {
    /// Of what is before them.
    hasher: blake3::Hasher,
    given: u64,
    filled: u64,
    /// Bytes from here on are not looked at.
    limit: u64,
}

impl ZeroTail {
    pub(super) fn new(limit: u64) -> Self {
        Self { hasher: blake3::Hasher::new(), given: 0, filled: 0, limit }
    }

    /// The same for the same bytes.
    pub(super) fn content(&self) -> (u64, ContentHash) {
        (self.filled, ContentHash(*self.hasher.finalize().as_bytes()))
    }
}

impl Write for ZeroTail {
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
