//! The facts that retention and reachability depend on, read anew for each step.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::TryStreamExt;
use jiff::Timestamp;
use walpoint_base::{BackupId, ClusterName, LineageId, TimelineId};
use walpoint_plan::graph::TimelineGraph;
use walpoint_plan::restore::Doubt;
use walpoint_plan::retention::{
    self, Candidate, Damage, DeletionRequest, HoldFacts, Protection, RegisteredLineage, RetainedLineage,
    RetainedTimeline, RetentionFacts, standings,
};
use walpoint_storage::error::{Remark, Remedy, RepoError, Result};
use walpoint_storage::layout::ClusterPaths;

use super::soundness::{Pack, PackLengths, Proven, prove};
use crate::Repository;
use crate::backup::{
    AnnouncedSet, AnnouncementReason, Announcements, BackupSummary, Backups, DamagedAnnouncement, Intent,
    ListedBackup, ListedState, ManifestState, NumberedAnnouncement, backups_to_delete,
};
use crate::catalog::{Catalog, LineageCatalog, newer_than, stored_histories, wal_of};
use crate::holds::{DamagedHold, Holdings, Holds};
use crate::lineage::{DamagedLineage, LOST_LINEAGE, Lineage};
use crate::wal::WalArchive;

/// What a cluster has, as far as it matters here.
#[derive(Debug)]
pub(super) struct Gathered {
    /// For [`walpoint_plan::retention`].
    pub(super) facts: RetentionFacts,
    pub(super) lineages: Vec<LineageFacts>,
    /// Backups without a manifest.
    pub(super) unfinished: Vec<Unfinished>,
    /// Backups that were aborted, and when.
    pub(super) aborted: Vec<(BackupId, Timestamp)>,
    /// Finished backups whose manifest cannot be read.
    pub(super) unreadable: Vec<BackupId>,
    /// Packs that readable manifests name and that are missing, or not as long as what was written. Known after
    /// [`Self::read_for_deletion`].
    pub(super) lost: BTreeSet<Pack>,
    /// Packs that readable manifests name and that were announced as damaged. Known then, too.
    pub(super) announced: BTreeSet<Pack>,
    /// Announcements of damage that name segments without which one of the backups does not become consistent, by number.
    pub(super) by_wal: BTreeSet<u64>,
    /// Holds that cannot be read: then nothing may be deleted.
    pub(super) damaged_holds: Vec<DamagedHold>,
    /// Announcements that cannot be read: then nothing may be deleted either.
    pub(super) damaged_announcements: Vec<DamagedAnnouncement>,
    /// Lineages whose facts are gone, though backups or WAL of them are there: then, too.
    pub(super) lost_lineages: Vec<LineageId>,
    /// Lineages whose facts are damaged.
    pub(super) damaged_lineages: Vec<DamagedLineage>,
    /// What an operator should know.
    pub(super) notes: Vec<String>,
    /// Backups that cannot be read, and what follows.
    pub(super) unreadables: Vec<Remark>,
}

/// A lineage, and whether what hangs together in it is known.
#[derive(Debug)]
pub(super) struct LineageFacts {
    pub(super) lineage: Lineage,
    pub(super) graph: TimelineGraph,
    /// Whether every history could be read.
    pub(super) known: bool,
}

/// A backup without a manifest.
#[derive(Clone, Debug)]
pub(super) struct Unfinished {
    pub(super) id: BackupId,
    /// What it said when it began; `None` if that cannot be read.
    pub(super) intent: Option<Intent>,
    /// When that was stored, by the store's clock.
    pub(super) begun: Timestamp,
    /// When it last stored anything, by the store's clock.
    pub(super) seen: Timestamp,
}

/// What is read of finished backups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reading {
    /// Copies of their summaries, where there are such.
    Copies,
    /// Their whole manifests.
    Manifests,
}

impl Gathered {
    /// Reads it. `now` is the store's time. Of finished backups it reads copies of their summaries where there are such: enough to
    /// say what would be decided.
    pub(super) async fn read(repository: &Repository, cluster: &ClusterName, now: Timestamp) -> Result<Self> {
        Self::read_by(repository, cluster, now, Reading::Copies).await
    }

