//! History first: a segment of a timeline above 1 is stored only when the history of that timeline is.
//!
//! PostgreSQL hands a history over once, and not at all when it marked the file as archived by itself. So whoever stores WAL of
//! a timeline stores its history, from beside the WAL, from `pg_wal` or from another repository. A history that differs from
//! the one that is stored is kept beside it for readers elsewhere, and nothing of that timeline is stored; likewise one
//! that descends from another timeline than an ancestor's that is stored, even if it was stored before that. One that PostgreSQL has
//! not written to its end is damaged, and refused by its name: it could never be replaced, and would lead recovery astray. A
//! crash leaves a history or none.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use walpoint_base::{LineageId, TimelineHistory, TimelineId, WalFileName};
use walpoint_pg::wal::WalIdentity;
use walpoint_repo::wal::{FetchedWal, WalArchive};
use walpoint_storage::RepoError;
use walpoint_storage::error::error_chain;

use super::ancestry::Ancestry;
use super::comparison::Comparison;
use super::contradiction;
use super::disk;
use super::fork;
use super::identity::{self, Evidence, other_history};
use super::split_brain::SplitBrain;
use super::target::{TargetError, WalTarget};
use super::target_error::StoredHistory;
use super::unreadable;

/// What there is of a timeline's history.
pub(super) enum FoundHistory {
    /// The first timeline has none.
    NotNeeded,
    /// It is stored, and known to be the server's.
    Known(Arc<TimelineHistory>),
    /// It is stored and is the server's, as far as that can be told, which has this one beside its WAL.
    Stored(Option<Vec<u8>>, Arc<TimelineHistory>),
    /// It is to be stored, and has this content; beside the WAL lies this one.
    Missing(Option<Vec<u8>>, Vec<u8>, Arc<TimelineHistory>),
}

impl FoundHistory {
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
    target: &WalTarget,
    archive: &WalArchive,
    cluster: &WalIdentity,
    timeline: TimelineId,
    places: &[PathBuf],
    (wal, others): (&Path, &[WalTarget]),
) -> Result<FoundHistory, TargetError> {
    if timeline == TimelineId::FIRST {
        return Ok(FoundHistory::NotNeeded);
    }
    let (beside, place) = read_first(places, wal).await?.unzip();
    // The histories of its ancestors lie there, too, if it is this server's.
    let directory = place.as_deref().and_then(Path::parent).filter(|directory| *directory == wal);
    let directory = directory.map(Path::to_owned);
    let lineage = archive.lineage().id;
    if let Some(history) = target.known(lineage, |known| known.history(timeline, beside.as_deref())) {
        return Ok(FoundHistory::Known(history));
    }
    let name = WalFileName::History(timeline);
    let stored = unreadable::settled(archive, archive.get(name).await).await;
    if let (Some(ours), Some(path)) = (&beside, place) {
        refuse_flawed(archive, name, (ours, path), &stored)?;
    }
    match (stored, beside) {
        (Ok(Some(stored)), Some(ours)) if is_beginning(&stored.content, &ours) => {
            let what = format!(
                "{name} is stored in repository {} without its end\nDETAIL: Archiving continues with the one in pg_wal, and \
                 recovery cannot use the stored one.\nHINT: Remove that object and restart the daemon, which then stores it \
                 again.",
                target.name()
            );
            beside_damaged(target, lineage, timeline, ours, what)
        }
        (Ok(Some(stored)), Some(ours)) if ours != stored.content => {
            Err(refuse(target, archive, timeline, ours, &stored.content).await?.into())
        }
        (Ok(Some(stored)), beside) => {
            if let Some(split) = fork::is_disputed(archive, timeline, &stored.content).await? {
                return Err(split.into());
            }
            Ok(FoundHistory::Stored(beside, parse(timeline, &stored.content)?))
        }
        (Err(error @ RepoError::Corrupt { .. }), Some(ours)) => {
            let what = format!(
                "{name} is damaged in repository {}: {}\nDETAIL: Archiving continues with the one in pg_wal, and recovery \
                 cannot use the damaged one.\nHINT: Remove that object and restart the daemon, which then stores it again.",
                target.name(),
                error_chain(&error)
            );
            beside_damaged(target, lineage, timeline, ours, what)
        }
        (Err(error), _) => Err(error.into()),
        (Ok(None), beside) => {
            let content = match &beside {
                Some(content) => content.clone(),
                None => elsewhere(target, others, cluster, name).await.ok_or_else(|| {
                    TargetError::NoHistory { name, repository: archive.repository().name().to_owned() }
                })?,
            };
            let history = parse(timeline, &content)?;
            let directory = directory.as_deref();
            if let Some(split) = contradiction::refuse(archive, &history, &content, directory).await? {
                return Err(split.into());
            }
            let ancestry = Ancestry { target, archive, around: others, cluster, wal, history: &history };
            refuse_a_copys(&ancestry, timeline).await?;
            Ok(FoundHistory::Missing(beside, content, history))
        }
    }
}

fn parse(timeline: TimelineId, content: &[u8]) -> Result<Arc<TimelineHistory>, TargetError> {
    TimelineHistory::parse(timeline, content).map(Arc::new).map_err(TargetError::History)
}

/// Refuses a history beside the WAL that is damaged. An equal one that is stored was accepted: a person may have said that there are
/// no ancestors.
fn refuse_flawed(
    archive: &WalArchive,
    name: WalFileName,
    (ours, path): (&[u8], PathBuf),
    stored: &Result<Option<FetchedWal>, RepoError>,
) -> Result<(), TargetError> {
    let Some(flaw) = TimelineHistory::flaw(ours) else { return Ok(()) };
    let stored = match stored {
        Ok(Some(stored)) if stored.content == ours => return Ok(()),
        Ok(None) => StoredHistory::None,
        _ => StoredHistory::Other,
    };
    let repository = archive.repository().name().to_owned();
    Err(TargetError::DamagedHistory { name, path, flaw, repository, stored })
}

