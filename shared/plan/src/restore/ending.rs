//! Where a recovery ends, and what it follows there: the timeline that the last byte it replays belongs to.
//!
//! After a failover by crash that timeline's last segment may be in the archive only as `.partial`, or as the beginning of the
//! next timeline's first segment. Then the plan names a segment that `restore-fetch` builds from it: for a target before the
//! fork by itself, for the end of the old timeline only where the request allows it. The same holds for the last segment of a
//! primary that died while it was writing it, if an operator stored what there was of it. What was streamed of a last segment is the
//! timeline's own to its last record, also behind a fork: the plan ends there without an option.

use walpoint_base::{Lsn, SegmentName, SegmentNo, SegmentSize, TimelineId};

use super::facts::{Asking, BackupFacts, StopQuestion};
use super::path::{Coverage, Path, SegmentRange};
use super::planner::{Attempt, Planner, Refusal};
use super::restore_plan::{ForkSegment, ForkSource, Unfollowed};
use super::settings::StopAt;
use super::stop::StopRule;
use super::unreachable::Why;

/// What recovery follows at its end, and what it finds there.
pub(super) struct Ending {
    /// The timeline that it follows.
    pub(super) timeline: TimelineId,
    /// The timeline that the path leads to.
    pub(super) leaf: TimelineId,
    /// The files that it reads, by the names that they have in the repository.
    pub(super) wal: Vec<SegmentRange>,
    /// The segment that has to be built.
    pub(super) fork: Option<ForkSegment>,
    /// The first segment that is not there.
    pub(super) missing: SegmentNo,
    /// Whether that is not proven: later ones are, or were, or an incomplete copy of it is.
    pub(super) before_a_gap: bool,
    /// A younger timeline has bytes of this one up to this position, which recovery does not replay.
    pub(super) more_until: Option<(TimelineId, Lsn)>,
    /// The timeline that it would follow, if anything of it were there.
    pub(super) unfollowed: Option<Unfollowed>,
}

impl Ending {
    /// Along the path as it is. Where an ancestor alone has the last segment, recovery follows that: asked for under a
    /// younger name first, the segment would be missing there though later ones are not.
    fn of(path: &Path<'_>, coverage: &Coverage, until: Lsn, size: SegmentSize) -> Self {
        let last = |_: &TimelineId| SegmentNo::before(until, size) == coverage.missing;
        let by_ancestor = coverage.by_ancestor.filter(last);
        let own = coverage.by_partial.filter(|t| *t == path.timeline() && last(t));
        Self {
            timeline: by_ancestor.unwrap_or_else(|| path.timeline()),
            leaf: path.timeline(),
            wal: coverage.files_until(until, size),
            fork: own.map(|timeline| ForkSegment {
                name: coverage.missing.name(timeline, size),
                cut: coverage.until,
                source: ForkSource::Partial(timeline),
                left: false,
            }),
            missing: coverage.missing,
            before_a_gap: coverage.gap().is_some()
                || coverage.damaged.is_some()
                || own.is_none() && coverage.by_partial == Some(path.timeline()),
            more_until: None,
            unfollowed: None,
        }
    }

    /// Segments that are read and are no segments in the repository.
    pub(super) fn partials(&self) -> u64 {
        u64::from(self.fork.is_some_and(|fork| matches!(fork.source, ForkSource::Partial(_))))
    }
}

