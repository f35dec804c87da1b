//! What the recovery will begin with, left for `restore-fetch`: the repositories by their random ids, and how far they reach.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use walpoint_base::{LineageId, RECOVERY_ORIGIN, SegmentName, durable};
use walpoint_plan::restore::{Note, RestorePlan};
use walpoint_repo::Lineage;
use walpoint_repo::lineage::{AckMember, BINDING, binding, bound_lineages, rebound};
use walpoint_repo::repository::Repository;
use walpoint_runtime::args::{CommonArgs, Selection};
use walpoint_storage::RepoError;
use walpoint_storage::object::RepositoryId;
use walpoint_storage::store::StoreSettings;

use super::owners::Owner;
use crate::plan::Planned;
use crate::wal::origin::{OriginRepository, RecoveryOrigin};

/// How long a repository is asked that the plan does not need. One that does not answer is met by the recovery itself.
const OTHERS: Duration = Duration::from_secs(10);

/// Reads what the configured repositories are, as far as they can be reached.
pub(crate) async fn read(common: &CommonArgs, planned: &Planned) -> anyhow::Result<RecoveryOrigin> {
    let selection: Selection<StoreSettings> = common.select_to_read().map_err(|failure| failure.error)?;
    let acknowledging = selection.settings.ack_set().to_vec();
    let last = planned.plan.wal.last();
    let last = last.map(|range| range.last.name(range.timeline, planned.lineage.segment_size));
    // What is inherited is no sign of the lineage itself.
    let archive = planned.repository.wal_to_read(&planned.lineage).await?;
    let last = last.filter(|last| !archive.inherits(*last));
    let own = match last.filter(|_| planned.together) {
        // It may be one of those that only another repository has.
        Some(segment) => held(&planned.repository, &planned.lineage, segment).await?,
        None => last,
    };
    let mut origin = RecoveryOrigin::new(planned.lineage.id);
    origin.served = Some((planned.repository.id(), None));
    let mut add = |found: OriginRepository| {
        if !origin.repositories.iter().any(|known| known.id == found.id) {
            origin.repositories.push(found);
        }
    };
    add(OriginRepository {
        name: planned.repository.name().to_owned(),
        id: planned.repository.id(),
        lineage: Some(planned.lineage.uid),
        acknowledges: true,
        newest: own,
    });
    for (name, settings) in &selection.repositories {
        if name == planned.repository.name() {
            continue;
        }
        match tokio::time::timeout(OTHERS, other(name, settings, planned, last)).await {
            Ok(Ok(found)) => {
                add(OriginRepository {
                    acknowledges: found.acknowledges || acknowledging.contains(name),
                    ..found
                });
            }
            Ok(Err(error)) => {
                tracing::debug!("repository \"{name}\" is not read: {}", walpoint_words::format_chain(&error))
            }
            Err(_) => tracing::debug!("repository \"{name}\" does not answer"),
        }
    }
    for member in &members(planned).await? {
        add(OriginRepository {
            name: member.name.clone(),
            id: member.repository,
            lineage: None,
            acknowledges: true,
            newest: None,
        });
    }
    Ok(origin)
}

/// The repositories that acknowledge, as the planned one knows them. Where that is damaged, the word of the others is needed at the end of
/// recovery.
async fn members(planned: &Planned) -> anyhow::Result<Vec<AckMember>> {
    match planned.repository.acknowledging(&planned.lineage).await {
        Ok(known) => Ok(known.members),
        Err(error @ RepoError::Corrupt { .. }) => {
            let (repository, told) = (planned.repository.name(), walpoint_words::error(&error));
            tracing::warn!("repository {repository}: {told}");
            Ok(Vec::new())
        }
        Err(error) => Err(error.into()),
    }
}

/// A segment, if a repository has it.
async fn held(
    repository: &Repository,
    lineage: &Lineage,
    segment: SegmentName,
) -> anyhow::Result<Option<SegmentName>> {
    let key = repository.wal(lineage).paths().segment(segment);
    Ok(repository.store().head(&key).await?.map(|_| segment))
}

