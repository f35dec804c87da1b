//! Which segments of a timeline are there and what is in them: the index for what is sealed, a listing for the tail.
//!
//! The index may lag: a segment that arrived late is in the store before it is in the index. So every gap in the sealed
//! part is listed before anybody is told of it. A segment that was stored although damaged counts as missing, because
//! recovery ends there. What a lineage inherits is read from its parent's index.
//!
//! The index names what was stored, and `expire` takes a segment out of it before it deletes it. So what the index names and a
//! listing does not show is lost: behind the last segment, too, it is a gap, and not the end of the archive. So is what `verify`
//! found damaged, until it has found it sound.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::future::{join, try_join, try_join_all};
use futures_util::{StreamExt, TryStreamExt, stream};
use walpoint_base::{SegmentNo, TimelineId};
use walpoint_plan::runs::{Runs, SegmentRun};
use walpoint_storage::error::{RepoError, Result};

use super::found_damaged::FoundDamaged;
use crate::index::gather::{self, SegmentSizes, Survey};
use crate::index::{GroupSummary, SegmentEntry, TimelineIndex, first_of, group_of, last_of};
use crate::wal::WalArchive;

/// Gaps that are listed again, the newest first. Older ones are believed.
const GAPS: usize = 64;

/// Gaps that are listed at the same time.
const GAPS_AT_ONCE: usize = 8;

/// A listing that begins at a guess is given up when it shows more segments than two groups have.
const AHEAD: usize = 2048;

/// Groups with gaps that are read at the same time.
const GROUPS_AT_ONCE: usize = 8;

/// Where on a timeline a reader expects what it needs. Wrong or missing it costs requests, and decides nothing.
#[derive(Clone, Copy, Default)]
pub struct Expected<'a> {
    /// The newest segment known of: what is not indexed begins about there.
    pub newest: Option<SegmentNo>,
    /// Where replay begins.
    pub start: Option<SegmentNo>,
    /// Whether replay may end in a group.
    pub may_stop: Option<&'a (dyn Fn(&GroupSummary) -> bool + Send + Sync)>,
}

/// The WAL of one timeline.
#[derive(Debug)]
pub struct TimelineWal {
    archive: WalArchive,
    index: TimelineIndex,
    /// Segments that a listing found: the tail, and what the index does not have yet.
    listed: SegmentSizes,
    /// What the headers of listed segments said, as far as they were read.
    headers: BTreeMap<SegmentNo, SegmentEntry>,
    /// Segments that are there and cannot be replayed.
    damaged: Vec<SegmentNo>,
    /// Of these, what was found damaged after it was stored, whatever index and listing say.
    found_damaged: BTreeSet<SegmentNo>,
    /// Segments that were stored and that recovery cannot have: those damaged, and those that the store has lost.
    lost: Runs,
    /// What is there, inherited segments included.
    runs: Runs,
    /// The parent's, and the last segment that is inherited from it.
    inherited: Option<(Box<TimelineWal>, SegmentNo)>,
    /// What other repositories have of the timeline, and what this one has without them; nothing if it is not read together with
    /// others.
    beside: Option<(Vec<TimelineWal>, Runs)>,
    /// What a listing showed from `surveyed` on.
    survey: Survey,
    surveyed: SegmentNo,
}

impl TimelineWal {
    /// Reads what is there: the index, a listing of the tail, a group for each one that has gaps.
    pub async fn load(archive: &WalArchive, timeline: TimelineId) -> Result<Self> {
        Self::load_near(archive, timeline, Expected::default()).await
    }