    async fn read_by(
        repository: &Repository,
        cluster: &ClusterName,
        now: Timestamp,
        reading: Reading,
    ) -> Result<Self> {
        let backups = Backups::of(repository, cluster);
        // Holds first: one that is placed while a backup is looked at belongs to the next run.
        let Holdings { holds, damaged } = Holds::of(repository, cluster).look().await?;
        let mut catalog = Catalog::load(repository, cluster).await?;
        let mut gathered = Self {
            facts: RetentionFacts {
                holds: holds.iter().filter_map(crate::holds::Hold::held).collect(),
                ..RetentionFacts::default()
            },
            lineages: Vec::new(),
            unfinished: Vec::new(),
            aborted: Vec::new(),
            unreadable: Vec::new(),
            lost: BTreeSet::new(),
            announced: BTreeSet::new(),
            by_wal: BTreeSet::new(),
            damaged_holds: damaged,
            damaged_announcements: Vec::new(),
            lost_lineages: Vec::new(),
            damaged_lineages: catalog.damaged_lineages().to_vec(),
            notes: Vec::new(),
            unreadables: Vec::new(),
        };
        for held in gathered.facts.holds.iter().filter(|h| h.until.is_none_or(|until| now < until)) {
            let known = catalog.backups().iter().any(|listed| Some(listed.id) == held.backup);
            if let Some(id) = held.backup.filter(|_| !known) {
                gathered
                    .notes
                    .push(format!("hold {} is on backup {id}, which does not exist here", held.number));
            }
        }
        let Announcements { read: announced, damaged } = backups.announcements().await?;
        gathered.damaged_announcements = damaged;
        gathered.facts.requests =
            announced.iter().flat_map(|one| &one.announcement.requests).map(DeletionRequest::from).collect();
        gathered.sort_backups(&backups, catalog.backups(), &announced, reading).await?;
        gathered.find_missing_wal(&mut catalog, &announced).await?;
        for request in std::mem::take(&mut gathered.facts.requests) {
            gathered.ask(request, now);
        }
        for lineage in catalog.lineages() {
            gathered.add_lineage(lineage).await?;
        }
        super::soundness::find_gaps(&mut gathered, &mut catalog).await?;
        super::beside::find(&mut gathered, &mut catalog).await?;
        gathered.find_successors();
        gathered.find_lost_lineages(repository, cluster).await?;
        Ok(gathered)
    }

    /// The same from whole manifests, if every hold and every announcement can be read: what is kept instead of what is deleted has to be there.
    pub(super) async fn read_for_deletion(
        repository: &Repository,
        cluster: &ClusterName,
        now: Timestamp,
    ) -> Result<Self> {
        let mut gathered = Self::read_by(repository, cluster, now, Reading::Manifests).await?;
        if let Some(damaged) = gathered.damaged_holds.pop() {
            return Err(damaged.error());
        }
        if let Some(damaged) = gathered.damaged_lineages.pop() {
            return Err(damaged.error());
        }
        if let Some(id) = gathered.lost_lineages.pop() {
            let what = format!(
                "it is missing, although backups or WAL of the lineage are stored\nHINT: {LOST_LINEAGE}"
            );
            return Err(RepoError::corrupt(&ClusterPaths::new(cluster).lineage(id), what));
        }
        match gathered.damaged_announcements.pop() {
            Some(damaged) => Err(damaged.error()),
            None => Ok(gathered),
        }
    }

    /// Whether there is a backup of which it is not known what it needs.
    pub(super) fn has_unreadable(&self) -> bool {
        !self.unreadable.is_empty()
    }

    /// Notes a backup that cannot be read, and that a person may give it up.
    fn cannot_read(&mut self, id: BackupId, what: String) {
        self.unreadables.push(Remark { what, remedy: Some(Remedy::ExpireBackup(id)) });
        self.unreadable.push(id);
    }

