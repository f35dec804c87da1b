//! A lineage that is split off from another one: for a copy that goes its own way, or a cluster that begins anew.
//!
//! It has in common with the one that the data directory archived to so far what lies before the newest WAL that both have.
//! A directory that has a lineage of its own already gets another one only where another server's WAL is in that, or the
//! person insists.

use std::path::Path;

use anyhow::{Context, bail};
use walpoint_base::{Lsn, SegmentName};
use walpoint_pg::control::{ClusterState, ControlFile};
use walpoint_repo::Repository;
use walpoint_repo::lineage::{BINDING, LineageUid, ParentLineage};

use crate::binding;
use crate::init::config::ConfigurationPlan;
use crate::wal::control::recovers;
use crate::wal::identity::{self, Evidence};
use crate::wal::target::TargetError;
use crate::wal::{check, comparison, lineage};

/// What a new lineage has in common in all repositories.
pub(super) struct CommonBeginning {
    pub(super) life: LineageUid,
    pub(super) began: Option<Lsn>,
}

/// Whether the server of a data directory writes WAL of its own, or did last.
pub(super) fn writes(pgdata: &Path, control: &ControlFile) -> bool {
    let follows = ["standby.signal", "recovery.signal"].iter().any(|signal| pgdata.join(signal).exists());
    !follows && matches!(control.state, ClusterState::InProduction | ClusterState::ShutDown)
}

/// A position up to which the WAL of a data directory may be another server's as well: the end of the newest segment that it
/// has begun. `None` of a server that follows another one still.
pub(super) fn began(pgdata: &Path, control: &ControlFile) -> Option<Lsn> {
    if !writes(pgdata, control) {
        return None;
    }
    let (wal, size) = (pgdata.join("pg_wal"), control.wal_segment_size);
    let mut newest = None;
    for entry in std::fs::read_dir(&wal).ok()? {
        let Some(Ok(name)) = entry.ok()?.file_name().to_str().map(str::parse::<SegmentName>) else {
            continue;
        };
        let Some(number) = name.number(size).filter(|number| Some(*number) > newest) else { continue };
        if comparison::has_begun(&wal.join(name.to_string()), number, size) {
            newest = Some(number);
        }
    }
    newest.map(|newest| newest.end(size))
}

/// What a new lineage can be restored from until it has a backup of its own.
pub(super) fn begins(parent: &ParentLineage) -> String {
    let lineage = parent.lineage;
    match parent.fork {
        Some(fork) => format!(
            "It has no backup of its own: a restore begins with a backup of lineage {lineage} from before {} on timeline {}, if \
             there is one",
            fork.lsn, fork.timeline
        ),
        None => format!(
            "Nothing in pg_wal is also in lineage {lineage}, so the new lineage has nothing of it, and nothing can be restored \
             before its first backup"
        ),
    }
}

/// What a lineage is split off from: the one that the data directory archived to so far, up to the newest WAL that both have.
pub(super) async fn parent(
    repository: &Repository,
    plan: &ConfigurationPlan,
    control: &ControlFile,
    begun: Option<&CommonBeginning>,
) -> anyhow::Result<Option<ParentLineage>> {
    let pgdata = plan.pgdata().map_err(|failure| failure.error)?;
    let lineage = match lineage::of_directory(repository, &plan.cluster, pgdata).await {
        // Its WAL shows none, or another server's in each: what it has in common with the first one is looked for.
        Err(error) if error.is::<TargetError>() => {
            repository.lineage_for(&plan.cluster, control.system_id).await?
        }
        lineage => lineage?,
    };
    let Some(lineage) = lineage else { return Ok(None) };
    let timeline = control.newest_timeline();
    let (archive, wal) = (repository.wal(&lineage), pgdata.join("pg_wal"));
    let fork = match timeline {
        Some(timeline) => identity::fork(&archive, &check::identity(control), &wal, timeline).await?,
        None => None,
    };
    let (began, life) = (begun.and_then(|begun| begun.began), begun.map(|begun| begun.life));
    Ok(Some(ParentLineage { lineage: lineage.id, fork, began, life }))
}

/// Refuses another new lineage for a data directory that has one already, unless another server's WAL is in one of them.
pub(super) async fn no_second(
    repositories: &[Repository],
    plan: &ConfigurationPlan,
    control: &ControlFile,
) -> anyhow::Result<()> {
    let pgdata = plan.pgdata().map_err(|failure| failure.error)?;
    let path = pgdata.join(BINDING);
    let mut bound_to = Vec::new();
    for repository in repositories {
        let bound = binding::read(pgdata, &plan.cluster, repository.id())
            .await
            .with_context(|| path.display().to_string())?;
        let Some(bound) = bound.filter(|bound| bound.system_id == control.system_id) else { continue };
        let lineage = repository.read_lineage(&plan.cluster, bound).await?;
        let Some((lineage, timeline)) = lineage.zip(control.newest_timeline()) else { continue };
        let (archive, wal) = (repository.wal(&lineage), pgdata.join("pg_wal"));
        let compared = identity::compare(&archive, &check::identity(control), &wal, timeline).await?;
        if matches!(compared, Evidence::Other(_)) {
            return Ok(());
        }
        bound_to.push(format!(
            "lineage {bound} in repository {}, made at {}",
            repository.name(),
            lineage.created
        ));
    }
    if bound_to.is_empty() {
        if recovers(pgdata, control) {
            bail!(
                "{} is a standby's data directory, or one that recovers: a new lineage is its primary's, and nothing was changed\nHINT: \
                 Run this on the primary. The standby's daemon finds that lineage by itself. A copy that is to be archived by itself is \
                 promoted first.",
                pgdata.display()
            );
        }
        return Ok(());
    }
    bail!(
        "{} binds this data directory already to {}, and no WAL of another server was found there: --new-lineage would begin \
         one more lineage, and nothing was changed\nHINT: Waiting WAL is archived there by itself. If the daemon refuses it \
         as another server's, or this directory is a copy that is to be archived by itself, add --even-if-bound.",
        path.display(),
        bound_to.join(" and ")
    )
}
