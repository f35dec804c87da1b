//! What to offer when a target cannot be reached.

use std::cmp::Reverse;

use walpoint_base::facts::PointRef;
use walpoint_base::{Lsn, RecoveryTarget, SegmentNo, TargetTimeline, TimelineId};

use super::facts::{Asking, BackupState, Doubt};
use super::path::{Path, SegmentRange};
use super::planner::{Planner, Refusal};
use super::points;
use super::unreachable::{Moment, Unreachable, Why};
use super::windows::{self, Window};

/// How many other timelines are searched for the target's moment.
const OTHER_TIMELINES: usize = 8;

/// How many restore points are named, the newest ones.
const KNOWN_POINTS: usize = 20;

/// How many backups that cannot be used are named, the newest first.
const UNUSABLE_BACKUPS: usize = 5;

impl Planner<'_> {
    /// The refusal with everything that helps.
    pub(super) fn explain(&self, refusal: Refusal) -> Asking<Unreachable> {
        let windows = match refusal.path {
            Some(timeline) => windows::on_path(self.facts, timeline)?,
            None => Vec::new(),
        };
        let nearest = self.nearest(&refusal, &windows)?;
        let hints = self.hints(&refusal)?;
        Ok(Unreachable {
            target: self.request.target.clone(),
            timeline: self.request.timeline,
            lineage: None,
            why: refusal.why,
            missing: refusal.missing,
            nearest,
            hints,
            segment_size: self.facts.segment_size,
            youngest: None,
        })
    }

    /// The end of the last window before the target and the start of the first one after it.
    fn nearest(&self, refusal: &Refusal, windows: &[Window]) -> Asking<Vec<Moment>> {
        // The target can be reached, only which one is not said.
        if let Why::SeveralPoints(_) = refusal.why {
            return Ok(Vec::new());
        }
        let hole = match refusal.why {
            Why::MinimalWal { at, .. } => Some(at),
            _ => refusal.missing.first().map(|m| m.first.start(self.facts.segment_size)),
        };
        let before = |w: &&Window| match (&self.request.target, hole) {
            (RecoveryTarget::Time(time), _) => w.from_time.is_some_and(|t| t <= *time),
            (RecoveryTarget::Lsn(lsn), _) => w.from <= *lsn,
            (_, Some(hole)) => w.from <= hole,
            _ => true,
        };
        let mut moments = Vec::new();
        if let Some(window) = windows.iter().rev().find(before) {
            // The end of the archive was asked for and cannot be reached without naming what is there.
            let refused = matches!(
                refusal.why,
                Why::MissingWal { .. }
                    | Why::MinimalWal { .. }
                    | Why::EndsInFork { .. }
                    | Why::EndsIncomplete { .. }
                    | Why::ContradictingCopies { .. }
            );
            moments.push(self.end_of(window, refused)?);
        }
        if let Some(window) = windows.iter().find(|w| !before(w)) {
            moments.push(start_of(window));
        }
        Ok(moments)
    }

    /// Everything up to the end of a window.
    fn end_of(&self, window: &Window, named: bool) -> Asking<Moment> {
        let path = Path::to(self.facts, window.timeline);
        let last = path.map(|p| p.last_present()).transpose()?.flatten();
        let end = SegmentNo::before(window.until, self.facts.segment_size);
        let mut options = timeline_options(window.timeline);
        // The end of the archive needs no target; before a hole the last record that is there has to be named.
        if (named || last.is_some_and(|last| last > end))
            && let Some(record) = window.last_record
        {
            options.extend(["--target-lsn".to_owned(), record.to_string()]);
        }
        let lsn = window.last_record.unwrap_or(window.until);
        Ok(Moment { earlier: true, timeline: window.timeline, lsn, time: window.until_time, options })
    }

    fn hints(&self, refusal: &Refusal) -> Asking<Vec<String>> {
        let mut hints = self.remedies(refusal)?;
        if refusal.why == Why::NameNotFound {
            hints.extend(self.facts.damaged_points.iter().map(|damaged| {
                format!(
                    "A damaged list of restore points may have held it, on another timeline or where WAL is missing: {damaged}. If \
                     its time or position is known, give that."
                )
            }));
        }
        if matches!(refusal.why, Why::XidNotFound | Why::NameNotFound) && !refusal.missing.is_empty() {
            hints.push("It may be in the WAL that is missing.".to_owned());
        }
        if let (Why::XidNotFound | Why::NameNotFound, Some(path)) = (&refusal.why, refusal.path)
            && let Some(path) = Path::to(self.facts, path)
            && let Some(at) = path.minimal()?.last()
        {
            hints.push(format!(
                "It may lie behind {at}, where the server was set to wal_level = minimal: recovery cannot pass that, so what came \
                 later needs a backup taken after it."
            ));
        }
        if let (RecoveryTarget::Time(_) | RecoveryTarget::Lsn(_), Some(path)) =
            (&self.request.target, refusal.path)
        {
            let others = self.on_other_timelines(path, None)?.into_iter();
            hints
                .extend(others.map(|other| {
                    format!("Timeline {other} has that moment: add --target-timeline {other}.")
                }));
        }
        Ok(hints)
    }

    /// What helps against the reason by itself.
    fn remedies(&self, refusal: &Refusal) -> Asking<Vec<String>> {
        let mut hints = Vec::new();
        match (&refusal.why, &self.request.target) {
            (Why::UnknownTimeline(_), _) => {
                let known: Vec<String> = self.facts.graph.ids().map(|t| t.to_string()).collect();
                hints.push(format!("Known timelines: {}.", known.join(", ")));
            }
            (Why::NoBackup | Why::NoBackupOnPath { .. }, _) => {
                // Each was asked for on the way to this refusal.
                let asked = self.facts.backups.iter().rev().filter(|_| refusal.why == Why::NoBackup);
                for id in asked.take(UNUSABLE_BACKUPS) {
                    if let BackupState::Unusable(why) = self.facts.backup(*id)? {
                        hints.push(format!("Backup {id} cannot be used because it {why}."));
                    }
                }
                hints.push("Take one with \"archive-agent backup\"; WAL alone cannot be restored.".to_owned());
            }
            (Why::MissingWal { .. }, _) => {
                hints.extend(self.was_stored(&refusal.missing)?);
                hints.push(
                "If a server's pg_wal, a standby or another repository still has the missing files, archive them with \
                 \"archive-agent push\"; a .partial file is never used in place of its segment."
                    .to_owned(),
                );
            }
            (Why::MinimalWal { .. }, _) => hints.push(
                "With wal_level = minimal not everything is written to WAL, so PostgreSQL ends recovery there. What was done \
                 later can be recovered from a backup taken after it; take one now if there is none."
                    .to_owned(),
            ),
            (Why::ContradictingCopies { segment, .. }, _) => {
                hints.push(format!(
                    "If the server, a standby or another repository has the whole segment, or a younger timeline's first one, archive it \
                     with \"archive-agent push\": it decides. Else move the copies that are not of the server you mean out of the \
                     repository, by their objects. What lies before \"{segment}\" can be recovered: give an earlier target."
                ));
            }
            (Why::EndsIncomplete { damaged, .. }, _) => {
                hints.push(
                    "If the server, a standby or another repository has the whole segment, archive it with \"archive-agent push\"."
                        .to_owned(),
                );
                hints.push(match damaged {
                    Some(_) => DAMAGED_COPY.to_owned(),
                    None => "Else add --use-partial to recover to the end of the copy: restore-fetch then builds the segment from it. A \
                             target before that end needs no option."
                        .to_owned(),
                });
            }
            (Why::EndsInFork { timeline, until }, _) => {
                hints.extend(refusal.path.filter(|younger| younger > timeline).map(|younger| {
                    let size = self.facts.segment_size;
                    let first = SegmentNo::of(*until, size).name(younger, size);
                    format!(
                        "If pg_wal of timeline {younger}'s server is left, its first segment may hold what was committed since, though it \
                         is not complete: archive it with \"archive-agent push …/pg_wal/{first}\" first."
                    )
                }));
                hints.push(
                    "Add --use-partial to recover to that end: restore-fetch then builds the segment from what there is. \
                     A target before it needs no option."
                        .to_owned(),
                );
                hints.push(ARCHIVE_MORE.to_owned());
            }
            (Why::DoubtfulTimeline { timeline, doubt, instead }, _) => {
                hints.push(match doubt {
                    Doubt::Refused => format!(
                        "See \"archive-agent status\". To restore what the repository holds of one of the two, name its timeline: \
                         --target-timeline {instead}."
                    ),
                    Doubt::NoBackup => format!(
                        "See \"archive-agent status\" and \"archive-agent verify\" for what became of the backups that led to timeline \
                         {timeline}. While its server runs, take one with \"archive-agent backup\"."
                    ),
                    Doubt::Damaged(_) | Doubt::Missing => archive_history(*timeline),
                });
                hints.push(format!(
                    "To recover without timeline {timeline}: --target-timeline {instead}, and everything that was written on \
                     {timeline} is left out."
                ));
            }
            (Why::ClockSetBack { backup, .. }, _) => hints.push(format!(
                "The target's time occurred twice. --backup {backup} recovers the second time, after the clock was set back; what \
                 that backup holds was written before it."
            )),
            (Why::NoHistory(timeline), _) => hints.push(archive_history(*timeline)),
            (Why::AfterEnd { .. }, RecoveryTarget::Time(time)) => {
                if time.to_time() > self.now {
                    hints.push("The time lies ahead of this machine's clock.".to_owned());
                }
                hints.push(
                    "PostgreSQL refuses a time that no later commit or abort proves to be over. Leave the target out \
                     to recover everything that the archive holds."
                        .to_owned(),
                );
                hints.push(ARCHIVE_MORE.to_owned());
            }
            (Why::AfterEnd { .. }, _) => {
                hints.push("Leave the target out to recover everything that the archive holds.".to_owned());
                hints.push(ARCHIVE_MORE.to_owned());
            }
            (Why::SeveralPoints(points), _) => hints.extend(points::choices(points)),
            (Why::XidOfOtherEpoch(_), _) => hints.push(
                "WAL carries the lower half of a transaction's id; the epoch is told from the checkpoint before it. Check the \
                 number: select pg_current_xact_id() shows it with the epoch, logs and xmin without."
                    .to_owned(),
            ),
            (_, RecoveryTarget::Name(name)) => hints.extend(self.points_elsewhere(name, refusal.path)?),
            _ => {}
        }
        Ok(hints)
    }

    /// What is known of missing files that were stored once.
    fn was_stored(&self, missing: &[SegmentRange]) -> Asking<Option<String>> {
        for range in missing {
            let lost = self.facts.lost(range.timeline)?.and_then(|lost| lost.from(range.first));
            if let Some(run) = lost.filter(|run| run.first <= range.last) {
                let name = run.first.max(range.first).name(range.timeline, self.facts.segment_size);
                return Ok(Some(format!(
                    "{name} was in the archive: the store has lost it (was it deleted, or the repository copied in part?), or it \
                     was stored though damaged. \"archive-agent verify\" tells."
                )));
            }
        }
        Ok(None)
    }

    /// Restore points of that name that the path does not lead through; those that there are if none bears it.
    fn points_elsewhere(&self, name: &str, path: Option<TimelineId>) -> Asking<Vec<String>> {
        let mut hints = Vec::new();
        let points = self.facts.points()?;
        for &PointRef { timeline, lsn, .. } in points.iter().filter(|point| point.name == name) {
            if !path.is_some_and(|path| self.facts.graph.share(path, timeline, lsn)) {
                hints.push(format!(
                    "A restore point of that name was made on timeline {timeline} at {lsn}: add --target-timeline \
                     {timeline}."
                ));
            } else {
                hints.push(format!("It was made on timeline {timeline} at {lsn}."));
            }
        }
        if hints.is_empty() {
            hints.push(known_points(points));
        }
        Ok(hints)
    }

    /// Branches that the path does not follow and that hold the moment asked for. With `reached`, where recovery along the path
    /// stops, only those that parted from it before.
    pub(super) fn on_other_timelines(
        &self,
        path: TimelineId,
        reached: Option<Lsn>,
    ) -> Asking<Vec<TimelineId>> {
        let Some(history) = self.facts.graph.history(path) else { return Ok(Vec::new()) };
        if self.request.timeline == TargetTimeline::Current || self.request.backup.is_some() {
            return Ok(Vec::new());
        }
        let mut found = Vec::new();
        let others: Vec<TimelineId> = self.facts.graph.ids().rev().filter(|&t| t != path).collect();
        for timeline in others.into_iter().take(OTHER_TIMELINES) {
            let abandoned = history.end_of(timeline);
            let begin = || self.facts.graph.history(timeline).and_then(|other| other.begin_of(timeline));
            if reached < abandoned.or_else(begin).filter(|_| reached.is_some()) {
                continue;
            }
            for window in windows::of_timeline(self.facts, timeline)? {
                // What this path shares with the other was searched already.
                if abandoned.is_some_and(|end| window.until <= end) {
                    continue;
                }
                let holds = match &self.request.target {
                    RecoveryTarget::Time(time) => {
                        window.from_time.is_some_and(|t| t <= *time)
                            && window.until_time.is_some_and(|t| *time < t)
                    }
                    RecoveryTarget::Lsn(lsn) => {
                        abandoned.is_none_or(|end| *lsn >= end)
                            && window.from <= *lsn
                            && window.last_record.is_some_and(|last| *lsn <= last)
                    }
                    _ => false,
                };
                if holds {
                    found.push(timeline);
                    break;
                }
            }
        }
        Ok(found)
    }
}