/// The server's own history, where the one that is stored is damaged: `what` says so, once and in `health`.
fn beside_damaged(
    target: &WalTarget,
    lineage: LineageId,
    timeline: TimelineId,
    ours: Vec<u8>,
    what: String,
) -> Result<FoundHistory, TargetError> {
    let history = parse(timeline, &ours)?;
    tracing::error!(file = %WalFileName::History(timeline), repository = target.name(), "{what}");
    target.known(lineage, |known| known.add_damaged(timeline, what));
    Ok(FoundHistory::Stored(Some(ours), history))
}

/// Refuses a history that is to be stored if the WAL beside it is another server's: a copy's history would stand in the way of the
/// server's own.
async fn refuse_a_copys(ancestry: &Ancestry<'_>, timeline: TimelineId) -> Result<(), TargetError> {
    let Ancestry { archive, cluster, wal, history, .. } = *ancestry;
    match identity::compare(archive, cluster, wal, timeline).await? {
        Evidence::Other(split) => {
            let found = format!("on the way to it, {}", split.found());
            return Err(SplitBrain::new(archive, timeline, found).into());
        }
        Evidence::Nothing => {
            if let Some(split) = ancestry.contradiction().await? {
                return Err(split.into());
            }
        }
        Evidence::Same(..) => {}
    }
    match fork::in_directory(archive, history, wal, cluster.segment_size).await? {
        Comparison::Other(what) => Err(SplitBrain::new(archive, timeline, what).into()),
        _ => Ok(()),
    }
}

/// Makes sure that a history that was found is in the archive; the history, but for the first timeline, which has none.
pub(super) async fn store(
    target: &WalTarget,
    archive: &WalArchive,
    timeline: TimelineId,
    found: FoundHistory,
) -> Result<Option<Arc<TimelineHistory>>, TargetError> {
    let (beside, history) = match found {
        FoundHistory::NotNeeded => return Ok(None),
        FoundHistory::Known(history) => return Ok(Some(history)),
        FoundHistory::Stored(beside, history) => (beside, history),
        FoundHistory::Missing(beside, content, history) => {
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
    target: &WalTarget,
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

/// Whether what is stored of a history is the beginning of this one, cut short: before histories were looked at so closely, such a one
/// was stored. An empty one is what a person may have said.
fn is_beginning(stored: &[u8], ours: &[u8]) -> bool {
    !stored.is_empty()
        && stored.len() < ours.len()
        && ours.starts_with(stored)
        && TimelineHistory::flaw(stored).is_some()
}

/// The first of these files that there is, and where. They lie in a server's `pg_wal`, or beside what is pushed by hand.
async fn read_first(places: &[PathBuf], wal: &Path) -> Result<Option<(Vec<u8>, PathBuf)>, TargetError> {
    for place in places {
        let directory = place.parent().unwrap_or(wal);
        let path = place.clone();
        match disk::look(directory, move || std::fs::read(path)).await.map_err(RepoError::from)? {
            Ok(content) => return Ok(Some((content, place.clone()))),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(source) => return Err(TargetError::Local { path: place.clone(), source }),
        }
    }
    Ok(None)
}

/// The history as another repository has it.
async fn elsewhere(
    target: &WalTarget,
    others: &[WalTarget],
    cluster: &WalIdentity,
    name: WalFileName,
) -> Option<Vec<u8>> {
    for other in others.iter().filter(|other| other.name() != target.name()) {
        if let Ok(archive) = other.archive(cluster).await
            && let Ok(Some(file)) = archive.get(name).await
            && (file.content.is_empty() || TimelineHistory::flaw(&file.content).is_none())
        {
            return Some(file.content);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::{Bed, size, switch_in};
    use super::*;

    #[tokio::test]
    async fn a_stored_history_that_cannot_be_read_for_long_keeps_its_servers_wal_from_nothing() {
        let bed = Bed::new().await;
        let (timeline, name) = (TimelineId::new(2).unwrap(), "00000002.history");
        let content = switch_in("000000010000000000000003", 0x800);
        bed.put_history(2, content.clone()).await;
        bed.make_unreadable(name);
        let (target, wal) = (bed.target(true), bed.pgdata().join("pg_wal"));
        let places = [wal.join(name)];
        walpoint_base::durable::replace(&places[0], &content, 0o600).unwrap();
        let lineage = bed.archive.lineage();
        let cluster =
            WalIdentity { system_id: lineage.system_id(), major: lineage.major, segment_size: size() };
        let find = async || find(&target, &bed.archive, &cluster, timeline, &places, (&wal, &[])).await;
        for _ in 0..3 {
            assert!(find().await.is_err_and(|error| error.is_transient()), "it may be an outage");
        }
        unreadable::age(&bed.archive);
        assert!(matches!(find().await, Ok(FoundHistory::Stored(Some(ours), _)) if ours == content));
        let damaged = target.damaged_histories();
        assert!(
            damaged.iter().any(|what| what.contains(name) && what.contains("Remove that object")),
            "{damaged:?}"
        );
    }

    #[test]
    fn what_is_stored_of_a_history_may_be_cut_short_and_is_then_no_other_servers() {
        let whole = &b"1\t0/A000A0\tno recovery target specified\n"[..];
        for cut in 1..whole.len() {
            assert!(is_beginning(&whole[..cut], whole), "{cut}");
        }
        for other in [&b""[..], whole, b"1\t0/A000A1\t", b"1\t0/A000A0\tx\n"] {
            assert!(!is_beginning(other, whole), "{}", other.escape_ascii());
        }
    }
}