    /// What an unfinished backup said that it builds on; nothing if that cannot be read.
    async fn intent(&mut self, backups: &Backups, id: BackupId) -> Result<Option<Intent>> {
        match backups.intent(id).await {
            Ok(intent) => Ok(intent),
            Err(error @ RepoError::Corrupt { .. }) => {
                self.notes.push(format!(
                    "{error}\nDETAIL: It is unknown which objects the backup uses, so nothing older than \
                     the backup is deleted."
                ));
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Sorts the listed backups by what the listing tells of them. Returns the finished ones, and when the store had their manifests.
    async fn sort_listed(
        &mut self,
        backups: &Backups,
        listed: &[ListedBackup],
        announced: &[NumberedAnnouncement],
    ) -> Result<BTreeMap<BackupId, Timestamp>> {
        let (mut stored, going) = (BTreeMap::new(), backups_to_delete(announced));
        for one in listed {
            match (one.state, one.begun) {
                (ListedState::Finished(at), _) => {
                    stored.insert(one.id, at);
                }
                (ListedState::Aborted(at), _) => self.aborted.push((one.id, at)),
                // It is being deleted, and no process will finish it.
                (ListedState::Unfinished, _) if going.contains(&one.id) => {}
                // What it needs is as little known as of one whose manifest is damaged.
                (ListedState::Unfinished, _) if one.lost_its_manifest() => {
                    let id = one.id;
                    let lost = format!("the manifest of backup {id} is lost");
                    self.cannot_read(
                        id,
                        format!(
                            "{lost}\nDETAIL: It is unknown which packs the backup needs, so all older packs are kept."
                        ),
                    );
                }
                (ListedState::Unfinished, Some(begun)) => {
                    let intent = self.intent(backups, one.id).await?;
                    let seen = last_sign(backups, one.id, begun).await?;
                    self.unfinished.push(Unfinished { id: one.id, intent, begun, seen });
                }
                // Its intent is gone already: what is left of a backup that is being deleted.
                (ListedState::Unfinished, None) => {}
            }
        }
        Ok(stored)
    }

    async fn sort_backups(
        &mut self,
        backups: &Backups,
        listed: &[ListedBackup],
        announced: &[NumberedAnnouncement],
        reading: Reading,
    ) -> Result<()> {
        let stored = self.sort_listed(backups, listed, announced).await?;
        let finished: Vec<BackupId> = stored.keys().copied().collect();
        let mut uses = BTreeMap::new();
        let proven = match reading {
            Reading::Copies => {
                let standings = backups.standings(&finished, usize::MAX).await?;
                standings.into_iter().map(|(id, standing)| (id, standing.map(Proven::plain))).collect()
            }
            Reading::Manifests => {
                let stored = PackLengths::list(backups).await?;
                prove(backups, finished, &stored, &damaged_of(announced)).await
            }
        };
        for (id, proven) in proven {
            let Proven { standing, lost, announced, manifest } = match proven {
                Ok(proven) => proven,
                Err(error @ RepoError::Corrupt { .. }) => {
                    let kept = "It is unknown which packs the backup needs, so the backup and all older \
                        packs are kept.";
                    self.cannot_read(id, format!("{error}\nDETAIL: {kept}"));
                    continue;
                }
                Err(error) => return Err(error),
            };
            match standing {
                ManifestState::Finished(summary) => {
                    let packs = lost.union(&announced).count();
                    let packs = u64::try_from(packs).unwrap_or(u64::MAX);
                    let pages = summary.totals.bad_pages;
                    let damage = Damage { pages, packs, manifest, ..Damage::default() };
                    self.facts.backups.push(candidate(&summary, stored.get(&id).copied(), damage));
                    uses.insert(id, summary.parents);
                    self.lost.extend(lost);
                    self.announced.extend(announced);
                }
                // Read and not found, and listed all the same: absence is proven, or nothing is deleted for it.
                ManifestState::Unfinished if backups.lists_manifest(id).await? => {
                    self.notes.push(format!(
                        "{}: the store lists it, but reports that it does not exist\nDETAIL: It is unknown \
                         which packs the backup needs, so the backup and all older packs are kept.",
                        backups.paths().manifest(id)
                    ));
                    self.unreadable.push(id);
                }
                // Deleted by another expire meanwhile.
                ManifestState::Unfinished => {}
                ManifestState::Aborted(tombstone) => self.aborted.push((id, tombstone.ended)),
            }
        }
        if reading == Reading::Copies {
            let found = backups.found_damaged(&uses, announced).await?;
            for candidate in &mut self.facts.backups {
                let found = found.get(&candidate.id).copied().unwrap_or_default();
                (candidate.damage.packs, candidate.damage.manifest) = (found.packs, found.manifest);
            }
        }
        Ok(())
    }

    /// Finds the backups that do not become consistent, because WAL is missing or was announced as damaged.
    async fn find_missing_wal(
        &mut self,
        catalog: &mut Catalog,
        announced: &[NumberedAnnouncement],
    ) -> Result<()> {
        for lineage in catalog.lineages_mut() {
            let id = lineage.id();
            let of_it = self.facts.backups.iter().filter(|candidate| candidate.lineage == id);
            lineage.look_for(&of_it.map(wal_of).collect::<Vec<_>>()).await?;
            for candidate in self.facts.backups.iter_mut().filter(|candidate| candidate.lineage == id) {
                let lacking = lineage.lacks(wal_of(candidate), announced).await?;
                candidate.damage.segments = lacking.segments;
                candidate.damage.history = lacking.history;
                self.by_wal.extend(lacking.announced);
            }
            lineage.end_looks();
        }
        Ok(())
    }

    /// Notes that a backup is to be deleted by name. What one needs that cannot be read no longer matters then.
    pub(super) fn ask(&mut self, request: DeletionRequest, now: Timestamp) {
        let held = self.holds_on_unreadable(request.backup, now);
        if held.iter().all(|hold| hold.is_overridden(&request)) {
            self.unreadable.retain(|id| *id != request.backup);
        }
        self.facts.requests.push(request);
    }

    /// The holds in force on a backup that cannot be read, and those on labels: which label it has is not known.
    pub(super) fn holds_on_unreadable(&self, id: BackupId, now: Timestamp) -> Vec<Protection> {
        let in_force = |hold: &&HoldFacts| hold.until.is_none_or(|until| now < until);
        let may_be_on_it = |hold: &&HoldFacts| {
            (hold.backup == Some(id) || hold.label.is_some()) && self.unreadable.contains(&id)
        };
        let holds = self.facts.holds.iter().filter(in_force).filter(may_be_on_it);
        holds.map(|h| Protection::Hold(h.number, h.reason.clone(), h.who.clone(), h.until)).collect()
    }

    async fn add_lineage(&mut self, catalog: &LineageCatalog) -> Result<()> {
        let (lineage, archive) = (catalog.lineage().clone(), catalog.archive());
        let mut graph = catalog.facts().graph.clone();
        let of_it = self.facts.backups.iter().filter(|backup| backup.lineage == lineage.id);
        of_it.flat_map(|b| [b.id.timeline(), b.stop_timeline]).for_each(|timeline| graph.add_known(timeline));
        let problems = catalog.unread();
        for problem in &problems {
            self.notes.push(format!("{problem}\nDETAIL: All WAL of lineage {} is kept.", lineage.id));
        }
        for dispute in catalog.disputed() {
            self.notes.push(format!("{dispute}: in lineage {} the stored one counts", lineage.id));
        }
        // What such a timeline needs of its ancestors' WAL is not what it seems to be.
        let doubts = &catalog.facts().doubts;
        let contradicts = |id: &TimelineId| matches!(doubts.get(id), Some(Doubt::OtherAncestor(_)));
        let hangs_together = !doubts.keys().any(contradicts);
        if !hangs_together {
            self.notes.push(format!("all WAL of lineage {} is kept until that is settled", lineage.id));
        }
        let began = stored_histories(archive).await?;
        let mut life = RetainedLineage {
            lineage: lineage.id,
            graph: graph.clone(),
            succeeds: None,
            superseded: None,
            timelines: BTreeMap::new(),
            inherits: BTreeSet::new(),
            may_inherit: BTreeSet::new(),
            beside: BTreeSet::new(),
            gaps: BTreeSet::new(),
        };
        let shared = |b: &&Candidate| archive.shares(b.lineage, b.stop_timeline, b.stop);
        life.inherits.extend(self.facts.backups.iter().filter(shared).map(|backup| backup.id));
        let doubtful = |b: &&Candidate| !shared(b) && archive.may_share(b.lineage, b.stop_timeline, b.stop);
        life.may_inherit.extend(self.facts.backups.iter().filter(doubtful).map(|backup| backup.id));
        for timeline in graph.ids() {
            let abandoned = &catalog.facts().abandoned;
            let counts = |id: &TimelineId| !abandoned.contains_key(id) && !contradicts(id);
            let superseded =
                newer_than(timeline, &began).filter(|(id, _)| counts(id)).map(|(_, at)| *at).min();
            // An abandoned timeline is not the one in use, however new it is.
            let retained = match abandoned.get(&timeline) {
                Some(record) => {
                    let superseded = superseded.or(Some(record.settled));
                    RetainedTimeline { written: None, superseded, began: false }
                }
                None => {
                    let written = newest(archive, timeline).await?;
                    let began = began.iter().any(|(id, _)| *id == timeline);
                    RetainedTimeline { written, superseded, began }
                }
            };
            life.timelines.insert(timeline, retained);
        }
        self.facts.lives.push(life);
        self.lineages.push(LineageFacts { lineage, graph, known: problems.is_empty() && hangs_together });
        Ok(())
    }

    /// Finds the lineages of which there is something and whose facts are not there.
    async fn find_lost_lineages(&mut self, repository: &Repository, cluster: &ClusterName) -> Result<()> {
        let mut missing: BTreeSet<LineageId> =
            self.facts.backups.iter().map(|backup| backup.lineage).collect();
        missing.extend(repository.stored_lineages(cluster).await?);
        missing.retain(|id| !self.lineages.iter().any(|facts| facts.lineage.id == *id));
        missing.retain(|id| !self.damaged_lineages.iter().any(|damaged| damaged.id == *id));
        self.notes.extend(self.damaged_lineages.iter().map(DamagedLineage::to_string));
        let note = |id: &LineageId| format!("the metadata of lineage {id} is missing\nHINT: {LOST_LINEAGE}");
        self.notes.extend(missing.iter().map(note));
        self.lost_lineages.extend(missing);
        Ok(())
    }

    /// Finds which lineage goes on from which.
    fn find_successors(&mut self) {
        let registered: Vec<RegisteredLineage> =
            self.lineages.iter().map(|facts| self.registered(&facts.lineage)).collect();
        let standings = standings(&registered);
        for life in &mut self.facts.lives {
            let retention::LineageStanding { succeeds, superseded } =
                standings.get(&life.lineage).copied().unwrap_or_default();
            (life.succeeds, life.superseded) = (succeeds, superseded);
        }
    }

    fn registered(&self, lineage: &Lineage) -> RegisteredLineage {
        let lives = self.facts.lives.iter().filter(|life| life.lineage == lineage.id);
        let backups = self.facts.backups.iter().filter(|backup| backup.lineage == lineage.id);
        RegisteredLineage {
            lineage: lineage.id,
            created: lineage.created,
            split_off: lineage.parent.is_some(),
            written: lives.flat_map(|life| life.timelines.values()).filter_map(|life| life.written).max(),
            first_backup: backups.map(|backup| backup.ended).min(),
        }
    }
}

/// What was announced as damaged.
fn damaged_of(announced: &[NumberedAnnouncement]) -> AnnouncedSet {
    let damaged = announced.iter().filter(|one| one.announcement.reason == AnnouncementReason::Damaged);
    AnnouncedSet::new(damaged.map(|one| &one.announcement))
}

fn candidate(summary: &BackupSummary, stored: Option<Timestamp>, damage: Damage) -> Candidate {
    let facts = &summary.facts;
    Candidate {
        id: summary.id,
        lineage: facts.lineage,
        ended: facts.ended,
        complete_by: stored.unwrap_or(facts.ended),
        latest_commit: facts.latest_commit,
        stop: facts.stop_lsn,
        stop_timeline: facts.stop_timeline,
        label: facts.label.clone(),
        damage,
    }
}

/// When an unfinished backup last stored anything: its progress, or a pack.
async fn last_sign(backups: &Backups, id: BackupId, begun: Timestamp) -> Result<Timestamp> {
    let mut last = begun;
    for prefix in [backups.paths().backup(id), backups.paths().data(id)] {
        let mut listing = backups.store().list(&prefix, None);
        while let Some(entry) = listing.try_next().await? {
            last = last.max(entry.modified);
        }
    }
    Ok(last)
}

/// When the newest WAL of a timeline was stored: two listings, of the logs and of the last one.
async fn newest(archive: &WalArchive, timeline: TimelineId) -> Result<Option<Timestamp>> {
    let store = archive.repository().store();
    let logs = store.list_dirs(&archive.paths().timeline(timeline)).await?;
    let last = logs.iter().filter_map(|log| u32::from_str_radix(log, 16).ok()).max();
    let Some(last) = last else { return Ok(None) };
    let mut listing = store.list(&archive.paths().log(timeline, last), None);
    let mut newest = None;
    while let Some(entry) = listing.try_next().await? {
        newest = newest.max(Some(entry.modified));
    }
    Ok(newest)
}