async fn other(
    name: &str,
    settings: &StoreSettings,
    planned: &Planned,
    last: Option<SegmentName>,
) -> anyhow::Result<OriginRepository> {
    let repository = Repository::open(name, settings).await?;
    let lineage = repository.read_lineage(&planned.cluster, planned.lineage.id).await?;
    let lineage = lineage.with_context(|| format!("lineage {} is not in it", planned.lineage.id))?;
    if !planned.lineage.is_same_life(&lineage) {
        bail!("lineage {} is another server's in it", lineage.id);
    }
    let newest = match last {
        Some(last) => held(&repository, &lineage, last).await?,
        None => None,
    };
    let acknowledges = members(planned).await?.iter().any(|member| member.repository == repository.id());
    Ok(OriginRepository {
        name: name.to_owned(),
        id: repository.id(),
        lineage: Some(lineage.uid),
        acknowledges,
        newest,
    })
}

/// Binds a data directory to the lineage that it is restored in, where the cluster has more than one: its backup may be from
/// before the fork, and what it archives, should it ever, belongs to the lineage that was chosen. Where several servers have the target in
/// common and none was chosen, it is bound to none: its daemon stores nothing before it is known which server it is.
pub(crate) async fn bind(
    origin: &RecoveryOrigin,
    planned: &Planned,
    pgdata: &Path,
    owner: Option<Owner>,
) -> anyhow::Result<()> {
    let lineage = &planned.lineage;
    let lineages = planned.repository.lineages(&planned.cluster).await?.of(lineage.system_id());
    // One whose facts are damaged may have been split off.
    let alone = lineages.damaged.is_empty() && lineages.read.iter().all(|other| other.parent.is_none());
    if alone {
        return Ok(());
    }
    let path = pgdata.join(BINDING);
    if is_anyones(&planned.plan) {
        return unbind(&path, planned, owner);
    }
    let known = origin.repositories.iter().filter(|known| known.lineage.is_some());
    let mut lineages: BTreeMap<RepositoryId, LineageId> = known.map(|known| (known.id, lineage.id)).collect();
    // One that is away now has the server under the number that the backup's data directory was bound to.
    let before =
        std::fs::read_to_string(&path).ok().and_then(|text| bound_lineages(&text, &planned.cluster).ok());
    for (repository, bound) in before.unwrap_or_default() {
        if bound == lineage.id {
            lineages.entry(repository).or_insert(bound);
        }
    }
    let text = binding(&planned.cluster, lineages);
    durable::replace(&path, text.as_bytes(), 0o644)
        .with_context(|| format!("{} cannot be written", path.display()))?;
    if let Some(owner) = owner {
        owner.give(&path)?;
    }
    Ok(())
}

/// Whether several servers have the target of a plan in common, and none of them was chosen.
pub(super) fn is_anyones(plan: &RestorePlan) -> bool {
    plan.notes.iter().any(|note| matches!(note, Note::AlsoInLineages { .. }))
}

/// Takes out of a binding that came with the backup what it says of the cluster.
fn unbind(path: &Path, planned: &Planned, owner: Option<Owner>) -> anyhow::Result<()> {
    let text = match std::fs::read_to_string(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        text => text.with_context(|| format!("{} cannot be read", path.display()))?,
    };
    // One that cannot be parsed binds to nothing that is known.
    let rest = rebound(&text, &planned.cluster, &[], true).unwrap_or_default();
    durable::replace(path, rest.as_bytes(), 0o644)
        .with_context(|| format!("{} cannot be written", path.display()))?;
    if let Some(owner) = owner {
        owner.give(path)?;
    }
    Ok(())
}

/// Leaves it in a `pg_wal`.
pub(crate) fn leave(origin: &RecoveryOrigin, wal: &Path, owner: Option<Owner>) -> anyhow::Result<()> {
    origin.write(wal)?;
    if let Some(owner) = owner {
        owner.give(&wal.join(RECOVERY_ORIGIN))?;
    }
    Ok(())
}
