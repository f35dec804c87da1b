//! Which of several incomplete copies of a segment is read where one is wanted: `.partial` files, what came under the
//! complete name and ended early, and what was streamed of it.
//!
//! Promotions leave their parent's last segment each with what they had of it, and zeros behind the last record that is
//! complete; a dead primary's last segment is stored so, too. So those of one server's history agree as far as both go, and the
//! longest holds what the others hold. Copies that contradict each other come from two servers. Then younger timelines decide, which
//! left the timeline in that segment: their first segment begins with what they took over, so a copy that differs before the switch
//! point is not the one that they come from, and what lies behind the last switch point is not read. Where that does not decide,
//! none is believed, and a person is asked. The copies of several repositories that are read as one archive are compared the same way:
//! a repository that has only one of two copies does not decide between them.

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
    One(Surveyed),
    /// None can be read.
    Unreadable,
    /// None is believed: these contradict each other.
    Contradicting(Vec<String>),
    /// None is believed, for this reason: a damaged one may contradict the one that can be read.
    Doubtful(String),
}

/// The incomplete copies of a segment, read as far as they can be.
#[derive(Default)]
pub(crate) struct CopySurvey {
    /// The one that is read.
    pub(crate) read: Option<Surveyed>,
    /// Those that contradict each other, for people, if none is read because of that.
    pub(crate) contradicting: Vec<String>,
    /// Those that can be read, or a part of them.
    readable: Vec<Surveyed>,
    /// Those that are damaged.
    pub(crate) damaged: Vec<Surveyed>,
    /// Those that were put together from slices.
    pub(crate) sliced: Vec<Surveyed>,
    /// Why there may be others.
    pub(crate) unreached: Option<String>,
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
        async move { Ok(self.read_longest(segment).await?.0) }.boxed()
    }

    /// The same, and what is damaged in other repositories than the one that it is read from.
    pub(super) async fn read_longest(
        &self,
        segment: SegmentName,
    ) -> Result<(Option<WalReader>, Vec<String>)> {
        let CopySurvey { read, damaged, contradicting, .. } = self.read_and_damaged(segment).await?;
        if !contradicting.is_empty() {
            let key = self.paths().file(WalFileName::Partial(segment));
            return Err(RepoError::corrupt(&key, contradiction(&contradicting)));
        }
        let Some(read) = read else {
            let ask = move |archive: Self| async move { archive.read_incomplete_here(segment).await }.boxed();
            return Ok((self.first_sound(ask, |_| true).await?, Vec::new()));
        };
        let elsewhere = damaged.iter().filter(|copy| copy.is_elsewhere(&read));
        let fault =
            |copy: &Surveyed| Some(format!("repository \"{}\": {}", copy.repository(), copy.fault()?));
        let faults = elsewhere.filter_map(fault).collect();
        Ok((read.open().await?, faults))
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

    /// The copies of a segment, here and beside, that contradict each other, so that none of them is read; empty if one is.
    pub async fn contradicting_copies(&self, segment: SegmentName) -> Result<Vec<String>> {
        Ok(self.read_and_damaged(segment).await?.contradicting)
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
    pub(crate) async fn read_and_damaged(&self, segment: SegmentName) -> Result<CopySurvey> {
        let ask = move |archive: Self| async move { archive.survey_here(segment).await }.boxed();
        let answers = self.ask_all(ask).await?;
        let mut all = CopySurvey { unreached: answers.unreached, ..CopySurvey::default() };
        for one in answers.given {
            let longer = |copy: &Surveyed| all.read.as_ref().is_none_or(|read| read.filled() < copy.filled());
            if let Some(read) = one.read.filter(longer) {
                all.read = Some(read);
            }
            if all.contradicting.is_empty() {
                all.contradicting = one.contradicting;
            }
            all.readable.extend(one.readable);
            all.damaged.extend(one.damaged);
            all.sliced.extend(one.sliced);
        }
        if !self.beside().is_empty() {
            self.decide_between(segment, &mut all).await?;
        }
        Ok(all)
    }

    /// Compares the copies of several archives. Where they contradict each other, in one archive or across them, none is read unless
    /// younger timelines decide.
    async fn decide_between(&self, segment: SegmentName, all: &mut CopySurvey) -> Result<()> {
        // The first archive's is the last one of those that hold the same.
        let mut read: Vec<&Surveyed> = all.readable.iter().rev().collect();
        read.sort_by_key(|copy| copy.filled());
        let agree = read.is_empty() || longest_of(&read, u64::MAX).await?.is_some();
        if agree && all.contradicting.is_empty() {
            return Ok(());
        }
        let decided = self.longest_of_heirs(segment, &read).await?;
        if decided.is_some() {
            all.contradicting.clear();
        } else if !agree {
            all.contradicting = names(&read);
        }
        all.read = decided;
        Ok(())
    }

    async fn survey_here(&self, segment: SegmentName) -> Result<CopySurvey> {
        let copies = self.incomplete_copies(segment).await?;
        let surveyed = self.look_into_all(segment, &copies).await?;
        let (read, contradicting) = match self.choice(segment, &surveyed).await? {
            Choice::One(copy) => (Some(copy), Vec::new()),
            Choice::Contradicting(copies) => (None, copies),
            Choice::Unreadable | Choice::Doubtful(_) => (None, Vec::new()),
        };
        let sliced = surveyed.iter().filter(|one| one.copy() == SegmentCopy::Sliced).cloned().collect();
        let readable = surveyed.iter().filter(|one| one.is_readable()).cloned().collect();
        let damaged = surveyed.into_iter().filter(|one| one.fault().is_some()).collect();
        Ok(CopySurvey { read, contradicting, readable, damaged, sliced, unreached: None })
    }

    /// Reads copies as far as they can be. One that is gone was deleted since: the others may do.
    async fn look_into_all(&self, segment: SegmentName, copies: &[SegmentCopy]) -> Result<Vec<Surveyed>> {
        let mut surveyed = Vec::new();
        for &copy in copies {
            surveyed.extend(self.look_into(segment, copy).await?);
        }
        Ok(surveyed)
    }

    /// What is wrong with a copy of a segment that holds more than one that goes to `until`, or may: a copy says in its name where it
    /// ended, and so do slices; a `.partial` file does not, and of what cannot be reached nothing is known. Of those that contradict each
    /// other none is known to be the one that counts.
    pub async fn damaged_copy_beyond(
        &self,
        segment: SegmentName,
        until: Option<Lsn>,
    ) -> Result<Option<String>> {
        let list = move |archive: Self| async move { archive.incomplete_copies(segment).await }.boxed();
        let listed = self.ask_all(list).await?;
        if listed.unreached.is_some() {
            return Ok(listed.unreached);
        }
        // Of any other one that is damaged nothing is read.
        if matches!(listed.given.concat()[..], [] | [SegmentCopy::Partial(_) | SegmentCopy::Ended(..)]) {
            return Ok(None);
        }
        let CopySurvey { read, contradicting, damaged, unreached, .. } =
            self.read_and_damaged(segment).await?;
        if !contradicting.is_empty() {
            return Ok(Some(contradiction(&contradicting)));
        }
        if unreached.is_some() {
            return Ok(unreached);
        }
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
        let surveyed = self.look_into_all(segment, copies).await?;
        match self.choice(segment, &surveyed).await? {
            Choice::One(copy) => Ok(copy.copy()),
            // Reading the first one tells what is wrong with all.
            Choice::Unreadable => Ok(first),
            Choice::Contradicting(copies) => none(contradiction(&copies)),
            Choice::Doubtful(what) => none(what),
        }
    }

    async fn choice(&self, segment: SegmentName, surveyed: &[Surveyed]) -> Result<Choice> {
        let mut read: Vec<&Surveyed> = surveyed.iter().filter(|one| one.is_readable()).collect();
        read.sort_by_key(|one| (one.filled(), one.copy()));
        if read.is_empty() {
            return Ok(Choice::Unreadable);
        }
        let refused = match longest_of(&read, u64::MAX).await? {
            Some(longest) => match beside_damaged(longest, surveyed).await? {
                None => return Ok(Choice::One(longest.clone())),
                Some(refused) => refused,
            },
            None => Choice::Contradicting(names(&read)),
        };
        Ok(self.longest_of_heirs(segment, &read).await?.map_or(refused, Choice::One))
    }

    /// The longest of the copies, which are sorted by how much is filled, that agree with what younger timelines took over of them; of
    /// these bytes no more may be wanted than up to the last switch point. `None` if no younger timeline has any of it, or if none agrees:
    /// then none is read.
    async fn longest_of_heirs(&self, segment: SegmentName, read: &[&Surveyed]) -> Result<Option<Surveyed>> {
        let ask = move |archive: Self| async move { archive.heirs(segment).await }.boxed();
        let (mut agree, mut limit) = (read.to_vec(), None);
        for (archive, heir, took) in self.ask_all(ask).await?.given.into_iter().flatten() {
            let mut kept = Vec::new();
            for copy in agree {
                let upto = copy.filled().min(took);
                let theirs = archive.extent_of(WalFileName::Segment(heir), upto).await?;
                if theirs.map(|extent| extent.content()) == Some(copy.content(upto).await?) {
                    kept.push(copy);
                }
            }
            (agree, limit) = (kept, limit.max(Some(took)));
        }
        let Some(limit) = limit else { return Ok(None) };
        Ok(longest_of(&agree, limit).await?.cloned())
    }

    /// The segments of younger timelines in this archive that begin with bytes of this one, and how many.
    async fn heirs(&self, segment: SegmentName) -> Result<Vec<(Self, SegmentName, u64)>> {
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
                heirs.push((self.clone(), heir, left.since(number.start(size))));
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
}

/// The last of these copies, which are sorted by how much is filled, if it holds what the others hold of the first `limit` bytes.
async fn longest_of<'a>(read: &[&'a Surveyed], limit: u64) -> Result<Option<&'a Surveyed>> {
    let Some((longest, others)) = read.split_last() else { return Ok(None) };
    for one in others {
        let upto = one.filled().min(limit);
        if one.content(upto).await? != longest.content(upto).await? {
            return Ok(None);
        }
    }
    Ok(Some(longest))
}

