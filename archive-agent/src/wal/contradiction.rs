//! Histories that descend from another server's timeline than the one whose history is stored.
//!
//! Timeline numbers are given anew by each server: a copy that was promoted twice is on timeline 3, and its timeline 2 is not the
//! one that production archived. Its history says so: the entries before that of timeline 2 are not those of the stored one.
//! Such a history is kept beside those that are stored, so that readers elsewhere can tell, and nothing of its timeline is stored.
//! A crash leaves it or not.

use std::collections::BTreeMap;
use std::future::ready;
use std::path::Path;

use futures_util::stream::{self, StreamExt, TryStreamExt};
use walpoint_base::{TimelineHistory, TimelineId, WalFileName};
use walpoint_plan::graph::contradictions;
use walpoint_repo::wal::{ListedHistories, WalArchive};
use walpoint_storage::RepoError;

use super::disk;
use super::identity::other_history;
use super::split_brain::SplitBrain;

/// Histories that are read at the same time, at most.
const AT_ONCE: usize = 8;

/// The newest ancestor that a history does not descend from, but from another timeline of that number than the stored one; and whether
/// a person has settled that: that one was abandoned, or this one counts, or one that it comes from. What is missing or damaged proves
/// nothing.
async fn contradicted(
    archive: &WalArchive,
    history: &TimelineHistory,
) -> Result<Option<(TimelineId, bool)>, RepoError> {
    let parents: Vec<TimelineId> = later_than_first(history).collect();
    let mut stored = stream::iter(parents.into_iter().rev())
        .map(|parent| async move { unless_damaged(archive.history(parent).await) })
        .buffered(AT_ONCE);
    let mut agreeing = vec![history.timeline()];
    while let Some(ancestor) = stored.try_next().await? {
        let Some(ancestor) = ancestor else { continue };
        if history.contradicts(&ancestor) {
            let listed = archive.all_histories().await?;
            let abandoned = archive.abandoned_here(&listed.abandoned).await?;
            let ancestor = ancestor.timeline();
            let settled =
                abandoned.contains_key(&ancestor) || any_counts(archive, &listed, &agreeing).await?;
            return Ok(Some((ancestor, settled)));
        }
        agreeing.push(ancestor.timeline());
    }
    Ok(None)
}

/// What shows that a history descends from another timeline than the one of an ancestor's number that is stored, if anything
/// does and no person has settled it.
async fn with_stored(archive: &WalArchive, history: &TimelineHistory) -> Result<Option<String>, RepoError> {
    let found = contradicted(archive, history).await?;
    Ok(found.filter(|(_, settled)| !settled).map(|(of, _)| other_switch_points(history.timeline(), of)))
}

/// The part of a history that is of the server whose WAL an archive holds: the lines behind the ancestor that it contradicts, if a
/// person has settled that.
pub(super) async fn settled_part(
    archive: &WalArchive,
    history: TimelineHistory,
) -> Result<TimelineHistory, RepoError> {
    let Some((of, true)) = contradicted(archive, &history).await? else { return Ok(history) };
    let behind = history.entries().iter().filter(|entry| entry.parent > of).count();
    Ok(history.newest(behind))
}

fn other_switch_points(timeline: TimelineId, ancestor: TimelineId) -> String {
    let (own, ancestors) = (WalFileName::History(timeline), WalFileName::History(ancestor));
    format!(
        "{own} names other switch points before timeline {ancestor} than {ancestors} does, which is stored"
    )
}

