//! What deciding depends on.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use jiff::Timestamp;
use walpoint_base::{BackupId, LineageId, Lsn, TimelineId};

use super::request::DeletionRequest;
use crate::graph::TimelineGraph;

/// A finished backup.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Candidate {
    /// Its id; also tells the timeline and the redo position it starts at.
    pub id: BackupId,
    /// The lineage whose WAL it needs.
    pub lineage: LineageId,
    /// When it was complete, by the clock of its server: what its age is counted from.
    pub ended: Timestamp,
    /// When the store had its manifest, by the store's clock: it was complete by then.
    pub complete_by: Timestamp,
    /// The latest time at which a transaction ended that it holds, as far as it notes one.
    pub latest_commit: Option<Timestamp>,
    /// From where on it is consistent.
    pub stop: Lsn,
    /// The timeline of the byte before that.
    pub stop_timeline: TimelineId,
    /// Its label; may be empty.
    pub label: String,
    /// What is known to be wrong with it.
    pub damage: Damage,
}

impl Candidate {
    /// Whether nothing is known to be wrong with it.
    pub fn is_sound(&self) -> bool {
        self.soundness() == Soundness::Sound
    }

    /// How much of it can be had.
    pub fn soundness(&self) -> Soundness {
        match self.damage {
            Damage { packs: 0, segments: 0, history: false, manifest: false, pages } => {
                if pages == 0 {
                    Soundness::Sound
                } else {
                    Soundness::Flawed
                }
            }
            _ => Soundness::Broken,
        }
    }
}

/// How much of a backup can be had, the least first. What there is less of never takes the place of what there is more of.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Soundness {
    /// Some of it is damaged or missing in the repository, or of the WAL without which it is not consistent.
    Broken,
    /// It can be restored to what was read; some of the pages were damaged in the cluster itself.
    Flawed,
    /// Nothing is known to be wrong with it.
    Sound,
}

impl Soundness {
    /// All of them, the best first.
    pub(super) const BEST_FIRST: [Self; 3] = [Self::Sound, Self::Flawed, Self::Broken];
}

/// What is known to be wrong with a backup. Prints as a phrase: "3 damaged pages".
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Damage {
    /// Pages whose checksum was wrong when they were read from the cluster.
    pub pages: u64,
    /// Packs with blocks of it that were found damaged or missing in the repository.
    pub packs: u64,
    /// Segments without which it does not become consistent that are missing, or were found damaged in the repository.
    pub segments: u64,
    /// Whether the history that leads to its timeline is missing, or was found damaged.
    pub history: bool,
    /// Whether its own list of files was found damaged in the repository.
    pub manifest: bool,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [
            (self.pages, "damaged pages"),
            (self.packs, "damaged or missing packs"),
            (self.segments, "damaged or missing WAL segments"),
        ];
        let parts = parts.iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{n} {what}"));
        let mut parts: Vec<String> = parts.collect();
        parts.extend(self.manifest.then(|| "a damaged manifest".to_owned()));
        parts.extend(self.history.then(|| "no history of its timeline that can be read".to_owned()));
        if parts.is_empty() {
            return write!(f, "no damage");
        }
        write!(f, "{}", parts.join(" and "))
    }
}

/// A lineage, as far as retention looks at it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RetainedLineage {
    /// Which one.
    pub lineage: LineageId,
    /// Its timelines.
    pub graph: TimelineGraph,
    /// The lineage that it goes on from; `None` for the first one of a family.
    pub succeeds: Option<LineageId>,
    /// When the cluster went on in another lineage; `None` for one that is in use.
    pub superseded: Option<Timestamp>,
    /// When its timelines were in use.
    pub timelines: BTreeMap<TimelineId, RetainedTimeline>,
    /// Backups of the lineages that it was split off from, made before it was: it can be recovered from them as well.
    pub inherits: BTreeSet<BackupId>,
    /// Backups of those lineages of which it is not known whether they lead to it, because a history cannot be read.
    pub may_inherit: BTreeSet<BackupId>,
    /// Timelines that were written beside its newest one: none is known to have taken the place of another.
    pub beside: BTreeSet<TimelineId>,
    /// The WAL that is missing: for each gap whose it is, and the last byte of the first segment.
    pub gaps: BTreeSet<(TimelineId, Lsn)>,
}

/// When a timeline was in use.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct RetainedTimeline {
    /// When its newest WAL was stored.
    pub written: Option<Timestamp>,
    /// When a newer timeline of the lineage began; `None` for the newest one.
    pub superseded: Option<Timestamp>,
    /// Whether its history is stored, and it was not settled as abandoned: a server was promoted to it.
    pub began: bool,
}

