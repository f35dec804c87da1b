//! History first: a segment of a timeline above 1 is stored only when the history of that timeline is.
//!
//! PostgreSQL hands a history over once, and not at all when it marked the file as archived by itself. So whoever stores WAL of
//! a timeline stores its history, from beside the WAL, from `pg_wal` or from another repository. A history that differs from
//! the one that is stored is kept beside it for readers elsewhere, and nothing of that timeline is stored. A crash leaves a
//! history or none.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use walpoint_base::{TimelineHistory, TimelineId, WalFileName};
use walpoint_pg::wal::Identity;
use walpoint_repo::RepoError;
use walpoint_repo::wal::WalArchive;

use super::identity::{self, Evidence, SplitBrain, other_history};
use super::target::{Target, TargetError};

/// Makes sure that the history of a timeline is in an archive; the history, but for the first timeline, which has none.
///
/// `places`: where the file may lie. `wal`: the server's `pg_wal`. `others`: where else it may be stored.
pub(super) async fn store_first(
    target: &Target,
    archive: &WalArchive,
    cluster: &Identity,
    timeline: TimelineId,
    places: &[PathBuf],
    (wal, others): (&Path, &[Target]),
) -> Result<Option<Arc<TimelineHistory>>, TargetError> {
    if timeline == TimelineId::FIRST {
        return Ok(None);
    }
    let beside = read_first(places).await?;
    let lineage = archive.lineage().id;
    if let Some(history) = target.known(lineage, |known| known.history(timeline, beside.as_deref())) {
        return Ok(Some(history));
    }
    let name = WalFileName::History(timeline);
    let parse = |content: &[u8]| {
        TimelineHistory::parse(timeline, content).map(Arc::new).map_err(TargetError::History)
    };
    let history = match archive.get(name).await? {
        Some(stored) => match &beside {
            Some(ours) if *ours != stored.content => {
                return Err(refuse(target, archive, timeline, ours.clone(), &stored.content).await?.into());
            }
            _ => parse(&stored.content)?,
        },
        None => {
            let content = match &beside {
                Some(content) => content.clone(),
                None => elsewhere(target, others, cluster, name).await.ok_or_else(|| {
                    TargetError::NoHistory { name, repository: archive.repository().name().to_owned() }
                })?,
            };
            let history = parse(&content)?;
            // A copy's history would stand in the way of the server's own.
            if let Evidence::Other(split) = identity::compare(archive, cluster, wal, timeline).await? {
                let split =
                    SplitBrain::new(archive, timeline, format!("on the way to it, {}", split.found()));
                return Err(split.into());
            }
            match archive.put_file(name, content.clone()).await {
                Ok(_) => tracing::info!(file = %name, repository = target.name(), "stored before its WAL"),
                Err(RepoError::Conflict { .. }) => {
                    // Somebody was faster.
                    let stored = archive.get(name).await?.map(|file| file.content).unwrap_or_default();
                    return Err(refuse(target, archive, timeline, content, &stored).await?.into());
                }
                Err(error) => return Err(error.into()),
            }
            history
        }
    };
    target.known(lineage, |known| known.add_history(beside, Arc::clone(&history)));
    Ok(Some(history))
}

/// Keeps a history beside the one that is stored.
async fn refuse(
    target: &Target,
    archive: &WalArchive,
    timeline: TimelineId,
    content: Vec<u8>,
    stored: &[u8],
) -> Result<SplitBrain, RepoError> {
    let what = other_history(archive, timeline, &content, stored);
    let hash = archive.put_refused_history(timeline, content).await?;
    tracing::debug!(repository = target.name(), %timeline, %hash, "a history was refused and is kept beside");
    Ok(SplitBrain::new(archive, timeline, what))
}

/// The first of these files that there is.
async fn read_first(places: &[PathBuf]) -> Result<Option<Vec<u8>>, TargetError> {
    for place in places {
        match tokio::fs::read(place).await {
            Ok(content) => return Ok(Some(content)),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(source) => return Err(TargetError::Local { path: place.clone(), source }),
        }
    }
    Ok(None)
}

/// The history as another repository has it.
async fn elsewhere(
    target: &Target,
    others: &[Target],
    cluster: &Identity,
    name: WalFileName,
) -> Option<Vec<u8>> {
    for other in others.iter().filter(|other| other.name() != target.name()) {
        if let Ok(archive) = other.archive(cluster).await
            && let Ok(Some(file)) = archive.get(name).await
        {
            return Some(file.content);
        }
    }
    None
}