/// Whether a person has said of one of these timelines that its stored history counts.
async fn any_counts(
    archive: &WalArchive,
    listed: &ListedHistories,
    timelines: &[TimelineId],
) -> Result<bool, RepoError> {
    for timeline in timelines.iter().filter(|id| listed.settled.iter().any(|(settled, _)| settled == *id)) {
        let stored = unless_damaged(archive.get(WalFileName::History(*timeline)).await)?;
        let hash = stored.map(|file| archive.repository().sealer().content_hash(&file.content));
        let Some(hash) = hash else { continue };
        let settlement = unless_damaged(archive.settlement(*timeline, hash).await)?;
        if settlement.is_some_and(|settlement| settlement.stored) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether a history that is stored contradicts that of an ancestor. Whoever reads the archive takes neither for the latest by itself, so
/// nothing more of the timeline is acknowledged until that is settled. `None` if it was.
pub(crate) async fn of_stored(
    archive: &WalArchive,
    timeline: TimelineId,
    content: &[u8],
) -> Result<Option<SplitBrain>, RepoError> {
    let Ok(history) = TimelineHistory::parse(timeline, content) else { return Ok(None) };
    let what = with_stored(archive, &history).await?;
    Ok(what.map(|what| SplitBrain::new(archive, timeline, what).of_the_timeline()))
}

/// [`of_stored`] for all histories of an archive, but for those of timelines that were abandoned.
pub(super) async fn among_stored(
    archive: &WalArchive,
    listed: &ListedHistories,
    histories: &BTreeMap<TimelineId, TimelineHistory>,
) -> Result<Vec<SplitBrain>, RepoError> {
    let found = contradictions(histories);
    if found.is_empty() {
        return Ok(Vec::new());
    }
    let mut among = Vec::new();
    let abandoned = archive.abandoned_here(&listed.abandoned).await?;
    for (timeline, ancestor) in found {
        let Some(history) = histories.get(&timeline) else { continue };
        let below = history.path().filter(|on_it| *on_it > ancestor);
        let same = |id: &TimelineId| histories.get(id).is_some_and(|own| !history.contradicts(own));
        let agreeing: Vec<TimelineId> = below.filter(same).collect();
        if !abandoned.contains_key(&ancestor) && !any_counts(archive, listed, &agreeing).await? {
            let what = other_switch_points(timeline, ancestor);
            among.push(SplitBrain::new(archive, timeline, what).of_the_timeline());
        }
    }
    Ok(among)
}

/// The histories of an archive; what is damaged proves nothing.
pub(super) async fn read_all(
    archive: &WalArchive,
    listed: &ListedHistories,
) -> Result<BTreeMap<TimelineId, TimelineHistory>, RepoError> {
    let read = stream::iter(listed.stored.clone())
        .map(|timeline| async move { unless_damaged(archive.history(timeline).await) })
        .buffered(AT_ONCE);
    read.try_filter_map(|history| ready(Ok(history.map(|history| (history.timeline(), history)))))
        .try_collect()
        .await
}

/// What shows that the histories of ancestors that lie in a directory are not those that are stored, if anything does.
async fn in_directory(
    archive: &WalArchive,
    history: &TimelineHistory,
    wal: &Path,
) -> Result<Option<String>, RepoError> {
    for parent in later_than_first(history) {
        let name = WalFileName::History(parent);
        let path = wal.join(name.to_string());
        let Ok(ours) = disk::look(wal, move || std::fs::read(path)).await? else { continue };
        let stored = unless_damaged(archive.get(name).await)?;
        if let Some(stored) = stored.filter(|stored| differ(&ours, &stored.content)) {
            return Ok(Some(other_history(archive, parent, &ours, &stored.content)));
        }
    }
    Ok(None)
}

/// Whether two histories of one timeline are those of two servers: neither is damaged.
pub(super) fn differ(one: &[u8], other: &[u8]) -> bool {
    one != other && TimelineHistory::flaw(one).is_none() && TimelineHistory::flaw(other).is_none()
}

/// What is damaged counts as missing.
pub(super) fn unless_damaged<T>(read: Result<Option<T>, RepoError>) -> Result<Option<T>, RepoError> {
    match read {
        Err(RepoError::Corrupt { .. }) => Ok(None),
        read => read,
    }
}

fn later_than_first(history: &TimelineHistory) -> impl Iterator<Item = TimelineId> + '_ {
    history.entries().iter().map(|entry| entry.parent).filter(|parent| *parent > TimelineId::FIRST)
}

/// Refuses a history that descends from another server's timeline than the stored one, and keeps it beside. `wal`: the
/// directory that it lies in, with the histories of its ancestors.
pub(crate) async fn refuse(
    archive: &WalArchive,
    history: &TimelineHistory,
    content: &[u8],
    wal: Option<&Path>,
) -> Result<Option<SplitBrain>, RepoError> {
    let mut found = with_stored(archive, history).await?;
    if let (None, Some(wal)) = (&found, wal) {
        found = in_directory(archive, &settled_part(archive, history.clone()).await?, wal).await?;
    }
    let Some(what) = found else { return Ok(None) };
    let timeline = history.timeline();
    let hash = archive.put_refused_history(timeline, content.to_vec()).await?;
    let repository = archive.repository().name();
    tracing::debug!(repository, %timeline, %hash, "a history was refused and is kept beside");
    Ok(Some(SplitBrain::new(archive, timeline, what).of_another_ancestor()))
}

/// What shows by its history that a timeline of one archive is not of the server whose WAL another one holds, with that history.
pub(super) async fn between(
    from: &WalArchive,
    to: &WalArchive,
    timeline: TimelineId,
) -> Result<Option<(SplitBrain, Vec<u8>)>, RepoError> {
    let name = WalFileName::History(timeline);
    if timeline == TimelineId::FIRST {
        return Ok(None);
    }
    let Some(theirs) = unless_damaged(from.get(name).await)?.map(|file| file.content) else {
        return Ok(None);
    };
    // What is damaged here is there all the same.
    let ours = match to.get(name).await {
        Err(RepoError::Corrupt { .. }) => return Ok(None),
        read => read?,
    };
    if let Some(ours) = ours {
        let what = || other_history(to, timeline, &theirs, &ours.content);
        let split = differ(&theirs, &ours.content).then(|| SplitBrain::new(to, timeline, what()));
        return Ok(split.map(|split| (split, theirs)));
    }
    let Ok(history) = TimelineHistory::parse(timeline, &theirs) else { return Ok(None) };
    let what = with_stored(to, &history).await?;
    Ok(what.map(|what| (SplitBrain::new(to, timeline, what).of_another_ancestor(), theirs)))
}

#[cfg(test)]
mod tests {
    use walpoint_base::durable;

    use super::super::fixtures::{Bed, switch_in};
    use super::*;

    #[tokio::test]
    async fn a_history_that_descends_from_another_servers_timeline_is_kept_beside() {
        let (bed, three) = (Bed::new().await, TimelineId::new(3).unwrap());
        let own = switch_in("000000010000000000000003", 0x800);
        bed.put_history(2, own.clone()).await;
        let refused = async |before: &[u8], wal: Option<&Path>| {
            let content = [before, &switch_in("000000020000000000000006", 0x800)].concat();
            let history = TimelineHistory::parse(three, &content).unwrap();
            let split = refuse(&bed.archive, &history, &content, wal).await.unwrap();
            (split, bed.archive.all_histories().await.unwrap().refused.len())
        };
        let wal = bed.pgdata().join("pg_wal");
        assert_eq!(refused(&own, Some(&wal)).await, (None, 0));
        assert_eq!(refused(b"", Some(&wal)).await, (None, 0));
        let (split, kept) = refused(&switch_in("000000010000000000000004", 0x800), None).await;
        let split = split.unwrap();
        assert_eq!((split.timeline(), kept), (three, 1));
        assert!(
            split.to_string().starts_with("split brain: timeline 3 comes from another server's"),
            "{split}"
        );
        // Promoted at one position, with another reason.
        let other = String::from_utf8(own.clone()).unwrap().replace("specified", "reached");
        durable::replace(&wal.join("00000002.history"), other.as_bytes(), 0o600).unwrap();
        assert!(
            refused(&own, Some(&wal)).await.0.unwrap().to_string().contains("00000002.history is stored")
        );
    }
}