impl<'a> Planner<'a> {
    /// Everything that the archive holds.
    pub(super) fn to_the_end(
        &self,
        path: &Path<'a>,
        backup: &BackupFacts,
        coverage: &Coverage,
    ) -> Asking<Attempt> {
        if let Some(refused) = self.not_to_the_end(path, backup, coverage)? {
            return Ok(refused);
        }
        if coverage.by_partial == Some(path.timeline()) {
            return self.to_the_last_record(path, backup, coverage);
        }
        // Where the path's own timeline begins with this segment, an ancestor's file has nothing of it, and younger timelines may.
        let begins = coverage.by_ancestor.is_some()
            && coverage.until == coverage.missing.start(self.facts.segment_size);
        let left = match begins && !self.request.standby {
            true => self.left_behind(path.timeline(), coverage)?,
            false => None,
        };
        let more_until = match left {
            Some((cut, Some(ForkSource::Segment(_)))) if !self.request.use_partial => {
                Some((path.timeline(), cut))
            }
            Some(_) => return self.to_the_tip(path, backup, coverage),
            None => None,
        };
        let owner = path.history().timeline_at(coverage.until - 1);
        match coverage.by_ancestor {
            Some(_) if self.facts.wal(owner)?.contains(coverage.missing) => {
                self.along_ancestor(path, backup, coverage, owner, more_until)
            }
            None if coverage.by_partial.is_none() => self.to_the_tip(path, backup, coverage),
            // The segment of the fork has to be built, and recovery ends where its bytes end. A standby waits there, and follows
            // the younger timeline as soon as that is archived.
            _ if self.request.use_partial || self.request.standby => {
                let mut ending = self.ending(path, backup, coverage, coverage.until)?;
                ending.leaf = path.timeline();
                if self.request.standby {
                    ending.timeline = path.timeline();
                } else {
                    // No target keeps recovery from what the timeline has behind the fork.
                    ending.fork =
                        ending.fork.map(|fork| ForkSegment { left: fork.name.timeline == owner, ..fork });
                }
                let at = StopAt::Requested;
                Ok(Ok(self.build(path, backup, &ending, None, (coverage.until, at))?))
            }
            _ => {
                let why = Why::EndsInFork { timeline: owner, until: coverage.until };
                Ok(Err(Refusal::on(path.timeline(), why)))
            }
        }
    }

    /// Refused because the end of what is there is not the end of what was written, or may not be.
    fn not_to_the_end(
        &self,
        path: &Path<'a>,
        backup: &BackupFacts,
        coverage: &Coverage,
    ) -> Asking<Option<Attempt>> {
        let size = self.facts.segment_size;
        if let Some(refused) = self.not_past_minimal(path, backup.id, coverage) {
            return Ok(Some(refused));
        }
        if coverage.gap().is_some() {
            let last = path.last_present()?.max(coverage.lost).unwrap_or(coverage.missing);
            return self.missing(path, backup, coverage, last).map(Some);
        }
        if coverage.by_ancestor.is_none()
            && coverage.by_partial.is_none()
            && !path.is_left_unstreamed(coverage.missing)
            && let Some(refused) = self.contradicting(path, coverage.missing)
        {
            return Ok(Some(refused));
        }
        // A history proves that there was WAL up to its fork. Where some of that is not there, recovery would ask for it again
        // and again, because nothing proves that it never was.
        let begin = path.history().begin_of(path.timeline()).filter(|fork| *fork > coverage.until);
        // A child that left the timeline behind the segment that is missing proves that this one was written.
        let left = self.facts.graph.left_at(path.timeline()).max();
        let left = left.filter(|fork| *fork >= coverage.missing.end(size));
        if let Some(fork) = begin.or(left) {
            return self.missing(path, backup, coverage, SegmentNo::before(fork, size)).map(Some);
        }
        if coverage.damaged.is_some() && !self.request.standby {
            let segment = coverage.missing.name(path.timeline(), size);
            let damaged = coverage.damaged.clone();
            let why = Why::EndsIncomplete { segment, until: coverage.until, damaged };
            return Ok(Some(Err(Refusal::on(path.timeline(), why))));
        }
        Ok(None)
    }

    /// To where the path leaves an ancestor. Its file continues with what the path has left behind, and recovery would replay that.
    /// So it follows the ancestor and stops there. A standby must not stop: it gets no more of the file.
    fn along_ancestor(
        &self,
        path: &Path<'a>,
        backup: &BackupFacts,
        coverage: &Coverage,
        ancestor: TimelineId,
        more_until: Option<(TimelineId, Lsn)>,
    ) -> Asking<Attempt> {
        let (fork, size) = (coverage.until, self.facts.segment_size);
        let segment = coverage.missing.name(ancestor, size);
        if self.request.standby {
            let source = ForkSource::Segment(ancestor);
            let part = ForkSegment { name: segment, cut: fork, source, left: true };
            let as_it_is = Ending::of(path, coverage, fork, size);
            let ending = Ending { timeline: path.timeline(), fork: Some(part), ..as_it_is };
            return Ok(Ok(self.build(path, backup, &ending, None, (fork, StopAt::Requested))?));
        }
        let leaf = path.timeline();
        let unfollowed = Some(Unfollowed { timeline: leaf, segment, from: fork });
        let Some(path) = Path::to(self.facts, ancestor) else {
            return Ok(Err(Refusal::at_once(Why::UnknownTimeline(ancestor))));
        };
        let coverage = path.coverage(SegmentNo::of(backup.start(), size))?;
        let stop = self.facts.stop(StopQuestion {
            path: ancestor,
            rule: StopRule::Lsn { at: fork, inclusive: false },
            from: fork.max(backup.start()),
            until: coverage.until,
        })?;
        let at = stop.map_or(StopAt::Requested, |_| StopAt::Before(fork));
        let until = stop.map_or(coverage.until, |s| s.end);
        let as_it_is = Ending::of(&path, &coverage, until, size);
        let ending = Ending { more_until, leaf, unfollowed, ..as_it_is };
        Ok(Ok(self.build(&path, backup, &ending, stop, (until, at))?))
    }