    /// The same with fewer requests that wait for one another, if what is expected is right.
    pub async fn load_near(
        archive: &WalArchive,
        timeline: TimelineId,
        expected: Expected<'_>,
    ) -> Result<Self> {
        let near = expected.newest.map(group_of);
        let ahead = survey_ahead(archive, timeline, near.map(first_of));
        let (index, ahead) = try_join(TimelineIndex::load_near(archive, timeline, near), ahead).await?;
        let unsealed = index.first_unsealed();
        let (surveyed, survey) = match ahead.filter(|(from, _)| *from <= unsealed) {
            Some(ahead) => ahead,
            None => {
                let all = (SegmentNo(u64::MAX), usize::MAX);
                (unsealed, gather::survey(archive, timeline, unsealed, all.0, all.1).await?)
            }
        };
        let mut wal = Self {
            archive: archive.clone(),
            index,
            listed: SegmentSizes::new(),
            headers: BTreeMap::new(),
            damaged: Vec::new(),
            found_damaged: BTreeSet::new(),
            lost: Runs::default(),
            runs: Runs::default(),
            inherited: None,
            beside: None,
            survey,
            surveyed,
        };
        wal.survey_what_is_newer().await?;
        wal.listed = wal.survey.listed.range(unsealed..).map(|(number, stored)| (*number, *stored)).collect();
        for (&number, &stored) in &wal.listed {
            wal.runs.insert(number, stored);
        }
        wal.note_sealed_groups().await?;
        wal.look_into_gaps().await?;
        wal.note_open_groups();
        wal.look_at_headers(&expected).await?;
        wal.inherit(timeline).await?;
        if !archive.beside().is_empty() {
            let others =
                archive.beside().iter().map(|other| Box::pin(Self::load_near(other, timeline, expected)));
            wal.join(try_join_all(others).await?);
        }
        Ok(wal)
    }

    /// What the index names counts as lost only if a listing that was taken later does not show it.
    async fn survey_what_is_newer(&mut self) -> Result<()> {
        let named = self.index.open_groups().flat_map(|group| group.iter().map(|(number, _)| number));
        let unlisted = named.filter(|number| !self.survey.listed.contains_key(number)).min();
        let Some(first) = unlisted else { return Ok(()) };
        let timeline = self.index.timeline();
        let newer = gather::survey(&self.archive, timeline, first, SegmentNo(u64::MAX), usize::MAX).await?;
        self.survey.listed.retain(|number, _| *number < first);
        self.survey.incomplete.retain(|number| *number < first);
        self.survey.listed.extend(newer.listed);
        self.survey.incomplete.extend(newer.incomplete);
        Ok(())
    }

    /// Takes over what directories say of the groups that are sealed, and reads those with gaps.
    async fn note_sealed_groups(&mut self) -> Result<()> {
        let mut uneven = Vec::new();
        for (n, summary) in self.index.sealed() {
            if summary.is_plain_run() {
                self.runs.add(SegmentRun {
                    first: summary.first,
                    last: summary.last,
                    stored: summary.stored,
                });
            } else {
                uneven.push(n);
            }
        }
        let mut damaged = Vec::new();
        for some in uneven.chunks(GROUPS_AT_ONCE) {
            let fetched = self.index.fetch(some.iter().copied()).await?;
            self.index.keep(fetched);
            for n in some {
                for (number, entry) in self.index.group(*n).await?.iter() {
                    if entry.damaged {
                        damaged.push(number);
                    } else {
                        self.runs.insert(number, entry.stored);
                    }
                }
            }
        }
        damaged.into_iter().for_each(|number| self.note_damaged(number));
        Ok(())
    }

    /// Adds what the lineage has in common with its parent.
    async fn inherit(&mut self, timeline: TimelineId) -> Result<()> {
        let Some(inherited) = self.archive.inherited() else { return Ok(()) };
        let Some(last) = inherited.last_of(timeline) else { return Ok(()) };
        let parents = Box::pin(Self::load(inherited.archive(), timeline)).await?;
        for run in parents.runs.iter().filter(|run| run.first <= last) {
            let upto = run.last.min(last);
            let stored = parents.runs.stored_within(run.first, upto);
            self.runs.add(SegmentRun { first: run.first, last: upto, stored });
        }
        self.damaged.extend(parents.damaged.iter().filter(|number| **number <= last));
        let theirs = parents.lost.iter().filter(|run| run.first <= last);
        self.lose_what_is_not_there(theirs.map(|run| SegmentRun { last: run.last.min(last), ..*run }));
        self.inherited = Some((Box::new(parents), last));
        Ok(())
    }

    /// Of all that is lost here or where WAL was taken over from, what is not there by other means stays lost.
    fn lose_what_is_not_there(&mut self, theirs: impl Iterator<Item = SegmentRun>) {
        let lost = self.lost.iter().copied().chain(theirs);
        let lost = lost.flat_map(|run| (run.first.0..=run.last.0).map(SegmentNo));
        let lost: Vec<SegmentNo> = lost.filter(|number| !self.runs.contains(*number)).collect();
        self.lost = Runs::default();
        lost.into_iter().for_each(|number| self.lost.insert(number, 0));
    }

