//! When a plan may lead into an older lineage than the newest one.
//!
//! A lineage begins where a server begins another life: with `initdb`, `pg_upgrade`, or as a copy that goes its own way. Where the
//! newest one has WAL and no backup yet, its rows cannot be brought back, and those of the older one are not what "latest" means.
//! So the older lineage is taken only where it is asked for: by name, by one of its backups, or by a target that the newest one
//! cannot have. A lineage that has no WAL is no reason to refuse: nothing was written there.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use walpoint_base::facts::PointRef;
use walpoint_base::{LineageId, Lsn, PgTimestamp, RecoveryTarget, SegmentNo, TargetTimeline, TimelineId};
use walpoint_plan::restore::facts::{Asking, ExtentQuestion, Facts};
use walpoint_plan::restore::hint::Hint;
use walpoint_plan::restore::note::Note;
use walpoint_plan::restore::path::Path;
use walpoint_plan::restore::planner::Verdict;
use walpoint_plan::restore::request::RestoreRequest;
use walpoint_plan::restore::restore_plan::RestorePlan;
use walpoint_plan::restore::unreachable::{LineageMoment, Unreachable, Why};
use walpoint_storage::error::{RepoError, Result};

use crate::catalog::{Catalog, LineageCatalog};

/// A plan in an older lineage, or the refusal because a newer one may be meant. `skipped` are the families that have no plan, the
/// newest first, each with why.
pub(super) async fn unless_newer_is_meant(
    catalog: &mut Catalog,
    request: &RestoreRequest,
    skipped: Vec<(Vec<usize>, Box<Unreachable>)>,
    mut plan: RestorePlan,
) -> Result<Verdict> {
    if request.backup.is_some() {
        return Ok(Ok(plan));
    }
    for (family, mut refused) in skipped.into_iter().rev() {
        for at in family.into_iter().rev() {
            let Some(lineage) = catalog.lineages_mut().get_mut(at) else { continue };
            let Some(newest) = last_wal(lineage, request.timeline).await? else { continue };
            let has_backup = lineage.ask(None, any_complete_backup).await?;
            match (may_have(lineage, &newest, &request.target).await?, has_backup) {
                (true, false) => {
                    return Ok(Err(Box::new(newest_without_backup(lineage, request, newest, &plan))));
                }
                // It has backups, and none of them leads there: its own refusal says more.
                (true, true) => {
                    refused.hints.push(Hint::OlderLineage { older: plan.lineage, newest: newest.lineage });
                    return Ok(Err(refused));
                }
                (false, false) => plan.notes.push(Note::NewerWithoutBackup { newest, older: plan.lineage }),
                // What it does not have, the older one may have: nothing of that is strange.
                (false, true) => {}
            }
        }
    }
    Ok(Ok(plan))
}

