//! A cluster in one repository together with the WAL that other ones have of its lineages, as recovery reads it.
//!
//! Base backups are those of the first repository alone: a restore reads one from one repository. What was asked of the catalogs before
//! counts no more, but for the backups: the WAL of all is looked at anew.

use walpoint_base::TimelineId;
use walpoint_plan::graph::TimelineGraph;
use walpoint_plan::restore::{Answer, Doubt, Facts, Question};

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
        let (mut graph, mut doubts) = (own.graph.clone(), own.doubts.clone());
        let mut without_history = own.without_history.clone();
        let mut abandoned = own.abandoned.clone();
        for other in others {
            let theirs = &other.facts;
            for timeline in theirs.graph.ids() {
                let lost = |doubt: &Doubt| matches!(doubt, Doubt::Missing | Doubt::Damaged(_));
                let unknown = !graph.contains(timeline)
                    || without_history.contains(&timeline)
                    || doubts.get(&timeline).is_some_and(lost);
                let known =
                    !theirs.doubts.contains_key(&timeline) && !theirs.without_history.contains(&timeline);
                if let (true, true, Some(history)) = (unknown, known, theirs.graph.history(timeline)) {
                    graph.add(history.clone());
                    doubts.remove(&timeline);
                    without_history.remove(&timeline);
                }
            }
            for (timeline, doubt) in &theirs.doubts {
                if *doubt == Doubt::Refused || !graph.contains(*timeline) {
                    doubts.entry(*timeline).or_insert_with(|| doubt.clone());
                    graph.add_known(*timeline);
                }
            }
            // Under that number it may be another server's.
            let origin = |graph: &TimelineGraph, timeline| graph.history(timeline).map(TimelineOrigin::of);
            let same = |timeline: TimelineId| origin(&graph, timeline) == origin(&theirs.graph, timeline);
            let said = theirs.abandoned.iter().filter(|(timeline, _)| same(**timeline));
            abandoned.extend(said.map(|(timeline, record)| (*timeline, record.clone())));
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
            stored_anew: self.stored_anew.clone(),
            found_beside: others.iter().flat_map(|other| other.found_damaged()).collect(),
            believes_found: self.believes_found,
            facts,
            wal: std::collections::BTreeMap::new(),
            promised: None,
            problems: self.problems.clone(),
            disputed: self.disputed.clone(),
            settled: self.settled.clone(),
        }
    }
}