    /// Refused because nothing shows which of several incomplete copies of the segment at the end is the path's. A standby goes on
    /// before it, and streams.
    pub(super) fn contradicting(&self, path: &Path<'a>, number: SegmentNo) -> Option<Attempt> {
        let size = self.facts.segment_size;
        let mut names = path.history().candidates(number, size).map(|timeline| number.name(timeline, size));
        let (segment, copies) = names.find_map(|name| self.facts.contradicting.get_key_value(&name))?;
        if self.request.standby {
            return None;
        }
        let why = Why::ContradictingCopies { segment: *segment, copies: copies.clone() };
        Some(Err(Refusal::on(path.timeline(), why)))
    }

    /// Refused because the target may lie in the segment at the end, of which no copy is believed or one that may hold more is damaged.
    pub(super) fn not_past_unread(&self, path: &Path<'a>, coverage: &Coverage) -> Option<Attempt> {
        if coverage.gap().is_some() {
            return None;
        }
        if coverage.by_ancestor.is_none()
            && coverage.by_partial.is_none()
            && let Some(refused) = self.contradicting(path, coverage.missing)
        {
            return Some(refused);
        }
        let damaged = coverage.damaged.clone().filter(|_| !self.request.standby)?;
        let segment = coverage.missing.name(path.timeline(), self.facts.segment_size);
        let why = Why::EndsIncomplete { segment, until: coverage.until, damaged: Some(damaged) };
        Some(Err(Refusal::on(path.timeline(), why)))
    }

    /// To the end of the path's own last segment, of which there is only an incomplete copy: on request, or if some of it was streamed.
    /// Recovery without it would ask for the segment again and again, because that was begun. A standby does so, and streams what comes.
    fn to_the_last_record(
        &self,
        path: &Path<'a>,
        backup: &BackupFacts,
        coverage: &Coverage,
    ) -> Asking<Attempt> {
        let size = self.facts.segment_size;
        let (timeline, start) = (path.timeline(), coverage.missing.start(size));
        let name = coverage.missing.name(timeline, size);
        let begun = path.history().begin_of(timeline).is_some_and(|begin| begin <= start);
        if self.request.standby && begun && backup.end <= start {
            let ending = Ending::of(path, coverage, start, size);
            return Ok(Ok(self.build(path, backup, &ending, None, (start, StopAt::Requested))?));
        }
        if !self.request.use_partial && !self.facts.sliced.contains(&name) {
            let why = Why::EndsIncomplete { segment: name, until: coverage.until, damaged: None };
            return Ok(Err(Refusal::on(timeline, why)));
        }
        // A younger timeline took over more than the stream had stored.
        if self.facts.graph.left_at(timeline).any(|left| left > coverage.until) {
            return self.to_the_tip(path, backup, coverage);
        }
        let source = ForkSource::Partial(timeline);
        let part = ForkSegment { name, cut: coverage.until, source, left: false };
        let ending = Ending { fork: Some(part), ..Ending::of(path, coverage, coverage.until, size) };
        Ok(Ok(self.build(path, backup, &ending, None, (coverage.until, StopAt::Requested))?))
    }