/// Whether anything of a lineage can be restored.
fn any_complete_backup(facts: &Facts) -> Asking<bool> {
    for &id in facts.backups.iter().rev() {
        if facts.complete_backup(id)?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The lineage of a family in which a transaction ended or a restore point was created, by the clock of its server, after a later family
/// was registered; `None` if there is none. When WAL was stored says nothing: the last segments of a server may be late.
pub(super) async fn in_use_since(
    catalog: &mut Catalog,
    family: &[usize],
    registered: Timestamp,
) -> Result<Option<LineageId>> {
    // The moment of a registration is kept in whole seconds.
    let registered =
        PgTimestamp::from_time(registered.saturating_add(SignedDuration::from_secs(1)).unwrap_or(registered));
    for at in family {
        let Some(lineage) = catalog.lineages_mut().get_mut(*at) else { continue };
        let last = last_wal(lineage, TargetTimeline::Latest).await?.and_then(|last| last.time);
        // A server that is idle may have been given a restore point: it is in use.
        if last.is_some_and(|last| last > registered) || last_point(lineage).await? > Some(registered) {
            return Ok(Some(lineage.id()));
        }
    }
    Ok(None)
}

/// The lineage of a family that has a restore point of the name that is asked for; `None` if there is none, or no name is.
pub(super) async fn has_name(
    catalog: &mut Catalog,
    family: &[usize],
    target: &RecoveryTarget,
) -> Result<Option<LineageId>> {
    let RecoveryTarget::Name(name) = target else { return Ok(None) };
    for at in family {
        let Some(lineage) = catalog.lineages_mut().get_mut(*at) else { continue };
        if lineage.ask(None, |facts| Ok(!facts.points_named(name)?.is_empty())).await? {
            return Ok(Some(lineage.id()));
        }
    }
    Ok(None)
}

/// The newest timelines whose last restore points are read.
const NEWEST: usize = 4;

/// When the last restore point of a lineage was created.
async fn last_point(lineage: &LineageCatalog) -> Result<Option<PgTimestamp>> {
    let archive = lineage.archive();
    let mut last: BTreeMap<TimelineId, PointRef> = BTreeMap::new();
    for point in archive.points().await?.points {
        if last.get(&point.timeline).is_none_or(|known| known.lsn < point.lsn) {
            last.insert(point.timeline, point);
        }
    }
    let mut latest = None;
    for point in last.into_values().rev().take(NEWEST) {
        let time = match point.time {
            None => match archive.point(&point).await {
                Ok(stored) => stored.map(|stored| stored.time),
                // What is damaged proves nothing, and keeps nothing from being restored.
                Err(RepoError::Corrupt { .. }) => None,
                Err(error) => return Err(error),
            },
            known => known,
        };
        latest = latest.max(time);
    }
    Ok(latest)
}

/// Where the WAL of a lineage ends: on the timeline that is asked for, or on the newest one that has any.
pub(super) async fn last_wal(
    lineage: &mut LineageCatalog,
    timeline: TargetTimeline,
) -> Result<Option<LineageMoment>> {
    let last = lineage.ask(None, |facts| last_in(facts, timeline)).await?;
    let (parent, created) =
        (lineage.lineage().parent.map(|parent| parent.lineage), lineage.lineage().created);
    Ok(last.map(|(timeline, until, time)| LineageMoment {
        lineage: lineage.id(),
        parent,
        created,
        timeline,
        until,
        time,
    }))
}

fn last_in(facts: &Facts, wanted: TargetTimeline) -> Asking<Option<(TimelineId, Lsn, Option<PgTimestamp>)>> {
    for timeline in facts.graph.ids().rev() {
        if matches!(wanted, TargetTimeline::Id(id) if id != timeline) {
            continue;
        }
        let Some(path) = Path::to(facts, timeline) else { continue };
        let Some(last) = facts.wal(timeline)?.iter().next_back() else { continue };
        // What the extent of the WAL is read along.
        path.coverage(last.first)?;
        let until = last.last.end(facts.segment_size);
        let extent = facts.extent(ExtentQuestion { path: timeline, first: last.first, until })?;
        return Ok(Some((timeline, until, extent.latest)));
    }
    Ok(None)
}

/// Whether a lineage whose WAL ends at `newest` may have the target.
async fn may_have(
    lineage: &mut LineageCatalog,
    newest: &LineageMoment,
    target: &RecoveryTarget,
) -> Result<bool> {
    Ok(match target {
        RecoveryTarget::Latest => true,
        // What lies before the lineage began, or behind its last transaction, only another one can have.
        RecoveryTarget::Time(time) => {
            PgTimestamp::from_time(lineage.lineage().created) <= *time
                && newest.time.is_some_and(|last| *time <= last)
        }
        RecoveryTarget::Lsn(lsn) => {
            let lsn = *lsn;
            let has = move |facts: &Facts| {
                let number = SegmentNo::of(lsn, facts.segment_size);
                Ok(facts.wal(newest.timeline)?.contains(number))
            };
            lineage.ask(None, has).await?
        }
        RecoveryTarget::Name(name) => {
            lineage.ask(None, |facts| Ok(!facts.points_named(name)?.is_empty())).await?
        }
        // A number that each server counts for itself, and the end of a backup, which only the older one has.
        RecoveryTarget::Xid(_) | RecoveryTarget::FullXid(_) | RecoveryTarget::Immediate => false,
    })
}

fn newest_without_backup(
    lineage: &LineageCatalog,
    request: &RestoreRequest,
    newest: LineageMoment,
    plan: &RestorePlan,
) -> Unreachable {
    let (id, older) = (newest.lineage, plan.lineage);
    Unreachable {
        target: request.target.clone(),
        timeline: request.timeline,
        lineage: Some(lineage.lineage().into()),
        why: Why::NewestWithoutBackup { newest: Box::new(newest), older },
        missing: Vec::new(),
        nearest: Vec::new(),
        hints: vec![Hint::TakeBackupOf(id), Hint::OlderLineage { older, newest: id }],
        segment_size: lineage.lineage().segment_size,
        youngest: None,
    }
}