/// The objects of copies, for people; with their repositories if those are several.
fn names(copies: &[&Surveyed]) -> Vec<String> {
    let several = copies.windows(2).any(|pair| matches!(pair, [one, other] if one.is_elsewhere(other)));
    let name = |copy: &&Surveyed| match several {
        true => format!("\"{}\" in repository \"{}\"", copy.key(), copy.repository()),
        false => format!("\"{}\"", copy.key()),
    };
    copies.iter().map(name).collect()
}

/// Why none of these copies is read.
pub(crate) fn contradiction(copies: &[String]) -> String {
    format!(
        "these copies contradict each other, so two servers wrote this timeline, and which of them the others followed is not known: {}",
        copies.join(", ")
    )
}

/// Why a copy is not believed beside damaged ones; `None` if it is. They may be the copies of the server that is meant, and it
/// another server's.
async fn beside_damaged(read: &Surveyed, surveyed: &[Surveyed]) -> Result<Option<Choice>> {
    for other in surveyed.iter().filter(|one| one.fault().is_some() && one.copy() != read.copy()) {
        match read.compare(other, u64::MAX).await? {
            PrefixComparison::Same | PrefixComparison::Fits => {}
            PrefixComparison::Different => {
                return Ok(Some(Choice::Contradicting(names(&[read, other]))));
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