    /// To the end of what the path's own timeline has. Where a younger timeline left it in the next segment, that may go on
    /// in the younger one's file, or in a `.partial`.
    fn to_the_tip(&self, path: &Path<'a>, backup: &BackupFacts, coverage: &Coverage) -> Asking<Attempt> {
        let size = self.facts.segment_size;
        let mut ending = Ending::of(path, coverage, coverage.until, size);
        let mut until = coverage.until;
        if let Some((cut, source)) = self.left_behind(path.timeline(), coverage)? {
            let name = coverage.missing.name(path.timeline(), size);
            let (cut, source) = match self.beyond_forks(name)? {
                Some(held) => (held, Some(ForkSource::Partial(path.timeline()))),
                None => (cut, source),
            };
            match (self.request.use_partial || self.facts.sliced.contains(&name), source) {
                (true, Some(source)) => {
                    until = cut;
                    if let ForkSource::Segment(timeline) = source {
                        let number = coverage.missing;
                        ending.wal.push(SegmentRange { timeline, first: number, last: number });
                    }
                    ending.fork = Some(ForkSegment { name, cut, source, left: false });
                }
                // The younger timeline has the rest, so nothing after this segment's begin is proven to belong here.
                (false, Some(ForkSource::Segment(_))) => {
                    ending.more_until = Some((path.timeline(), cut));
                }
                (false, Some(ForkSource::Partial(_))) => {
                    let why = Why::EndsInFork { timeline: path.timeline(), until: cut };
                    return Ok(Err(Refusal::on(path.timeline(), why)));
                }
                (_, None) => return self.missing(path, backup, coverage, coverage.missing),
            }
        }
        Ok(Ok(self.build(path, backup, &ending, None, (until, StopAt::Requested))?))
    }

    /// Up to where an incomplete copy of a segment goes on behind all positions at which younger timelines left its own, if all that such
    /// copies hold was asked for.
    fn beyond_forks(&self, name: SegmentName) -> Asking<Option<Lsn>> {
        if !self.request.use_partial {
            return Ok(None);
        }
        let held = self.facts.partial(name)?;
        Ok(held.filter(|held| self.facts.graph.left_at(name.timeline).all(|left| left < *held)))
    }

    /// Where the last child left `timeline` within the segment that is missing, and what has the bytes up to there.
    pub(super) fn left_behind(
        &self,
        timeline: TimelineId,
        coverage: &Coverage,
    ) -> Asking<Option<(Lsn, Option<ForkSource>)>> {
        let size = self.facts.segment_size;
        let (number, name) = (coverage.missing, coverage.missing.name(timeline, size));
        let inside = |fork: Lsn| number.start(size) < fork && fork < number.end(size);
        let forks = self.facts.graph.children(timeline).into_iter().map(|(_, fork)| fork);
        let Some(last) = forks.filter(|fork| inside(*fork)).max() else { return Ok(None) };
        let graph = &self.facts.graph;
        for heir in graph.ids().filter(|&t| t > timeline && graph.share(t, timeline, last - 1)) {
            if self.facts.wal(heir)?.contains(number) {
                return Ok(Some((last, Some(ForkSource::Segment(heir)))));
            }
        }
        let partial = self.facts.partial(name)?.filter(|held| *held >= last);
        Ok(Some((last, partial.map(|_| ForkSource::Partial(timeline)))))
    }

    /// What recovery follows to replay the path up to `until`: the timeline that the last byte belongs to. Following a
    /// younger one, it would replay the same, and PostgreSQL would write a history in which that timeline is left before it
    /// begins; with a prepared transaction in the segment of the fork, the end of recovery would fail.
    pub(super) fn ending(
        &self,
        path: &Path<'a>,
        backup: &BackupFacts,
        coverage: &Coverage,
        until: Lsn,
    ) -> Asking<Ending> {
        let size = self.facts.segment_size;
        let as_it_is = Ending::of(path, coverage, until, size);
        let owner = path.history().timeline_at(until - 1);
        let Some(own) = Path::to(self.facts, owner).filter(|_| owner != path.timeline()) else {
            return Ok(as_it_is);
        };
        // A history that contradicts the descendant's leads elsewhere.
        if path.history().of_ancestor(owner).as_ref() != Some(own.history()) {
            return Ok(as_it_is);
        }
        let reach = own.coverage(SegmentNo::of(backup.start(), size))?;
        let number = SegmentNo::before(until, size);
        if reach.until >= until && (reach.by_partial.is_none() || number < reach.missing) {
            return Ok(Ending::of(&own, &reach, until, size));
        }
        let file = coverage.files.iter().find(|file| file.first <= number && number <= file.last);
        let source = match (file, coverage.by_partial) {
            (Some(file), _) => ForkSource::Segment(file.timeline),
            (None, Some(timeline)) => ForkSource::Partial(timeline),
            (None, None) => return Ok(as_it_is),
        };
        let cut = path.history().end_of(owner).unwrap_or(until).min(number.end(size));
        let cut = if coverage.by_partial.is_some() { cut.min(coverage.until) } else { cut };
        let fork = ForkSegment { name: number.name(owner, size), cut, source, left: false };
        Ok(Ending { timeline: owner, fork: Some(fork), ..as_it_is })
    }
}
