//! Which of several incomplete copies of a segment is read where one is wanted: `.partial` files, what came under the
//! complete name and ended early, and what was streamed of it.
//!
//! Promotions leave their parent's last segment each with what they had of it, and zeros behind the last record that is
//! complete; a dead primary's last segment is stored so, too. So those of one server's history agree as far as both go, and the
//! longest holds what the others hold. Copies that contradict each other come from two servers. Then younger timelines decide, which
//! left the timeline in that segment: their first segment begins with what they took over, so a copy that differs before the switch
//! point is not the one that they come from, and what lies behind the last switch point is not read. Where that does not decide,
//! none is believed, and a person is asked.

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, try_join3};
use walpoint_base::{Lsn, SegmentName, WalFileName};
use walpoint_storage::error::{RepoError, Result};
use walpoint_storage::layout::NameHash;

use super::WalArchive;
use super::get::WalReader;
use super::prefix::{PrefixComparison, SegmentCopy, Surveyed, ZeroTail};

/// Which of several copies is read.
enum Choice {
    One(SegmentCopy),
    /// None can be read.
    Unreadable,
    /// None is believed: these contradict each other.
    Contradicting(Vec<String>),
    /// None is believed: a damaged one may contradict the one that can be read. Says so.
    Doubtful(String),
}

impl WalArchive {
    /// The `.partial` file of a segment that holds most; `None` if there is none. Where there are several, all are read.
    pub(super) async fn longest_partial(&self, segment: SegmentName) -> Result<Option<WalReader>> {
        let copies = self.partials(segment).await?.into_iter().map(SegmentCopy::Partial);
        self.longest(segment, copies.collect()).await
    }

