//! A cluster in one repository together with the WAL that other ones have of its lineages, as recovery reads it.
//!
//! Base backups are those of the first repository alone: a restore reads one from one repository. What was asked of the catalogs before
//! counts no more, but for the backups: the WAL of all is looked at anew.

use std::collections::{BTreeMap, BTreeSet};

use walpoint_base::TimelineId;
use walpoint_plan::graph::TimelineGraph;
use walpoint_plan::restore::{Answer, Doubt, Facts, Question};

use super::histories::unsettled_contradictions;
use super::{Catalog, LineageCatalog};
use crate::wal::{TimelineOrigin, WalArchive};

impl Catalog {
    /// This cluster with the WAL that others have of the same lineages.
    pub fn joined<'a>(&self, others: impl Iterator<Item = &'a Self> + Clone) -> Self {
        let lineages = self.lineages.iter().map(|own| {
            let same = others.clone().flat_map(Self::lineages);
            own.joined(&same.filter(|other| own.lineage().is_same_life(other.lineage())).collect::<Vec<_>>())
        });
        Self {
            repository: self.repository.clone(),
            cluster: self.cluster.clone(),
            backups: self.backups.clone(),
            lineages: lineages.collect(),
            damaged: self.damaged.clone(),
            loaded: self.loaded,
        }
    }
}

impl LineageCatalog {
    fn joined(&self, others: &[&Self]) -> Self {
        let beside: Vec<WalArchive> = others.iter().map(|other| other.archive.clone()).collect();
        let own = &self.facts;
        let (mut doubts, mut without_history) = (own.doubts.clone(), own.without_history.clone());
        let (mut abandoned, mut counted) = (own.abandoned.clone(), self.counted.clone());
        let mut stored = own.graph.stored().clone();
        let mut known: BTreeSet<TimelineId> = own.graph.ids().collect();
        for theirs in others.iter().map(|other| &other.facts) {
            let certain = |timeline: &TimelineId| !theirs.doubts.contains_key(timeline);
            for (timeline, history) in theirs.graph.stored().iter().filter(|(timeline, _)| certain(timeline))
            {
                stored.entry(*timeline).or_insert_with(|| history.clone());
            }
            for timeline in theirs.graph.ids().filter(certain) {
                known.insert(timeline);
                if !theirs.without_history.contains(&timeline) {
                    let lost = |doubt: &Doubt| matches!(doubt, Doubt::Missing | Doubt::Damaged(_));
                    doubts.retain(|of, doubt| *of != timeline || !lost(doubt));
                    without_history.remove(&timeline);
                }
            }
        }
        // A repository may know what shows that a timeline of another one is another server's.
        let said = others.iter().flat_map(|other| other.facts.abandoned.keys());
        let claimed =
            doubts.iter().filter(|(_, doubt)| doubt.is_of_two_servers()).map(|(timeline, _)| timeline);
        let last = said.chain(claimed).chain(abandoned.keys()).copied().collect();
        let (mut graph, contradictions) = TimelineGraph::of(stored.into_values(), &last);
        known.into_iter().for_each(|timeline| graph.add_known(timeline));
        for other in others {
            let theirs = &other.facts;
            for (timeline, doubt) in &theirs.doubts {
                if doubt.is_of_two_servers() || !graph.contains(*timeline) {
                    doubts.entry(*timeline).or_insert_with(|| doubt.clone());
                    graph.add_known(*timeline);
                }
            }
            // Under that number it may be another server's.
            let origin = |graph: &TimelineGraph, timeline| {
                graph.stored().get(&timeline).or_else(|| graph.history(timeline)).map(TimelineOrigin::of)
            };
            let same = |timeline: TimelineId| origin(&graph, timeline) == origin(&theirs.graph, timeline);
            let said = theirs.abandoned.iter().filter(|(timeline, _)| same(**timeline));
            abandoned.extend(said.map(|(timeline, record)| (*timeline, record.clone())));
        }
        for other in others {
            let theirs = other.facts.graph.stored();
            let same = |timeline: &TimelineId| theirs.get(timeline) == graph.stored().get(timeline);
            counted.extend(other.counted.iter().copied().filter(same));
        }
        for (timeline, doubt) in unsettled_contradictions(contradictions, &graph, &abandoned, &counted) {
            doubts.entry(timeline).or_insert(doubt);
        }
        let mut facts = Facts::new(own.lineage, own.major, own.segment_size, graph, own.backups.clone());
        (facts.doubts, facts.without_history, facts.abandoned) = (doubts, without_history, abandoned);
        for id in &own.backups {
            if let Ok(state) = own.backup(*id) {
                facts.answer(Question::Backup(*id), Answer::Backup(state.clone()));
            }
        }
        Self {
            archive: self.archive.joined(beside),
            backups: self.backups.clone(),
            announced: self.announced.clone(),
            unread_announcements: self.unread_announcements.clone(),
            stored_anew: self.stored_anew.clone(),
            found_beside: others.iter().flat_map(|other| other.found_damaged()).collect(),
            believes_found: self.believes_found,
            facts,
            wal: BTreeMap::new(),
            promised: None,
            problems: self.problems.clone(),
            disputed: self.disputed.clone(),
            settled: self.settled.clone(),
            counted,
            looked: BTreeSet::new(),
            undecoded: false,
        }
    }
}
