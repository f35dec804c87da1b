//! How the timelines of a lineage hang together: the histories that are stored, what is missing or damaged of them, and what a
//! person settled.
//!
//! A history that cannot be read, or is not there, is a doubt about its timeline and keeps no other from being read.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::stream::{self, StreamExt};
use jiff::Timestamp;
use walpoint_base::diagnostic::shown;
use walpoint_base::{TimelineHistory, TimelineId, WalFileName};
use walpoint_plan::graph::{Contradictions, TimelineGraph};
use walpoint_plan::restore::{Abandoned, Answer, BackupState, Doubt, Facts, Question};
use walpoint_storage::error::{RepoError, Result};
use walpoint_storage::layout::WalEntry;
use walpoint_storage::store::ListedObject;

use super::abandoned::abandoned;
use super::lineage::LineageCatalog;
use super::outline::LineageOutline;
use super::standing::unusable;
use crate::backup::{Backups, ListedBackup};
use crate::wal::{ListedHistories, WalArchive};

/// The timelines that have a history, and when it was stored.
pub async fn stored_histories(archive: &WalArchive) -> Result<Vec<(TimelineId, Timestamp)>> {
    let entries = archive.repository().store().list_all(&archive.paths().histories()).await?;
    let history = |entry: &ListedObject| match archive.paths().parse(&entry.key)? {
        WalEntry::File(WalFileName::History(timeline)) => Some((timeline, entry.modified)),
        _ => None,
    };
    Ok(entries.iter().filter_map(history).collect())
}

/// Those of timelines behind one: a server that went on from that one, or from one before it, has taken its place since then, unless
/// that newer timeline was abandoned.
pub fn newer_than(
    timeline: TimelineId,
    stored: &[(TimelineId, Timestamp)],
) -> impl Iterator<Item = &(TimelineId, Timestamp)> {
    stored.iter().filter(move |(id, _)| *id > timeline)
}

impl LineageCatalog {
    /// Lists the timelines, and reads their histories.
    #[cfg(test)]
    pub(crate) async fn load(
        archive: WalArchive,
        backups: &Backups,
        listed: &[ListedBackup],
    ) -> Result<Self> {
        let outline = LineageOutline::list(backups.store(), archive.paths()).await?;
        Self::of(archive, outline, backups, listed).await
    }

    /// Reads the histories that are listed.
    pub(super) async fn of(
        archive: WalArchive,
        outline: LineageOutline,
        backups: &Backups,
        listed: &[ListedBackup],
    ) -> Result<Self> {
        let (mut problems, mut without_history) = (Vec::new(), BTreeSet::new());
        let listed_histories = archive.with_inherited_histories(outline.histories).await?;
        let timelines = archive.with_inherited_timelines(outline.timelines).await?;
        let (read, mut doubts) = read_histories(&archive, &listed_histories.stored).await?;
        problems.extend(doubts.values().map(|doubt| match doubt {
            Doubt::Damaged(error) => error.clone(),
            doubt => doubt.to_string(),
        }));
        let mut of_verdicts = Vec::new();
        let (refused, mut settled) = unsettled(&archive, &listed_histories, &mut of_verdicts).await?;
        let abandoned = abandoned(&archive, &listed_histories.abandoned, &mut of_verdicts).await?;
        let last = refused.iter().chain(abandoned.keys()).copied().collect();
        let (mut graph, contradictions) = TimelineGraph::of(read, &last);
        let counted = counted(&archive, &listed_histories, &contradictions).await?;
        let stored: BTreeSet<TimelineId> = listed_histories.stored.iter().copied().collect();
        for timeline in timelines {
            if timeline > TimelineId::FIRST && !stored.contains(&timeline) {
                // A descendant's history tells where it comes from. Recovery to it would read its own all the same.
                if graph.contains(timeline) {
                    without_history.insert(timeline);
                    problems.push(format!("timeline {timeline}: {}", Doubt::Missing));
                } else {
                    doubts.entry(timeline).or_insert(Doubt::Missing);
                }
            }
            graph.add_known(timeline);
        }
        problems.extend(of_verdicts);
        doubts.extend(unsettled_contradictions(contradictions, &graph, &abandoned, &counted));
        doubts.extend(refused.into_iter().map(|timeline| (timeline, Doubt::Refused)));
        settled.extend(abandoned.values().map(ToString::to_string));
        let mut disputed = Vec::new();
        for (timeline, doubt) in &doubts {
            match doubt {
                // The one stands there already, the other is no fact about the timeline.
                Doubt::Damaged(_) | Doubt::NoBackup => {}
                Doubt::Missing => problems.push(format!("timeline {timeline}: {doubt}")),
                Doubt::Refused | Doubt::OtherAncestor(_) => {
                    disputed.push(format!("timeline {timeline}: {doubt}"));
                }
            }
        }
        let lineage = archive.lineage();
        let ids = listed.iter().map(|b| b.id).collect();
        let mut facts = Facts::new(lineage.id, lineage.major, lineage.segment_size, graph, ids);
        facts.doubts = doubts;
        facts.without_history = without_history;
        facts.abandoned = abandoned;
        // The listing tells all there is to know about these.
        for backup in listed {
            if let Some(why) = unusable(backup) {
                let answer = Answer::Backup(BackupState::Unusable(why));
                facts.answer(Question::Backup(backup.id), answer);
            }
        }
        Ok(Self {
            archive,
            backups: backups.clone(),
            announced: None,
            unread_announcements: Vec::new(),
            stored_anew: BTreeSet::new(),
            found_beside: Vec::new(),
            believes_found: false,
            facts,
            wal: BTreeMap::new(),
            promised: None,
            problems,
            disputed,
            settled,
            counted,
            looked: BTreeSet::new(),
            undecoded: false,
        })
    }
}

