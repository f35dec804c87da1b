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
use walpoint_repo::wal::WalArchive;
use walpoint_storage::RepoError;
use walpoint_storage::error::error_chain;

use super::ancestry::Ancestry;
use super::comparison::Comparison;
use super::fork;
use super::identity::{self, Evidence, other_history};
use super::split_brain::SplitBrain;
use super::target::{Target, TargetError};

/// What there is of a timeline's history.
pub(super) enum Found {
    /// The first timeline has none.
    NotNeeded,
    /// It is stored, and known to be the server's.
    Known(Arc<TimelineHistory>),
    /// It is stored and is the server's, as far as that can be told, which has this one beside its WAL.
    Stored(Option<Vec<u8>>, Arc<TimelineHistory>),
    /// It is to be stored, and has this content; beside the WAL lies this one.
    Missing(Option<Vec<u8>>, Vec<u8>, Arc<TimelineHistory>),
}

impl Found {
    /// The history, but for the first timeline, which has none.
    pub(super) fn history(self) -> Option<Arc<TimelineHistory>> {
        match self {
            Self::NotNeeded => None,
            Self::Known(history) | Self::Stored(_, history) | Self::Missing(_, _, history) => Some(history),
        }
    }
}

/// Looks for the history of a timeline, and refuses one that is another server's. Stores nothing, but one that is refused.
///
/// `places`: where the file may lie. `wal`: the server's `pg_wal`. `others`: where else it may be stored.
pub(super) async fn find(
    target: &Target,
    archive: &WalArchive,
    cluster: &Identity,
    timeline: TimelineId,
    places: &[PathBuf],
    (wal, others): (&Path, &[Target]),
) -> Result<Found, TargetError> {
    if timeline == TimelineId::FIRST {
        return Ok(Found::NotNeeded);
    }
    let beside = read_first(places).await?;
    let lineage = archive.lineage().id;
    if let Some(history) = target.known(lineage, |known| known.history(timeline, beside.as_deref())) {
        return Ok(Found::Known(history));
    }
    let name = WalFileName::History(timeline);
    let parse = |content: &[u8]| {
        TimelineHistory::parse(timeline, content).map(Arc::new).map_err(TargetError::History)
    };
    match (archive.get(name).await, beside) {
        (Ok(Some(stored)), Some(ours)) if ours != stored.content => {
            Err(refuse(target, archive, timeline, ours, &stored.content).await?.into())
        }
        (Ok(Some(stored)), beside) => {
            if let Some(split) = fork::is_disputed(archive, timeline, &stored.content).await? {
                return Err(split.into());
            }
            Ok(Found::Stored(beside, parse(&stored.content)?))
        }
        (Err(error @ RepoError::Corrupt { .. }), Some(ours)) => {
            let history = parse(&ours)?;
            let what = format!(
                "{name} is damaged in repository {}: {}; archiving goes on with the one in pg_wal, and recovery cannot use the damaged \
                 one. HINT: remove that object and restart the daemon, which then stores it again",
                target.name(),
                error_chain(&error)
            );
            tracing::error!(file = %name, repository = target.name(), "{what}");
            target.known(lineage, |known| known.add_damaged(timeline, what));
            Ok(Found::Stored(Some(ours), history))
        }
        (Err(error), _) => Err(error.into()),
        (Ok(None), beside) => {
            let content = match &beside {
                Some(content) => content.clone(),
                None => elsewhere(target, others, cluster, name).await.ok_or_else(|| {
                    TargetError::NoHistory { name, repository: archive.repository().name().to_owned() }
                })?,
            };
            let history = parse(&content)?;
            // A copy's history would stand in the way of the server's own.
            let ancestry = Ancestry { target, archive, around: others, cluster, wal, history: &history };
            match identity::compare(archive, cluster, wal, timeline).await? {
                Evidence::Other(split) => {
                    let split =
                        SplitBrain::new(archive, timeline, format!("on the way to it, {}", split.found()));
                    return Err(split.into());
                }
                Evidence::Nothing => {
                    if let Some(split) = ancestry.contradiction().await? {
                        return Err(split.into());
                    }
                }
                Evidence::Same(..) => {}
            }
            if let Comparison::Other(what) =
                fork::in_directory(archive, &history, wal, cluster.segment_size).await?
            {
                return Err(SplitBrain::new(archive, timeline, what).into());
            }
            Ok(Found::Missing(beside, content, history))
        }
    }
}

/// Makes sure that a history that was found is in the archive; the history, but for the first timeline, which has none.
pub(super) async fn store(
    target: &Target,
    archive: &WalArchive,
    timeline: TimelineId,
    found: Found,
) -> Result<Option<Arc<TimelineHistory>>, TargetError> {
    let (beside, history) = match found {
        Found::NotNeeded => return Ok(None),
        Found::Known(history) => return Ok(Some(history)),
        Found::Stored(beside, history) => (beside, history),
        Found::Missing(beside, content, history) => {
            let name = WalFileName::History(timeline);
            match archive.put_file(name, content.clone()).await {
                Ok(_) => {
                    tracing::info!(file = %name, repository = target.name(), before = "its WAL", "stored");
                }
                Err(RepoError::Conflict { .. }) => {
                    // Another server was faster.
                    let stored = archive.get(name).await?.map(|file| file.content).unwrap_or_default();
                    return Err(refuse(target, archive, timeline, content, &stored).await?.into());
                }
                Err(error) => return Err(error.into()),
            }
            (beside, history)
        }
    };
    target.known(archive.lineage().id, |known| known.add_history(beside, Arc::clone(&history)));
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
