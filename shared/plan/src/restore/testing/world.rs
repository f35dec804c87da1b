//! An invented cluster: timelines with records, files in an archive, backups. It answers the planner's questions from
//! its records, and plays PostgreSQL's recovery file by file.

use std::collections::{BTreeMap, BTreeSet};

use walpoint_base::facts::PointRef;
use walpoint_base::target::FullXid;
use walpoint_base::{
    BackupId, LineageId, Lsn, PgMajor, PgTimestamp, SegmentNo, SegmentSize, SystemId, TimelineHistory,
    TimelineId,
};

use crate::graph::TimelineGraph;
use crate::restore::*;
use crate::runs::Runs;

/// Segments of 1 MiB: the smallest that PostgreSQL has.
pub const SIZE: u64 = 1 << 20;

pub fn size() -> SegmentSize {
    SegmentSize::new(SIZE).unwrap()
}

pub fn tli(id: u32) -> TimelineId {
    TimelineId::new(id).unwrap()
}

/// Seconds after 2000-01-01.
pub fn at(seconds: i64) -> PgTimestamp {
    PgTimestamp(seconds * 1_000_000)
}

pub fn lineage() -> LineageId {
    LineageId { system_id: SystemId(7), n: 1 }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TestRecordKind {
    Commit { time: PgTimestamp, xid: u32 },
    Point(String),
    Minimal,
    Other,
}

/// A record; it belongs to the timeline it was written on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub timeline: TimelineId,
    pub start: Lsn,
    pub end: Lsn,
    pub kind: TestRecordKind,
}

#[derive(Clone, Debug, Default)]
pub struct World {
    pub graph: TimelineGraph,
    /// What was written on each timeline, also past the forks of its children.
    pub records: BTreeMap<TimelineId, Vec<Record>>,
    pub files: BTreeSet<(TimelineId, SegmentNo)>,
    /// `.partial` files, and where the last record in each ends.
    pub partials: BTreeMap<(TimelineId, SegmentNo), Lsn>,
    pub backups: Vec<BackupFacts>,
    /// Where ids of transactions begin again; without it epochs are not known.
    pub wraps: Vec<Lsn>,
    /// Where timelines begin that have no history, as far as that is proven.
    pub begins: BTreeMap<TimelineId, Lsn>,
    /// Commits that remove relations, by timeline.
    pub removals: Vec<(TimelineId, Removal)>,
}

impl World {
    pub fn history(&self, timeline: TimelineId) -> &TimelineHistory {
        self.graph.history(timeline).unwrap()
    }

    /// Every record on the path to `timeline`, in order.
    pub fn path_records(&self, timeline: TimelineId) -> Vec<&Record> {
        let history = self.history(timeline);
        let own = |r: &&Record| history.timeline_at(r.start) == r.timeline;
        history.path().flat_map(|t| self.records.get(&t).into_iter().flatten()).filter(own).collect()
    }

    pub fn backup(&mut self, timeline: u32, start: u64, end: u64, started: i64, ended: i64) -> BackupId {
        let time = at(started).to_time();
        let id = BackupId::new(time, tli(timeline), Lsn(start), u32::try_from(self.backups.len()).unwrap());
        self.backups.push(BackupFacts {
            id,
            lineage: lineage(),
            end: Lsn(end),
            end_timeline: tli(timeline),
            started: at(started),
            ended: at(ended),
            latest_commit: None,
            label: String::new(),
            bytes: 1000,
            block_bytes: 500,
            damaged_pages: 0,
            damaged_packs: 0,
            damaged_manifest: false,
            damaged_segments: 0,
        });
        id
    }

    pub fn facts(&self) -> Facts {
        let ids = self.backups.iter().map(|b| b.id).collect();
        let mut facts = Facts::new(lineage(), PgMajor::new(17).unwrap(), size(), self.graph.clone(), ids);
        for timeline in self.graph.ids() {
            let mut begun = Runs::default();
            let own = self.partials.keys().filter(|(t, _)| *t == timeline);
            own.for_each(|(_, number)| begun.insert(*number, 0));
            facts.begin_segments(timeline, begun);
        }
        facts
    }