/// A hold that is in force or has run out; never one that was removed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HoldFacts {
    /// Its number.
    pub number: u64,
    /// The backup it is on; `None` for one on a label.
    pub backup: Option<BackupId>,
    /// The label it is on.
    pub label: Option<String>,
    /// Why.
    pub reason: String,
    /// Who placed it.
    pub who: String,
    /// When it ends; `None`: when somebody removes it.
    pub until: Option<Timestamp>,
}

impl HoldFacts {
    /// Whether it keeps a backup at that time.
    pub fn keeps(&self, backup: &Candidate, now: Timestamp) -> bool {
        let in_force = self.until.is_none_or(|until| now < until);
        let by_label = self.label.as_ref().is_some_and(|label| *label == backup.label);
        in_force && (self.backup == Some(backup.id) || by_label)
    }
}

/// All of it, in any order.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct RetentionFacts {
    /// The finished backups of the cluster.
    pub backups: Vec<Candidate>,
    /// Its lineages.
    pub lives: Vec<RetainedLineage>,
    /// Its holds.
    pub holds: Vec<HoldFacts>,
    /// Backups that were asked to be deleted by name.
    pub requests: Vec<DeletionRequest>,
}

impl RetainedLineage {
    /// The timelines that were in use after `moment`: a moment after it may have to be recovered on them.
    pub(super) fn in_use_after(&self, moment: Timestamp) -> impl Iterator<Item = TimelineId> + '_ {
        let after = move |time: Option<Timestamp>| time.is_none_or(|time| time >= moment);
        let lives = after(self.superseded);
        self.graph.ids().filter(move |id| {
            let life = self.timelines.get(id).copied().unwrap_or_default();
            let superseded = life.superseded.filter(|_| !self.beside.contains(id));
            life.written.is_some_and(|at| at >= moment) || (lives && after(superseded))
        })
    }

    /// The newest timeline that has WAL.
    pub(super) fn newest(&self) -> Option<TimelineId> {
        let written = self.timelines.iter().filter(|(_, life)| life.written.is_some());
        written.map(|(timeline, _)| *timeline).next_back()
    }

    /// Whether a server was promoted to a timeline behind the newest one that has WAL, and has archived none yet. It may be that one's,
    /// or another one's.
    pub(super) fn has_only_begun(&self, timeline: TimelineId) -> bool {
        self.newest().is_none_or(|newest| timeline > newest)
            && self.timelines.get(&timeline).is_some_and(|life| life.began)
    }

    /// The timelines that a server of the lineage may still be writing: the newest one that has WAL, those beside it, and those behind
    /// it that have a history only. None if the cluster went on in another lineage.
    pub(super) fn in_use(&self) -> BTreeSet<TimelineId> {
        if self.superseded.is_some() {
            return BTreeSet::new();
        }
        let begun = self.timelines.keys().copied().filter(|timeline| self.has_only_begun(*timeline));
        self.newest().into_iter().chain(self.beside.iter().copied()).chain(begun).collect()
    }

    /// The timelines that are written beside the newest one.
    pub(super) fn in_use_beside(&self) -> BTreeSet<TimelineId> {
        let (mut beside, newest) = (self.in_use(), self.newest());
        beside.retain(|timeline| Some(*timeline) != newest && !self.has_only_begun(*timeline));
        beside
    }

    /// Whether recovery from a backup leads to a timeline beside the newest one and not to that.
    pub(super) fn is_only_beside(&self, backup: &Candidate) -> bool {
        let leads = |timeline: &TimelineId| self.leads_from(backup, *timeline);
        self.in_use_beside().iter().any(leads) && !self.newest().iter().any(leads)
    }

    /// Whether recovery from a backup of this lineage can follow the path to `timeline`.
    pub(super) fn leads_from(&self, backup: &Candidate, timeline: TimelineId) -> bool {
        backup.lineage == self.lineage && self.has_on_path(backup, timeline)
    }

    /// Whether recovery from a backup of a lineage that it was split off from can follow the path to `timeline`.
    pub(super) fn leads_from_parent(&self, backup: &Candidate, timeline: TimelineId) -> bool {
        self.inherits.contains(&backup.id) && self.has_on_path(backup, timeline)
    }

    /// Whether WAL is missing between a backup that leads to `timeline` and the end of that. It may be archived again, so such a
    /// backup is none the less kept; but it stands in for no other one.
    pub(super) fn is_cut_off(&self, backup: &Candidate, timeline: TimelineId) -> bool {
        let path = self.graph.history(timeline);
        let mut behind = self.gaps.iter().filter(|(_, at)| *at >= backup.stop);
        path.is_some_and(|path| behind.any(|(of, at)| path.timeline_at(*at) == *of))
    }

    fn has_on_path(&self, backup: &Candidate, timeline: TimelineId) -> bool {
        self.graph.history(timeline).is_some_and(|path| {
            path.timeline_at(backup.id.start()) == backup.id.timeline()
                && path.timeline_at(backup.stop - 1) == backup.stop_timeline
        })
    }
}