/// The timelines of which a history was refused and not settled, and what was settled.
async fn unsettled(
    archive: &WalArchive,
    listed: &ListedHistories,
    problems: &mut Vec<String>,
) -> Result<(Vec<TimelineId>, Vec<String>)> {
    let (mut refused, mut settled) = (Vec::new(), Vec::new());
    for &(timeline, history) in &listed.refused {
        if listed.settled.contains(&(timeline, history)) {
            match archive.settlement(timeline, history).await {
                Ok(Some(found)) => {
                    let which = if found.stored { "counts" } else { "was refused" };
                    settled.push(format!(
                        "timeline {timeline}: the history {history} {which}; settled by {} on {}: {}",
                        shown(&found.who),
                        found.settled,
                        shown(&found.reason)
                    ));
                    continue;
                }
                Ok(None) => {}
                Err(error @ RepoError::Corrupt { .. }) => problems.push(error.to_string()),
                Err(error) => return Err(error),
            }
        }
        refused.push(timeline);
    }
    Ok((refused, settled))
}

/// The timelines that contradict others' histories and of which a person says that their stored histories count.
async fn counted(
    archive: &WalArchive,
    listed: &ListedHistories,
    contradictions: &Contradictions,
) -> Result<BTreeSet<TimelineId>> {
    let mut counted = BTreeSet::new();
    let settled = |timeline: &TimelineId| listed.settled.iter().any(|(settled, _)| settled == timeline);
    for timeline in contradictions.keys().copied().filter(settled) {
        let Some(file) = archive.get(WalFileName::History(timeline)).await? else { continue };
        match archive.settlement(timeline, archive.repository().sealer().content_hash(&file.content)).await {
            Ok(Some(settlement)) if settlement.stored => {
                counted.insert(timeline);
            }
            Ok(_) | Err(RepoError::Corrupt { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(counted)
}

/// The timelines that contradict others' histories. Who abandons one of the two settles that, and keeps the other; so does who says
/// that a timeline counts, which holds for what comes from it.
pub(super) fn unsettled_contradictions(
    contradictions: Contradictions,
    graph: &TimelineGraph,
    abandoned: &BTreeMap<TimelineId, Abandoned>,
    counted: &BTreeSet<TimelineId>,
) -> Vec<(TimelineId, Doubt)> {
    let counts = |timeline: &TimelineId, of: &TimelineId| {
        let mut path = graph.stored().get(timeline).into_iter().flat_map(TimelineHistory::path);
        path.any(|on_it| on_it > *of && counted.contains(&on_it))
    };
    let open = contradictions.into_iter().filter(|(timeline, of)| {
        !abandoned.contains_key(timeline) && !abandoned.contains_key(of) && !counts(timeline, of)
    });
    open.map(|(timeline, of)| (timeline, Doubt::OtherAncestor(of))).collect()
}

/// Histories that are read at the same time, at most.
const HISTORIES_AT_ONCE: usize = 16;

/// All histories, and which of them cannot be read. A descendant's does not stand for that of an ancestor: it may be another
/// server's.
async fn read_histories(
    archive: &WalArchive,
    stored: &[TimelineId],
) -> Result<(Vec<TimelineHistory>, BTreeMap<TimelineId, Doubt>)> {
    let (mut histories, mut doubts) = (Vec::new(), BTreeMap::new());
    let mut read = stream::iter(stored.to_vec())
        .map(|timeline| async move { (timeline, archive.history(timeline).await) })
        .buffered(HISTORIES_AT_ONCE);
    while let Some((timeline, history)) = read.next().await {
        match history {
            Ok(history) => histories.extend(history),
            Err(error @ RepoError::Corrupt { .. }) => {
                doubts.insert(timeline, Doubt::Damaged(error.to_string()));
            }
            Err(error) => return Err(error),
        }
    }
    Ok((histories, doubts))
}

#[cfg(test)]
mod tests {
    use walpoint_base::SegmentName;
    use walpoint_storage::layout::AbandonedUntil;

    use super::*;
    use crate::index::tests::bed;

    fn tli(id: u32) -> TimelineId {
        TimelineId::new(id).unwrap()
    }

    /// Another server's timeline 3 comes from its own timeline 2: it says nothing of the stored one.
    #[tokio::test]
    async fn a_younger_timeline_of_another_server_leaves_the_stored_history_as_it_is() {
        let bed = bed().await;
        let archive = &bed.archive;
        for (id, text) in [(2, "1\t0/200000\tx\n"), (3, "1\t0/400000\tx\n2\t0/600000\ty\n")] {
            archive.put_file(WalFileName::History(tli(id)), text.as_bytes().to_vec()).await.unwrap();
        }
        let load = async || {
            let backups = Backups::of(archive.repository(), &archive.lineage().cluster);
            LineageCatalog::load(archive.clone(), &backups, &[]).await.unwrap()
        };
        let begin =
            |catalog: &LineageCatalog| catalog.facts().graph.history(tli(2)).unwrap().begin_of(tli(2));
        let catalog = load().await;
        assert_eq!(begin(&catalog), Some(walpoint_base::Lsn(0x20_0000)));
        assert_eq!(catalog.facts().doubts.get(&tli(3)), Some(&Doubt::OtherAncestor(tli(2))));
        assert!(catalog.disputed()[0].starts_with("timeline 3: two servers claim timeline 2"));
        assert!(catalog.unread().is_empty());

        let counts = async |id: u32| {
            let stored = archive.get(WalFileName::History(tli(id))).await.unwrap().unwrap().content;
            let hash = archive.repository().sealer().content_hash(&stored);
            assert!(archive.count_history(tli(id), hash, "production", "dba").await.unwrap());
            archive.put_refused_history(tli(id), stored).await.unwrap();
        };
        let four = "1\t0/400000\tx\n2\t0/600000\ty\n3\t0/900000\tz\n";
        archive.put_file(WalFileName::History(tli(4)), four.as_bytes().to_vec()).await.unwrap();
        assert_eq!(load().await.facts().doubts.len(), 2);
        counts(3).await;
        let catalog = load().await;
        assert!(catalog.facts().doubts.is_empty() && catalog.disputed().is_empty());
        assert!(catalog.settled()[0].contains("settled by dba"), "{:?}", catalog.settled());
        assert_eq!(begin(&catalog), Some(walpoint_base::Lsn(0x20_0000)));
        assert_eq!(catalog.facts().graph.children(tli(3)), [(tli(4), walpoint_base::Lsn(0x90_0000))]);
        assert!(catalog.facts().graph.children(tli(2)).is_empty());
    }

    #[tokio::test]
    async fn who_abandons_one_of_two_timelines_settles_what_they_contradict_each_other_about() {
        let bed = bed().await;
        let archive = &bed.archive;
        let fork = Some((tli(2), walpoint_base::Lsn(0x60_0000)));
        for (id, text) in [(2, "1\t0/200000\tx\n"), (3, "1\t0/400000\tx\n2\t0/600000\ty\n")] {
            archive.put_file(WalFileName::History(tli(id)), text.as_bytes().to_vec()).await.unwrap();
        }
        let load = async || {
            let backups = Backups::of(archive.repository(), &archive.lineage().cluster);
            LineageCatalog::load(archive.clone(), &backups, &[]).await.unwrap()
        };
        let begin =
            |catalog: &LineageCatalog| catalog.facts().graph.history(tli(2)).unwrap().begin_of(tli(2));
        let until = SegmentName { timeline: tli(3), log: 0, segment: 6 };
        archive.abandon_timeline(AbandonedUntil { until, fork }, "a test copy", "dba").await.unwrap();
        let catalog = load().await;
        assert_eq!(begin(&catalog), Some(walpoint_base::Lsn(0x20_0000)));
        assert!(catalog.facts().doubts.is_empty() && catalog.disputed().is_empty());
        assert!(catalog.facts().graph.children(tli(2)).is_empty());
    }
}
