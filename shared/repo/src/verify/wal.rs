//! Every segment that is needed, read and decoded in order: hashes, the chain of records, and the records that go on from
//! one segment in the next, over the forks of timelines too.

use futures_util::{StreamExt, stream};
use walpoint_base::{BackupId, Lsn, SegmentName, SegmentNo, SegmentSize, TimelineId, WalFileName};
use walpoint_plan::graph::TimelineGraph;
use walpoint_plan::retention::Candidate;
use walpoint_storage::error::{RepoError, Result};

use super::light::NeededWal;
use super::report::{Cure, FindingKind, VerifyFinding};
use super::{Run, WalCheck};
use crate::wal::{FetchedWal, WalArchive};

/// Segments that are read ahead.
const AHEAD: usize = 2;

/// Longer segments are only checked by their hashes: decoding wants them whole in memory.
pub(super) const LONGEST: u64 = 16 << 20;

impl Run<'_> {
    /// Reads what is needed of each lineage.
    pub(super) async fn wal(&mut self, needed: &[NeededWal]) -> Result<()> {
        for NeededWal { lineage, timelines } in needed {
            let archive = self.repository.wal(lineage);
            let graph = graph(&archive).await?;
            for (timeline, runs) in timelines {
                for run in runs.iter() {
                    let numbers = (run.first.0..=run.last.0).map(SegmentNo);
                    let size = lineage.segment_size;
                    // The record that crosses a fork begins in the parent's last segment.
                    let parent = graph
                        .history(*timeline)
                        .and_then(|history| history.parent())
                        .filter(|parent| SegmentNo::of(parent.switch, size) == run.first && run.first.0 > 0);
                    let before = parent.map(|parent| SegmentNo(run.first.0 - 1).name(parent.parent, size));
                    let names = before.into_iter().map(|name| (name, true));
                    let names = names.chain(numbers.map(|number| (number.name(*timeline, size), false)));
                    self.range(&archive, names.collect()).await?;
                }
            }
        }
        Ok(())
    }

    /// Consecutive segments; one that is only `before` them may be missing.
    async fn range(&mut self, archive: &WalArchive, names: Vec<(SegmentName, bool)>) -> Result<()> {
        let long = archive.lineage().segment_size.bytes() > LONGEST;
        let read = stream::iter(names).map(|(name, before)| async move {
            let file = if long {
                hashed(archive, name).await
            } else {
                archive.get(WalFileName::Segment(name)).await
            };
            (name, before, file)
        });
        let mut read = read.buffered(AHEAD);
        let mut reader = Some(self.check.wal());
        while let Some((name, before, file)) = read.next().await {
            let size = archive.lineage().segment_size.bytes();
            match file {
                Ok(Some(file)) => {
                    self.report.read_object_count += 1;
                    self.report.verified_bytes += size;
                    if !before {
                        self.note_sound(archive, name);
                    }
                    let check = reader.take().unwrap_or_else(|| self.check.wal());
                    let damaged = file.header.as_ref().is_some_and(|header| header.damaged);
                    reader = match long {
                        true => None,
                        false => self.decoded(archive, name, file, check, before || damaged).await?,
                    };
                    if damaged && !before {
                        self.bad_segment(
                            archive,
                            name,
                            FindingKind::Records,
                            "it was stored although damaged".to_owned(),
                        );
                    }
                }
                Ok(None) => {
                    reader = None;
                    if !before && self.is_needed_now(archive, name).await? {
                        self.bad_segment(
                            archive,
                            name,
                            FindingKind::Missing,
                            "it is in the index but missing".to_owned(),
                        );
                    }
                }
                // The parts of a large one are deleted with it.
                Err(error @ RepoError::Corrupt { .. }) => {
                    reader = None;
                    if !before && !self.was_deleted(archive, name).await? {
                        self.bad_segment(archive, name, FindingKind::Damaged, error.to_string());
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    async fn decoded(
        &mut self,
        archive: &WalArchive,
        name: SegmentName,
        file: FetchedWal,
        mut check: Box<dyn WalCheck>,
        quiet: bool,
    ) -> Result<Option<Box<dyn WalCheck>>> {
        let (check, result) = crate::cpu::run(move || {
            let result = check.segment(name, &file.content);
            (check, result)
        })
        .await?;
        match result {
            Ok(()) => Ok(Some(check)),
            Err(_) if is_behind_a_gap(archive, name).await? => self.alone(archive, name).await,
            Err(what) => {
                if !quiet {
                    self.bad_segment(archive, name, FindingKind::Records, what);
                }
                Ok(None)
            }
        }
    }

    /// A segment behind a gap that is on record: its records by themselves. That it does not continue the one before it is told
    /// with the chain.
    async fn alone(&mut self, archive: &WalArchive, name: SegmentName) -> Result<Option<Box<dyn WalCheck>>> {
        let Some(file) = archive.get(WalFileName::Segment(name)).await? else { return Ok(None) };
        let mut check = self.check.wal();
        let (check, result) = crate::cpu::run(move || {
            let result = check.segment(name, &file.content);
            (check, result)
        })
        .await?;
        match result {
            Ok(()) => Ok(Some(check)),
            Err(what) => {
                self.bad_segment(archive, name, FindingKind::Records, what);
                Ok(None)
            }
        }
    }

    /// A segment that recovery cannot pass.
    pub(super) fn bad_segment(
        &mut self,
        archive: &WalArchive,
        name: SegmentName,
        kind: FindingKind,
        what: String,
    ) {
        let size = archive.lineage().segment_size;
        let number = name.number(size).unwrap_or(SegmentNo(0));
        let segment = (archive.lineage().id, name.timeline, number.0);
        self.sound_wal.remove(&segment);
        if matches!(kind, FindingKind::Damaged | FindingKind::Records) {
            self.damaged_wal.insert(segment);
        }
        let affected =
            Affected::of(self.finished.iter().filter(|b| b.lineage == archive.lineage().id), name, size);
        self.report.finding(VerifyFinding {
            kind,
            object: archive.paths().segment(name).to_string(),
            what,
            backups: affected.backups.iter().map(BackupId::to_string).collect(),
            moments: Some(affected.moments(number.start(size), name.timeline)),
            remedy: Cure::ResupplyOrBackup("it"),
        });
    }

    /// A segment that was announced as damaged before is whole, unless its records say something else.
    pub(super) fn note_sound(&mut self, archive: &WalArchive, name: SegmentName) {
        let lineage = archive.lineage();
        let Some(number) = name.number(lineage.segment_size) else { return };
        let segment = (lineage.id, name.timeline, number.0);
        if self.was_announced(segment) {
            self.sound_wal.insert(segment);
        }
    }
}

/// Whom a segment that recovery cannot pass keeps from what.
struct Affected {
    /// Those that do not become consistent, or else the one from which recovery ends there.
    backups: Vec<BackupId>,
    /// Whether they do not become consistent.
    consistent: bool,
    /// The next backup that begins behind it.
    next: Option<BackupId>,
}

impl Affected {
    fn of<'a>(
        backups: impl Iterator<Item = &'a Candidate> + Clone,
        name: SegmentName,
        size: SegmentSize,
    ) -> Self {
        let number = name.number(size).unwrap_or(SegmentNo(0));
        let first = |backup: &Candidate| SegmentNo::of(backup.id.start(), size);
        let needs = |backup: &&Candidate| {
            let on_it = (backup.id.timeline()..=backup.stop_timeline).contains(&name.timeline);
            on_it && (first(backup)..=SegmentNo::before(backup.stop, size)).contains(&number)
        };
        let behind =
            backups.clone().filter(|backup| backup.id.timeline() == name.timeline && first(backup) > number);
        let next = behind.min_by_key(|backup| backup.id.start()).map(|backup| backup.id);
        let broken: Vec<BackupId> = backups.clone().filter(needs).map(|backup| backup.id).collect();
        if !broken.is_empty() {
            return Self { backups: broken, consistent: false, next };
        }
        let before =
            backups.filter(|backup| backup.id.timeline() <= name.timeline && first(backup) <= number);
        let last = before.max_by_key(|backup| backup.id.start()).map(|backup| backup.id);
        Self { backups: last.into_iter().collect(), consistent: true, next }
    }

    fn moments(&self, start: Lsn, timeline: TimelineId) -> String {
        let upto = self.next.map_or("the end of the archive".to_owned(), |id| format!("backup {id}"));
        let moments = format!("from {start} up to {upto} on timeline {timeline}");
        match self.consistent {
            true => moments,
            false => format!("{moments}; these backups do not become consistent without it"),
        }
    }
}

async fn is_behind_a_gap(archive: &WalArchive, name: SegmentName) -> Result<bool> {
    match archive.recorded_gap(name).await {
        Ok(gap) => Ok(gap.is_some()),
        Err(RepoError::Corrupt { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Reads a long segment a part at a time.
pub(super) async fn hashed(archive: &WalArchive, name: SegmentName) -> Result<Option<FetchedWal>> {
    let Some(mut reader) = archive.read(WalFileName::Segment(name)).await? else { return Ok(None) };
    let mut buffer = Vec::new();
    while !reader.is_done() {
        buffer = reader.next_part(buffer).await?;
    }
    Ok(Some(FetchedWal { header: reader.header().cloned(), content: Vec::new() }))
}

async fn graph(archive: &WalArchive) -> Result<TimelineGraph> {
    let mut graph = TimelineGraph::default();
    let timelines: Vec<TimelineId> = archive.histories().await?;
    for timeline in timelines {
        match archive.history(timeline).await {
            Ok(history) => history.into_iter().for_each(|history| graph.add(history)),
            // It was told with the catalog's problems.
            Err(RepoError::Corrupt { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(graph)
}