    /// Adds what other repositories have of the same timeline.
    fn join(&mut self, others: Vec<Self>) {
        let own = self.runs.clone();
        others.iter().flat_map(|other| other.runs.iter()).for_each(|run| self.runs.add(*run));
        self.lose_what_is_not_there(others.iter().flat_map(|other| other.lost.iter()).copied());
        self.damaged.retain(|number| !self.runs.contains(*number));
        self.beside = Some((others, own));
    }

    /// Takes out what was found damaged in a repository and is not in another one that this is read with.
    pub(super) fn take_out(&mut self, found: &[FoundDamaged]) {
        let here = (self.archive.repository().id(), self.archive.lineage().id, self.index.timeline());
        let own = self.beside.as_ref().map_or(&self.runs, |(_, own)| own);
        let mut damaged = BTreeSet::new();
        for FoundDamaged { repository, wal } in found {
            if (*repository, wal.lineage, wal.timeline) != here {
                continue;
            }
            let (first, last) = wal.segments();
            for run in own.iter().filter(|run| run.first <= last && first <= run.last) {
                damaged.extend((run.first.max(first).0..=run.last.min(last).0).map(SegmentNo));
            }
        }
        if let Some((parents, last)) = &mut self.inherited {
            parents.take_out(found);
            damaged.extend(parents.found_damaged.iter().filter(|number| *number <= last));
        }
        if let Some((others, own)) = &mut self.beside {
            damaged.iter().for_each(|number| own.remove(*number));
            for other in others.iter_mut() {
                other.take_out(found);
                damaged.extend(other.found_damaged.iter());
            }
            let sound = |number: &SegmentNo| {
                own.contains(*number) || others.iter().any(|other| other.runs.contains(*number))
            };
            damaged.retain(|number| !sound(number));
        }
        damaged.iter().for_each(|number| self.note_damaged(*number));
        self.found_damaged = damaged;
    }

    /// The first segment of a range that counts as lost because it was found damaged.
    pub(crate) fn first_found_damaged(&self, first: SegmentNo, last: SegmentNo) -> Option<SegmentNo> {
        self.found_damaged.range(first..=last).next().copied()
    }

    /// Other repositories' WAL of the timeline.
    fn others(&self) -> &[Self] {
        self.beside.as_ref().map_or(&[], |(others, _)| others)
    }

    /// Whether all that is there of a range is in this repository.
    fn is_own(&self, first: SegmentNo, last: SegmentNo) -> bool {
        let within = |runs: &Runs| -> u64 {
            let parts = runs.iter().map(|run| (run.first.max(first), run.last.min(last)));
            parts.filter(|(first, last)| first <= last).map(|(first, last)| last.0 - first.0 + 1).sum()
        };
        self.beside.as_ref().is_none_or(|(_, own)| within(own) == within(&self.runs))
    }

    /// The segments that can be replayed.
    pub fn runs(&self) -> &Runs {
        &self.runs
    }

    /// Takes a segment out: the store has lost it, whatever the index says.
    pub(crate) fn lose(&mut self, number: SegmentNo) {
        self.runs.remove(number);
        self.lost.insert(number, 0);
    }

    /// Puts a segment in: the store has it, whatever an earlier listing showed.
    pub(crate) fn find(&mut self, number: SegmentNo, stored: u64) {
        // That it is there is known: what it holds was found damaged.
        if self.found_damaged.contains(&number) {
            return;
        }
        self.lost.remove(number);
        self.runs.insert(number, stored);
        self.listed.insert(number, stored);
    }

    /// Takes out of `missing` what the store itself was seen to have.
    pub(crate) fn take_seen(&self, missing: &mut BTreeSet<SegmentNo>) {
        missing.retain(|number| *number < self.surveyed || !self.survey.listed.contains_key(number));
        self.others().iter().for_each(|other| other.take_seen(missing));
    }

    /// Whether there is an incomplete copy of a segment, if a listing showed that.
    pub(crate) fn has_incomplete(&self, number: SegmentNo) -> Option<bool> {
        let others: Vec<Option<bool>> =
            self.others().iter().map(|other| other.has_incomplete(number)).collect();
        if others.contains(&Some(true)) {
            return Some(true);
        }
        if others.contains(&None) {
            return None;
        }
        let is_own = self.inherited.as_ref().is_none_or(|(_, last)| number > *last);
        (is_own && number >= self.surveyed).then(|| self.survey.incomplete.contains(&number))
    }

