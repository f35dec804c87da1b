//! How the timelines of a lineage hang together: the histories that are stored, what is missing or damaged of them, and what a
//! person settled.
//!
//! A history that cannot be read, or is not there, is a doubt about its timeline and keeps no other from being read.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::future::join_all;
use walpoint_base::TimelineId;
use walpoint_base::diagnostic::shown;
use walpoint_plan::graph::TimelineGraph;
use walpoint_plan::restore::{Answer, BackupState, Doubt, Facts, Question};
use walpoint_storage::error::{RepoError, Result};

use super::abandoned::abandoned;
use super::lineage::LineageCatalog;
use super::outline::LineageOutline;
use super::standing::unusable;
use crate::backup::{Backups, ListedBackup};
use crate::wal::{ListedHistories, WalArchive};

impl LineageCatalog {
    /// Lists the timelines, and reads as many histories as the graph has branches.
    #[cfg(test)]
    pub(crate) async fn load(
        archive: WalArchive,
        backups: &Backups,
        listed: &[ListedBackup],
    ) -> Result<Self> {
        let outline = LineageOutline::list(backups.store(), archive.paths()).await?;
        Self::of(archive, outline, backups, listed).await
    }

    /// Of what is listed reads as many histories as the graph has branches.
    pub(super) async fn of(
        archive: WalArchive,
        outline: LineageOutline,
        backups: &Backups,
        listed: &[ListedBackup],
    ) -> Result<Self> {
        let mut problems = Vec::new();
        let mut without_history = BTreeSet::new();
        let listed_histories = archive.with_inherited_histories(outline.histories).await?;
        let timelines = archive.with_inherited_timelines(outline.timelines).await?;
        let stored: BTreeSet<TimelineId> = listed_histories.stored.iter().copied().collect();
        let (mut graph, mut doubts) = read_histories(&archive, listed_histories.stored.clone()).await?;
        problems.extend(doubts.values().filter_map(|doubt| match doubt {
            Doubt::Damaged(error) => Some(error.clone()),
            _ => None,
        }));
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
        let (refused, mut settled) = unsettled(&archive, &listed_histories, &mut problems).await?;
        doubts.extend(refused.into_iter().map(|timeline| (timeline, Doubt::Refused)));
        let abandoned = abandoned(&archive, &listed_histories.abandoned, &mut problems).await?;
        settled.extend(abandoned.values().map(ToString::to_string));
        let mut disputed = Vec::new();
        for (timeline, doubt) in &doubts {
            match doubt {
                // The one stands there already, the other is no fact about the timeline.
                Doubt::Damaged(_) | Doubt::NoBackup => {}
                Doubt::Missing => problems.push(format!("timeline {timeline}: {doubt}")),
                Doubt::Refused => disputed.push(format!("timeline {timeline}: {doubt}")),
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
            if let Some(why) = unusable(backup.state) {
                let answer = Answer::Backup(BackupState::Unusable(why));
                facts.answer(Question::Backup(backup.id), answer);
            }
        }
        Ok(Self {
            archive,
            backups: backups.clone(),
            announced: None,
            stored_anew: BTreeSet::new(),
            found_beside: Vec::new(),
            believes_found: false,
            facts,
            wal: BTreeMap::new(),
            promised: None,
            problems,
            disputed,
            settled,
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
                    settled.push(format!(
                        "timeline {timeline}: the history {history} was refused; settled by {} on {}: {}",
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

/// Histories that are read at the same time, at most.
const HISTORIES_AT_ONCE: usize = 16;

/// How the timelines that have a history hang together, and which histories cannot be read. As many are read as the graph has
/// branches, and hardly more: those of the newest timelines first, and twice as many at a time as before.
async fn read_histories(
    archive: &WalArchive,
    mut unread: Vec<TimelineId>,
) -> Result<(TimelineGraph, BTreeMap<TimelineId, Doubt>)> {
    let (mut graph, mut doubts) = (TimelineGraph::default(), BTreeMap::new());
    let mut at_once = 1;
    while !unread.is_empty() {
        let some = unread.split_off(unread.len().saturating_sub(at_once));
        let read = join_all(some.iter().map(|timeline| archive.history(*timeline))).await;
        for (timeline, history) in some.into_iter().zip(read).rev() {
            // A descendant's history tells it already.
            if graph.contains(timeline) {
                continue;
            }
            match history {
                Ok(Some(history)) => graph.add(history),
                Ok(None) => {}
                Err(error @ RepoError::Corrupt { .. }) => {
                    doubts.insert(timeline, Doubt::Damaged(error.to_string()));
                }
                Err(error) => return Err(error),
            }
        }
        unread.retain(|timeline| !graph.contains(*timeline));
        at_once = (2 * at_once).min(HISTORIES_AT_ONCE);
    }
    Ok((graph, doubts))
}