    /// The incomplete copy of a segment that holds most; `None` if there is none.
    /// Where there are several, all are read.
    pub fn read_incomplete(&self, segment: SegmentName) -> BoxFuture<'_, Result<Option<WalReader>>> {
        if self.beside().is_empty() {
            return self.read_incomplete_here(segment).boxed();
        }
        let ask = move |archive: Self| async move { archive.read_incomplete_here(segment).await }.boxed();
        let longest = async move {
            match self.read_and_damaged(segment).await? {
                (Some(read), _) => read.open().await,
                (None, _) => self.first_sound(ask, |_| true).await,
            }
        };
        longest.boxed()
    }

    pub(crate) async fn read_incomplete_here(&self, segment: SegmentName) -> Result<Option<WalReader>> {
        let copies = self.incomplete_copies(segment).await?;
        match (self.longest(segment, copies).await?, self.parent_of(WalFileName::Partial(segment))) {
            (None, Some(parent)) => parent.read_incomplete(segment).await,
            (own, _) => Ok(own),
        }
    }

    async fn longest(&self, segment: SegmentName, copies: Vec<SegmentCopy>) -> Result<Option<WalReader>> {
        let chosen = match copies[..] {
            [] => return Ok(None),
            [only] => only,
            _ => self.choose(segment, &copies).await?,
        };
        self.read_copy(segment, chosen).await
    }

    /// The copies of a segment that contradict each other, so that none of them is read; empty if one is.
    pub async fn contradicting_copies(&self, segment: SegmentName) -> Result<Vec<String>> {
        for archive in self.all() {
            let copies = archive.incomplete_copies(segment).await?;
            if let Choice::Contradicting(keys) = archive.choice(segment, &copies).await? {
                return Ok(keys);
            }
        }
        Ok(Vec::new())
    }

    /// The incomplete copies of a segment, but for what is inherited. Three listings at the same time.
    pub(crate) async fn incomplete_copies(&self, segment: SegmentName) -> Result<Vec<SegmentCopy>> {
        let all = try_join3(self.partials(segment), self.ended(segment), self.has_slices(segment));
        let (partials, ended, sliced) = all.await?;
        let ended = ended.into_iter().map(|(end, hash)| SegmentCopy::Ended(end, hash));
        let sliced = sliced.then_some(SegmentCopy::Sliced);
        Ok(partials.into_iter().map(SegmentCopy::Partial).chain(ended).chain(sliced).collect())
    }

    /// The incomplete copy that is read of a segment, and those that are damaged. Nothing is read where the copies contradict each
    /// other.
    pub(crate) async fn read_and_damaged(
        &self,
        segment: SegmentName,
    ) -> Result<(Option<Surveyed>, Vec<Surveyed>)> {
        let (mut longest, mut damaged): (Option<Surveyed>, _) = (None, Vec::new());
        for archive in self.all() {
            let copies = archive.incomplete_copies(segment).await?;
            let chosen = match archive.choice(segment, &copies).await? {
                Choice::One(copy) => archive.look_into(segment, copy).await?,
                _ => None,
            };
            let longer = |one: &Surveyed| longest.as_ref().is_none_or(|other| other.filled() < one.filled());
            longest = chosen.filter(longer).or(longest);
            for copy in copies {
                let read = archive.look_into(segment, copy).await?;
                damaged.extend(read.filter(|copy| copy.fault().is_some()));
            }
        }
        Ok((longest, damaged))
    }

    /// What is wrong with a copy of a segment that holds more than one that goes to `until`, or may: a copy says in its name where it
    /// ended, and so do slices; a `.partial` file does not.
    pub async fn damaged_copy_beyond(
        &self,
        segment: SegmentName,
        until: Option<Lsn>,
    ) -> Result<Option<String>> {
        let (mut count, mut sliced) = (0, None);
        for archive in self.all() {
            let copies = archive.incomplete_copies(segment).await?;
            count += copies.len();
            sliced = Some(archive).filter(|_| copies.contains(&SegmentCopy::Sliced)).or(sliced);
        }
        if count < 2 {
            // Of any other one that is damaged nothing is read.
            let Some(archive) = sliced else { return Ok(None) };
            let assembled = archive.assemble(segment).await?;
            return Ok(assembled.and_then(|assembled| assembled.fault().map(ToString::to_string)));
        }
        let (read, damaged) = self.read_and_damaged(segment).await?;
        for copy in damaged.iter().filter(|copy| copy.may_go_beyond(until)) {
            let within = match &read {
                Some(read) => copy.is_beginning_of(read).await?,
                None => false,
            };
            if !within {
                return Ok(copy.fault().map(str::to_owned));
            }
        }
        Ok(None)
    }

    /// This archive and those beside it.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Self> {
        std::iter::once(self).chain(self.beside())
    }

    async fn choose(&self, segment: SegmentName, copies: &[SegmentCopy]) -> Result<SegmentCopy> {
        let first = copies.first().copied().unwrap_or(SegmentCopy::Partial(NameHash([0; 16])));
        let none = |what: String| Err(RepoError::corrupt(&self.key_of_copy(segment, first), what));
        match self.choice(segment, copies).await? {
            Choice::One(copy) => Ok(copy),
            // Reading the first one tells what is wrong with all.
            Choice::Unreadable => Ok(first),
            Choice::Contradicting(keys) => none(format!(
                "these copies contradict each other, so two servers wrote this timeline, and which of them the others followed is \
                 not known: {}",
                keys.join(", ")
            )),
            Choice::Doubtful(what) => none(what),
        }
    }

    async fn choice(&self, segment: SegmentName, copies: &[SegmentCopy]) -> Result<Choice> {
        let (mut read, mut damaged) = (Vec::new(), Vec::new());
        for &copy in copies {
            // One that is gone was deleted since: the others may do.
            let Some(surveyed) = self.look_into(segment, copy).await? else { continue };
            if surveyed.is_readable() {
                read.push((surveyed.filled(), copy));
            }
            if surveyed.fault().is_some() {
                damaged.push(surveyed);
            }
        }
        read.sort_unstable();
        if read.is_empty() {
            return Ok(Choice::Unreadable);
        }
        let refused = match self.longest_of(segment, &read, u64::MAX).await? {
            Some(longest) => match self.beside_damaged(segment, longest, &damaged).await? {
                None => return Ok(Choice::One(longest)),
                Some(refused) => refused,
            },
            None => Choice::Contradicting(self.keys_of(segment, &read)),
        };
        let longest = match self.agree_with_heirs(segment, &mut read).await? {
            Some(limit) => self.longest_of(segment, &read, limit).await?,
            None => None,
        };
        Ok(longest.map_or(refused, Choice::One))
    }

    /// Why a copy is not believed beside damaged ones; `None` if it is. They may be the copies of the server that is meant, and it
    /// another server's.
    async fn beside_damaged(
        &self,
        segment: SegmentName,
        copy: SegmentCopy,
        damaged: &[Surveyed],
    ) -> Result<Option<Choice>> {
        if damaged.is_empty() {
            return Ok(None);
        }
        let Some(read) = self.look_into(segment, copy).await? else { return Ok(None) };
        for other in damaged.iter().filter(|other| !other.is(copy)) {
            match read.compare(other, u64::MAX).await? {
                PrefixComparison::Same | PrefixComparison::Fits => {}
                PrefixComparison::Different => {
                    let keys = [read.key(), other.key()].map(|key| format!("\"{key}\""));
                    return Ok(Some(Choice::Contradicting(keys.into())));
                }
                PrefixComparison::Unknown => {
                    return Ok(Some(Choice::Doubtful(format!(
                        "it is not known whether \"{}\" is the same server's, because another copy is damaged: {}",
                        read.key(),
                        other.fault().unwrap_or_default()
                    ))));
                }
            }
        }
        Ok(None)
    }

    fn keys_of(&self, segment: SegmentName, read: &[(u64, SegmentCopy)]) -> Vec<String> {
        read.iter().map(|(_, copy)| format!("\"{}\"", self.key_of_copy(segment, *copy))).collect()
    }

    /// The last of these copies, which are sorted by how much is filled, if it holds what the others hold of the first `limit` bytes.
    async fn longest_of(
        &self,
        segment: SegmentName,
        read: &[(u64, SegmentCopy)],
        limit: u64,
    ) -> Result<Option<SegmentCopy>> {
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
        read: &mut Vec<(u64, SegmentCopy)>,
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
    async fn extent_of(&self, name: WalFileName, limit: u64) -> Result<Option<ZeroTail>> {
        let reader = match self.read(name).await {
            Ok(reader) => reader,
            Err(RepoError::Corrupt { .. }) => None,
            Err(error) => return Err(error),
        };
        let Some(reader) = reader else { return Ok(None) };
        Ok(Some(reader.write_to(ZeroTail::new(limit)).await?.0))
    }

    /// How much of an incomplete copy is filled, of its first `limit` bytes.
    async fn extent(&self, segment: SegmentName, copy: SegmentCopy, limit: u64) -> Result<Option<ZeroTail>> {
        let Some(reader) = self.read_copy(segment, copy).await? else { return Ok(None) };
        Ok(Some(reader.write_to(ZeroTail::new(limit)).await?.0))
    }
}