    pub fn answer(&self, question: &Question) -> Answer {
        match question {
            Question::Wal(timeline) => {
                let mut runs = Runs::default();
                for (_, number) in self.files.iter().filter(|(t, _)| t == timeline) {
                    runs.insert(*number, 100);
                }
                Answer::Wal(runs)
            }
            Question::Backup(id) => {
                let backup = self.backups.iter().find(|b| b.id == *id).unwrap();
                Answer::Backup(BackupState::Complete(Box::new(backup.clone())))
            }
            Question::Partial(name) => {
                let number = name.number(size()).unwrap();
                Answer::Partial(self.partials.get(&(name.timeline, number)).copied())
            }
            Question::Stop(q) => Answer::Stop(self.stop(q.path, &q.rule, q.from, q.until)),
            Question::Extent(q) => {
                let first = q.first.start(size());
                let records: Vec<_> = self.path_records(q.path);
                let inside = records.iter().filter(|r| r.start >= first && r.end <= q.until);
                let latest = inside.clone().filter_map(|r| match r.kind {
                    TestRecordKind::Commit { time, .. } => Some(time),
                    _ => None,
                });
                Answer::Extent(Extent {
                    last_record: inside.clone().map(|r| r.start).max(),
                    latest: latest.max(),
                })
            }
            Question::Passed(q) => Answer::Passed(self.passed(q.path, &q.rule, q.before)),
            Question::Removal(q) => {
                let on_path =
                    |(on, r): &&(TimelineId, Removal)| self.history(q.path).timeline_at(r.lsn) == *on;
                let counts = |r: &Removal| q.after <= r.lsn && r.lsn < q.before;
                let removals = self.removals.iter().filter(on_path).map(|(_, removal)| *removal);
                Answer::Removal(removals.filter(counts).max_by_key(|removal| removal.lsn))
            }
            Question::Minimal(path) => {
                let records = self.path_records(*path).into_iter();
                Answer::Minimal(
                    records.filter(|r| r.kind == TestRecordKind::Minimal).map(|r| r.start).collect(),
                )
            }
            Question::Breaks(_) => Answer::Breaks(Vec::new()),
            Question::Begin { of, .. } => Answer::Begin(self.begins.get(of).copied()),
            Question::PointsNamed(name) => {
                let mut points: Vec<NamedPoint> = self
                    .records
                    .values()
                    .flatten()
                    .filter(|r| matches!(&r.kind, TestRecordKind::Point(own) if own == name))
                    .map(|r| NamedPoint { timeline: r.timeline, lsn: r.start, time: None })
                    .collect();
                points.sort_by_key(|point| (point.lsn, point.timeline));
                Answer::PointsNamed(points)
            }
            Question::Points => {
                let points = self.records.values().flatten().filter_map(|r| match &r.kind {
                    TestRecordKind::Point(name) => {
                        Some(PointRef { name: name.clone(), timeline: r.timeline, lsn: r.start, time: None })
                    }
                    _ => None,
                });
                Answer::Points(points.collect())
            }
        }
    }

    /// The first record by the rule among those that are there.
    pub fn stop(&self, path: TimelineId, rule: &StopRule, from: Lsn, until: Lsn) -> Option<Stop> {
        let records = self.path_records(path);
        let record = records.into_iter().find(|r| r.start >= from && r.end <= until && decides(rule, r))?;
        let (time, xid) = match record.kind {
            TestRecordKind::Commit { time, xid } => (Some(time), Some(xid)),
            _ => (None, None),
        };
        Some(Stop {
            timeline: record.timeline,
            record: record.start,
            end: record.end,
            time,
            xid,
            full_xid: xid.filter(|_| !self.wraps.is_empty()).map(|xid| {
                let epoch = self.wraps.iter().filter(|wrap| **wrap <= record.start).count() as u64;
                FullXid(epoch << 32 | u64::from(xid))
            }),
            locks: Vec::new(),
            unlocked: None,
            prepared: Vec::new(),
            drops: Vec::new(),
            removal: None,
        })
    }

    /// The latest time of a transaction that ends before a position and decides, among those whose files are there.
    pub fn passed(&self, path: TimelineId, rule: &StopRule, before: Lsn) -> Option<PgTimestamp> {
        let history = self.history(path);
        let is_there = |r: &&Record| {
            (SegmentNo::of(r.start, size()).0..=SegmentNo::before(r.end, size()).0).all(|number| {
                let number = SegmentNo(number);
                self.files.contains(&(history.timeline_at(number.end(size()) - 1), number))
            })
        };
        let before = |r: &&Record| r.end <= before && decides(rule, r);
        let times = self.path_records(path).into_iter().filter(before).filter(is_there);
        times
            .filter_map(|r| if let TestRecordKind::Commit { time, .. } = r.kind { Some(time) } else { None })
            .max()
    }

    /// Runs the planner to its end, answering what it asks.
    pub fn plan(&self, request: &RestoreRequest) -> Verdict {
        self.plan_with(self.facts(), request)
    }