/// What the server has written since need not be lost.
const ARCHIVE_MORE: &str = "If the server still runs, select pg_switch_wal() there has the rest archived; if only its pg_wal is \
     left, \"archive-agent run --once\" does.";

fn archive_history(timeline: TimelineId) -> String {
    format!(
        "Look for {}.history in pg_wal of the server or of a standby, or in another repository, and archive it with \
         \"archive-agent push\".",
        timeline.hex()
    )
}

/// What helps where the only copy of the last segment cannot be read.
const DAMAGED_COPY: &str = "Or archive another copy of what there is of it, as a .partial file, from the dead server's pg_wal. What \
     lies before it can be recovered with a target: without one PostgreSQL would ask for the segment, and stop.";

fn timeline_options(timeline: TimelineId) -> Vec<String> {
    vec!["--target-timeline".to_owned(), timeline.to_string()]
}

/// The names that might have been meant, the newest first.
fn known_points(points: &[PointRef]) -> String {
    let mut newest: Vec<&PointRef> = points.iter().collect();
    newest.sort_by_key(|point| Reverse(point.lsn));
    let mut names: Vec<&str> = Vec::new();
    for point in newest {
        if !names.contains(&point.name.as_str()) && names.len() < KNOWN_POINTS {
            names.push(&point.name);
        }
    }
    match names.is_empty() {
        true => "The archive knows no restore point; pg_create_restore_point makes one.".to_owned(),
        false => format!("The archive's restore points, the newest first: {}.", names.join(", ")),
    }
}

/// The first consistent moment of a window.
fn start_of(window: &Window) -> Moment {
    let mut options = timeline_options(window.timeline);
    options.extend(["--target-immediate".to_owned(), "--backup".to_owned(), window.oldest.to_string()]);
    Moment { earlier: false, timeline: window.timeline, lsn: window.from, time: window.from_time, options }
}