    /// Whether anything of a segment, or of one behind it, is there or was: what recovery cannot have counts, as the archive does not end
    /// before it.
    pub fn reaches(&self, number: SegmentNo) -> bool {
        let last = self.runs.last().max(self.lost.last());
        last.is_some_and(|last| last >= number) || self.incomplete().any(|other| other >= number)
    }

    /// The segments of which a listing showed an incomplete copy.
    pub(crate) fn incomplete(&self) -> impl Iterator<Item = SegmentNo> + '_ {
        let others = self.others().iter().flat_map(|other| other.survey.incomplete.iter());
        self.survey.incomplete.iter().chain(others).copied()
    }

    /// The segments that were stored and that recovery cannot have: damaged, or gone from the store.
    pub fn lost(&self) -> &Runs {
        &self.lost
    }

    /// Segments that were stored though damaged, those whose headers are damaged in the store, and those that were found damaged.
    pub fn damaged(&self) -> &[SegmentNo] {
        &self.damaged
    }

    /// Index objects that could not be read, for people.
    pub fn problems(&self) -> Vec<String> {
        let parents = self.inherited.as_ref().map(|(parents, _)| parents.problems()).unwrap_or_default();
        let others = self.others().iter().flat_map(Self::problems).collect();
        [self.index.problems().to_vec(), parents, others].concat()
    }

    /// What is known of all of a group without reading anything; `None` if that is not enough.
    pub fn summary(&self, n: u64) -> Option<GroupSummary> {
        if !self.is_own(first_of(n), last_of(n)) {
            return None;
        }
        let within = || self.listed.range(first_of(n)..=last_of(n));
        if let Some((parents, last)) = &self.inherited
            && first_of(n) <= *last
        {
            let own = self.index.summary(n).is_some() || within().next().is_some();
            return parents.summary(n).filter(|_| !own && last_of(n) <= *last);
        }
        if let Some(summary) = self.index.summary(n) {
            return within().next().is_none().then_some(*summary);
        }
        let known = within().map(|(number, _)| Some((*number, self.headers.get(number)?)));
        let known: Option<Vec<_>> = known.collect();
        GroupSummary::of(0, known?.into_iter())
    }

    /// What the segments from `first` to `last`, which are of one group, say about themselves. Reads the group, and the
    /// headers of what the index does not have.
    pub async fn entries(
        &mut self,
        first: SegmentNo,
        last: SegmentNo,
    ) -> Result<BTreeMap<SegmentNo, SegmentEntry>> {
        let group = self.index.group(group_of(first)).await?;
        let indexed = group.iter().filter(|(n, _)| (first..=last).contains(n));
        let mut entries = match &mut self.inherited {
            Some((parents, common)) if first <= *common => {
                Box::pin(parents.entries(first, last.min(*common))).await?
            }
            _ => BTreeMap::new(),
        };
        entries.extend(indexed.map(|(n, e)| (n, *e)));
        let unread = self.listed.range(first..=last).filter(|(n, _)| !self.headers.contains_key(n));
        let unread: Vec<(SegmentNo, u64)> = unread.map(|(n, stored)| (*n, *stored)).collect();
        let read = gather::entries(&self.archive, self.index.timeline(), unread).await?;
        self.headers.extend(read);
        entries.extend(self.headers.range(first..=last).map(|(n, e)| (*n, *e)));
        if !self.is_own(first, last)
            && let Some((others, own)) = &mut self.beside
        {
            entries.retain(|number, _| own.contains(*number));
            for other in others {
                for (number, entry) in Box::pin(other.entries(first, last)).await? {
                    entries.entry(number).or_insert(entry);
                }
            }
        }
        entries.retain(|number, _| self.runs.contains(*number));
        Ok(entries)
    }

    /// What arrived late is in the store though the index does not have it.
    async fn look_into_gaps(&mut self) -> Result<()> {
        let runs: Vec<SegmentRun> = self.runs.iter().copied().collect();
        let gaps = runs.windows(2).filter_map(|pair| match pair {
            [before, after] => Some((before.last.next(), SegmentNo(after.first.0.saturating_sub(1)))),
            _ => None,
        });
        let sealed = self.index.first_unsealed();
        let gaps: Vec<_> = gaps.filter(|(first, _)| *first < sealed).collect();
        let timeline = self.index.timeline();
        let archive = &self.archive;
        let lists = gaps.into_iter().rev().take(GAPS).map(|(first, last)| async move {
            gather::list(archive, timeline, first, last, usize::MAX).await
        });
        let lists: Vec<_> =
            stream::iter(lists.collect::<Vec<_>>()).buffered(GAPS_AT_ONCE).try_collect().await?;
        for (number, stored) in lists.into_iter().flat_map(|(listed, _)| listed) {
            if !self.damaged.contains(&number) && !self.listed.contains_key(&number) {
                self.listed.insert(number, stored);
                self.runs.insert(number, stored);
            }
        }
        Ok(())
    }

    /// Takes over what the open groups say about listed segments. What they name and the listing, which was taken after they
    /// were read, does not show is lost.
    fn note_open_groups(&mut self) {
        let (mut damaged, mut lost) = (Vec::new(), Vec::new());
        for group in self.index.open_groups() {
            for (number, entry) in group.iter() {
                if !self.listed.contains_key(&number) {
                    lost.push(number);
                    continue;
                }
                self.headers.insert(number, *entry);
                damaged.extend(entry.damaged.then_some(number));
            }
        }
        lost.into_iter().for_each(|number| self.lose(number));
        damaged.into_iter().for_each(|number| self.note_damaged(number));
    }

    /// Reads the headers of listed segments that no index object has: any of them may have been stored though damaged. At the
    /// same time the group in which replay begins, of which only a part will be needed, and the one in which it may end.
    async fn look_at_headers(&mut self, expected: &Expected<'_>) -> Result<()> {
        let unread = self.listed.iter().filter(|(number, _)| !self.headers.contains_key(number));
        let unread: Vec<(SegmentNo, u64)> = unread.map(|(number, stored)| (*number, *stored)).collect();
        let timeline = self.index.timeline();
        let headers = gather::entries(&self.archive, timeline, unread.iter().copied());
        let (read, fetched) = join(headers, self.index.fetch(self.groups_on_the_way(expected))).await;
        self.index.keep(fetched?);
        let (read, unreadable) = match read {
            Err(RepoError::Corrupt { .. }) => self.readable_headers(&unread).await?,
            read => (read?, Vec::new()),
        };
        for number in &unreadable {
            self.listed.remove(number);
        }
        let accepted = read.iter().filter(|(_, entry)| entry.damaged).map(|(number, _)| *number);
        let damaged: Vec<SegmentNo> = accepted.chain(unreadable).collect();
        self.headers.extend(read);
        damaged.into_iter().for_each(|number| self.note_damaged(number));
        Ok(())
    }

    fn groups_on_the_way(&self, expected: &Expected<'_>) -> BTreeSet<u64> {
        let Some(start) = expected.start else { return BTreeSet::new() };
        let first = group_of(start);
        let partly = (first_of(first) < start).then_some(first);
        let last = expected.may_stop.and_then(|may_stop| {
            let mut behind = self.index.sealed().filter(|(n, _)| *n > first);
            behind.find(|(_, summary)| may_stop(summary)).map(|(n, _)| n)
        });
        partly.into_iter().chain(last).collect()
    }

    /// The headers that can be read, and the segments whose headers are damaged.
    async fn readable_headers(
        &self,
        unread: &[(SegmentNo, u64)],
    ) -> Result<(BTreeMap<SegmentNo, SegmentEntry>, Vec<SegmentNo>)> {
        let (mut readable, mut unreadable) = (BTreeMap::new(), Vec::new());
        for &one in unread {
            match gather::entries(&self.archive, self.index.timeline(), [one]).await {
                Ok(read) => readable.extend(read),
                Err(RepoError::Corrupt { .. }) => unreadable.push(one.0),
                Err(error) => return Err(error),
            }
        }
        Ok((readable, unreadable))
    }

    fn note_damaged(&mut self, number: SegmentNo) {
        self.lose(number);
        self.damaged.push(number);
    }
}

/// Lists a timeline from a guess on; nothing if there is none, or so much that most of it is sealed.
async fn survey_ahead(
    archive: &WalArchive,
    timeline: TimelineId,
    from: Option<SegmentNo>,
) -> Result<Option<(SegmentNo, Survey)>> {
    let Some(from) = from else { return Ok(None) };
    let survey = gather::survey(archive, timeline, from, SegmentNo(u64::MAX), AHEAD).await?;
    Ok((!survey.cut).then_some((from, survey)))
}