    pub fn plan_with(&self, mut facts: Facts, request: &RestoreRequest) -> Verdict {
        for _ in 0..10_000 {
            match plan(&facts, request, at(1_000_000).to_time()) {
                Ok(verdict) => return verdict,
                Err(question) => {
                    let answer = self.answer(&question);
                    facts.answer(question, answer);
                }
            }
        }
        panic!("the planner asks for ever");
    }

    /// Runs any other pure question to its end.
    pub fn ask<T>(&self, pure: impl Fn(&Facts) -> Asking<T>) -> T {
        let mut facts = self.facts();
        loop {
            match pure(&facts) {
                Ok(value) => return value,
                Err(question) => {
                    let answer = self.answer(&question);
                    facts.answer(question, answer);
                }
            }
        }
    }

    /// The records of a segment that restore-fetch builds, and those before it: the source's up to the cut.
    fn built(&self, fork: &ForkSegment, number: SegmentNo) -> Vec<&Record> {
        let (source, held) = match fork.source {
            ForkSource::Segment(timeline) => {
                assert!(self.files.contains(&(timeline, number)), "the source is not there");
                (timeline, number.end(size()))
            }
            ForkSource::Partial(timeline) => (timeline, self.partials[&(timeline, number)]),
        };
        assert!(fork.cut <= held, "the source ends before the cut");
        self.path_records(source).into_iter().filter(|r| r.end <= fork.cut).collect()
    }

    /// PostgreSQL's recovery towards `timeline` from `from`, reading what the archive has: the records it reads, in
    /// order, up to and including the one that stops it, and whether one did.
    pub fn recover(
        &self,
        timeline: TimelineId,
        from: Lsn,
        rule: Option<&StopRule>,
        fork: Option<&ForkSegment>,
    ) -> (Vec<Record>, bool) {
        let path: Vec<TimelineId> = self.history(timeline).path().collect();
        let mut read: Vec<Record> = Vec::new();
        let mut current = None;
        let mut number = SegmentNo::of(from, size());
        // A record that began in the segment before and has to go on here.
        let mut open: Option<Record> = None;
        loop {
            // XLogFileReadAnyTLI: newest first, not older than what was read last, not begun after this segment.
            let file = path.iter().rev().copied().find(|&t| {
                let built = fork.is_some_and(|fork| fork.name == number.name(t, size()));
                current.is_none_or(|c| t >= c)
                    && self.history(timeline).may_be_asked(t, number, size())
                    && (built || self.files.contains(&(t, number)))
            });
            let Some(file) = file else { return (read, false) };
            current = Some(file);
            let built = fork.filter(|fork| fork.name == number.name(file, size()));
            let content = match built {
                None => self.path_records(file),
                Some(fork) => self.built(fork, number),
            };
            if let Some(record) = open.take() {
                if !content.contains(&&record) {
                    return (read, false);
                }
                let stops = rule.is_some_and(|r| decides(r, &record));
                read.push(record);
                if stops {
                    return (read, true);
                }
            }
            let here = |r: &&&Record| SegmentNo::of(r.start, size()) == number && r.start >= from;
            for &record in content.iter().filter(here) {
                // The record's back link must point to the one before it.
                let at = content.iter().position(|r| *r == record).unwrap();
                let before = at.checked_sub(1).map(|b| content[b]);
                if read.last().is_some_and(|last| Some(last) != before) {
                    return (read, false);
                }
                if built.is_some_and(|fork| record.end > fork.cut) {
                    return (read, false);
                }
                if record.end > number.end(size()) {
                    open = Some(record.clone());
                    break;
                }
                read.push(record.clone());
                if rule.is_some_and(|r| decides(r, record)) {
                    return (read, true);
                }
            }
            number = number.next();
        }
    }
}

/// PostgreSQL's stop rule for one record.
pub fn decides(rule: &StopRule, record: &Record) -> bool {
    match (rule, &record.kind) {
        (StopRule::Time { at, inclusive: true }, TestRecordKind::Commit { time, .. }) => time > at,
        (StopRule::Time { at, inclusive: false }, TestRecordKind::Commit { time, .. }) => time >= at,
        (StopRule::Lsn { at, .. }, _) => record.start >= *at,
        (StopRule::Consistent(at), _) => record.end >= *at,
        (StopRule::Xid { xid, .. }, TestRecordKind::Commit { xid: own, .. }) => own == xid,
        (StopRule::Name(name), TestRecordKind::Point(own)) => own == name,
        (StopRule::Minimal, TestRecordKind::Minimal) => true,
        _ => false,
    }
}
