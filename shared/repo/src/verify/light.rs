//! Everything that the manifests and the promised windows refer to exists, with its size: manifests are read as a whole,
//! the rest is listed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt, stream};
use jiff::{SignedDuration, Timestamp};
use walpoint_base::{BackupId, LineageId, TimelineId};
use walpoint_plan::restore::{Facts, SegmentRange, windows};
use walpoint_plan::retention::Candidate;
use walpoint_plan::runs::Runs;
use walpoint_storage::error::{Remedy, RepoError, Result};
use walpoint_storage::layout::{ClusterObject, ClusterPaths};

use super::needed::{Needed, wanted};
use super::report::{Cure, FindingKind, VerifyFinding};
use super::{Depth, Run};
use crate::backup::{AnnouncementReason, ListedBackup, ListedState, backups_to_delete};
use crate::catalog::{Catalog, LineageCatalog, wal_of};
use crate::expire::Outlook;
use crate::holds::Holds;
use crate::lineage::{LOST_LINEAGE, Lineage};

/// The segments of a lineage that are needed and there, by timeline.
pub(super) struct NeededWal {
    pub(super) lineage: Lineage,
    pub(super) timelines: BTreeMap<TimelineId, Runs>,
}

/// Between two looks for a segment that was overtaken.
const AGAIN: Duration = Duration::from_secs(1);

/// Manifests that are read at the same time, listings of packs, and packs that are looked at.
const AT_ONCE: usize = 8;

impl Run<'_> {
    /// Looks at everything by name and size; the WAL that is to be read by whoever reads more.
    pub(super) async fn light(&mut self, outlook: &Outlook) -> Result<Vec<NeededWal>> {
        let mut catalog = Catalog::load(self.repository, self.cluster).await?;
        let finished = catalog.backups().iter().filter(|b| matches!(b.state, ListedState::Finished(_)));
        let wanted = |id: &BackupId| self.options.backup.is_none_or(|only| only == *id);
        let ids: Vec<BackupId> = finished.map(|listed| listed.id).filter(wanted).collect();
        if let Some(id) = self.options.backup
            && ids.is_empty()
        {
            let (key, store) = (ClusterPaths::new(self.cluster).manifest(id), self.repository.store().name());
            return Err(RepoError::NotFound { key, store: store.to_owned() });
        }
        for damaged in &outlook.damaged_holds {
            self.report.finding(VerifyFinding {
                kind: FindingKind::Damaged,
                object: damaged.key.to_string(),
                what: damaged.what.clone(),
                backups: Vec::new(),
                moments: None,
                remedy: Cure::Hold(damaged.remedy()),
            });
        }
        for damaged in &outlook.damaged_announcements {
            self.report.finding(VerifyFinding {
                kind: FindingKind::Damaged,
                object: damaged.key.to_string(),
                what: damaged.what.clone(),
                backups: Vec::new(),
                moments: None,
                remedy: Cure::Announcement(Remedy::VerifyAll),
            });
        }
        self.given_holds().await?;
        self.key_slots().await?;
        self.manifests(ids).await?;
        self.pack_sizes().await?;
        self.lineages(&catalog).await?;
        self.unfinished(catalog.backups()).await?;
        let mut needed = Vec::new();
        for lineage in catalog.lineages_mut() {
            // It is read here, whatever was found of it before.
            lineage.believe_found_damaged();
            if self.options.depth != Depth::Full {
                lineage.know_announcements().await;
                let anew = lineage.stored_anew().iter();
                self.sound_wal
                    .extend(anew.map(|(lineage, timeline, number)| (*lineage, *timeline, number.0)));
            }
            needed.push(self.promised(lineage, outlook).await?);
        }
        for NeededWal { lineage, .. } in &needed {
            self.acknowledging(lineage).await?;
        }
        Ok(needed)
    }

    /// Whether every hold has the object that shows that it was placed.
    async fn given_holds(&mut self) -> Result<()> {
        for key in Holds::of(self.repository, self.cluster).lacking_given().await? {
            self.report.finding(VerifyFinding {
                kind: FindingKind::Missing,
                object: key.to_string(),
                what: "the object that shows that a hold was placed or removed is missing".to_owned(),
                backups: Vec::new(),
                moments: None,
                remedy: "Place or remove any hold: that stores the object again. The hold itself is a separate object.".into(),
            });
        }
        Ok(())
    }

    /// Whether it can be read which repositories acknowledge: without that a recovery may never end.
    async fn acknowledging(&mut self, lineage: &Lineage) -> Result<()> {
        let (_, damage) = self.repository.acknowledging_before_damage(lineage).await?;
        if let Some(RepoError::Corrupt { key, what, remedy }) = damage {
            self.report.finding(VerifyFinding {
                kind: FindingKind::Damaged,
                object: key.to_string(),
                what,
                backups: Vec::new(),
                moments: None,
                remedy: Cure::Acknowledging(remedy.unwrap_or(Remedy::SupersedeAgain)),
            });
        }
        Ok(())
    }

    async fn manifests(&mut self, ids: Vec<BackupId>) -> Result<()> {
        let reads = ids.into_iter().map(|id| {
            let backups = self.backups.clone();
            async move { (id, backups.open(id).await) }
        });
        let mut reads = stream::iter(reads.collect::<Vec<_>>()).buffered(AT_ONCE);
        while let Some((id, read)) = reads.next().await {
            match read {
                Ok(reader) => {
                    let user = u16::try_from(self.ids.len()).unwrap_or(u16::MAX);
                    let manifest = reader.manifest();
                    let lineage = self.lineages.entry(manifest.summary.facts.lineage);
                    lineage.or_default().push(id);
                    for pack in manifest.packs.packs() {
                        let Some(owner) = manifest.backups.get(usize::from(pack.backup.0)) else { continue };
                        let known = self.packs.entry((*owner, pack.pack.0));
                        known.or_insert_with(|| (pack.size, Vec::new())).1.push(user);
                    }
                    self.ids.push(id);
                }
                Err(error @ RepoError::Corrupt { .. }) => {
                    let key = ClusterPaths::new(self.cluster).manifest(id);
                    self.damaged_manifests.insert(id);
                    self.report.finding(VerifyFinding {
                        kind: FindingKind::Damaged,
                        object: key.to_string(),
                        what: error.to_string(),
                        backups: vec![id.to_string()],
                        moments: None,
                        remedy: "Take a backup. This one is lost here: restore from another backup or \
                            another repository."
                            .into(),
                    });
                }
                // Expired since it was listed.
                Err(RepoError::NotFound { .. } | RepoError::Refused { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        let count = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
        (self.report.backup_count, self.report.pack_count) = (count(self.ids.len()), count(self.packs.len()));
        Ok(())
    }

    /// Whether the facts of every lineage are there of which anything else is: without them nothing of it can be restored.
    async fn lineages(&mut self, catalog: &Catalog) -> Result<()> {
        let mut known: BTreeSet<LineageId> = catalog.lineages().iter().map(LineageCatalog::id).collect();
        for damaged in catalog.damaged_lineages() {
            known.insert(damaged.id);
            self.lost_lineage(FindingKind::Damaged, damaged.id, damaged.what.clone());
        }
        let stored = self.repository.stored_lineages(self.cluster).await?;
        let named = self.lineages.keys().copied();
        let missing: BTreeSet<LineageId> = named.chain(stored).filter(|id| !known.contains(id)).collect();
        if known.is_empty() && missing.is_empty() {
            self.no_lineage();
        }
        for id in missing {
            let what = "it is missing, although backups or WAL of the lineage are stored";
            self.lost_lineage(FindingKind::Missing, id, what.to_owned());
        }
        Ok(())
    }

    /// `init` stores the facts of a lineage before anything else, so there is one of every cluster.
    fn no_lineage(&mut self) {
        self.report.finding(VerifyFinding {
            kind: FindingKind::Missing,
            object: ClusterPaths::new(self.cluster).lineages().to_string(),
            what: "nothing is stored of the cluster, not even the metadata of a lineage".to_owned(),
            backups: Vec::new(),
            moments: Some("all".to_owned()),
            remedy: Cure::PutBackOrInit,
        });
    }

    /// Nothing of a lineage is found without its facts.
    fn lost_lineage(&mut self, kind: FindingKind, id: LineageId, what: String) {
        let backups = self.lineages.get(&id).map(Vec::as_slice).unwrap_or_default();
        self.report.finding(VerifyFinding {
            kind,
            object: ClusterPaths::new(self.cluster).lineage(id).to_string(),
            what,
            backups: backups.iter().map(BackupId::to_string).collect(),
            moments: Some(format!("all of lineage {id}")),
            remedy: LOST_LINEAGE.into(),
        });
    }

    /// What was finished and has lost its manifest, unless it is being deleted; and what was begun long ago and has no end.
    async fn unfinished(&mut self, listed: &[ListedBackup]) -> Result<()> {
        let mut lost: BTreeSet<BackupId> =
            listed.iter().filter(|one| one.lost_its_manifest()).map(|one| one.id).collect();
        let finished = listed.iter().filter(|one| matches!(one.state, ListedState::Finished(_)));
        // What a manifest names that cannot be read is not known.
        if self.options.backup.is_none() && finished.count() == self.ids.len() {
            lost.extend(self.without_a_name(listed).await?);
        }
        let is_old = |begun: &Timestamp| Timestamp::now().duration_since(*begun) > LONG;
        let unfinished = listed.iter().filter(|one| one.state == ListedState::Unfinished);
        let mut old: Vec<_> =
            unfinished.filter_map(|one| Some((one.id, one.begun.filter(is_old)?))).collect();
        if !(lost.is_empty() && old.is_empty()) {
            // What is deleted is announced first.
            let announced = self.backups.announcements().await?.read;
            let goes = |id: &BackupId| {
                announced.iter().map(|one| &one.announcement).any(|one| {
                    one.reason == AnnouncementReason::Expired
                        && (one.backups.contains(id) || one.packs.iter().any(|packs| packs.backup == *id))
                })
            };
            lost.retain(|id| !goes(id) && self.options.backup.is_none_or(|only| only == *id));
            let going = backups_to_delete(&announced);
            old.retain(|(id, _)| !lost.contains(id) && !going.contains(id));
        }
        for id in &lost {
            self.report.finding(VerifyFinding {
                kind: FindingKind::Missing,
                object: ClusterPaths::new(self.cluster).manifest(*id).to_string(),
                what: "the manifest is missing, although other objects of the backup are stored".to_owned(),
                backups: vec![id.to_string()],
                moments: Some("those that this backup is the only way to; others can be restored".to_owned()),
                remedy: Cure::PutBackOrExpire(*id),
            });
        }
        for (id, begun) in old {
            self.report.notes.push(format!(
                "backup {id} was begun on {begun:.0} and has no manifest: it was never finished, or its manifest is \
                 lost\nDETAIL: The next backup reuses what it stored, and expire aborts it."
            ));
        }
        Ok(())
    }

    /// Those who wrote packs that no manifest names, and of whom nothing else is there. What begins just now has an intent before it
    /// has a pack, and may not have been listed yet.
    async fn without_a_name(&self, listed: &[ListedBackup]) -> Result<Vec<BackupId>> {
        let (paths, store) = (ClusterPaths::new(self.cluster), self.repository.store());
        let mut found = Vec::new();
        for name in store.list_dirs(&paths.all_data()).await? {
            let Ok(id) = name.parse::<BackupId>() else { continue };
            if listed.iter().any(|one| one.id == id) {
                continue;
            }
            let mut listing = store.list(&paths.data(id), None);
            while let Some(entry) = listing.try_next().await? {
                let Some(ClusterObject::Pack(_, n)) = paths.parse(&entry.key) else { continue };
                let old = Timestamp::now().duration_since(entry.modified) > LONG;
                if (old || listed.is_empty()) && !self.packs.contains_key(&(id, n)) {
                    found.push(id);
                    break;
                }
            }
        }
        if listed.is_empty() && !found.is_empty() {
            // Not one intent or manifest, old or new: what has begun since has an intent by now.
            let begun = self.backups.list().await?;
            found.retain(|id| !begun.iter().any(|one| one.id == *id));
        }
        Ok(found)
    }

    async fn pack_sizes(&mut self) -> Result<()> {
        let owners: BTreeSet<BackupId> = self.packs.keys().map(|(owner, _)| *owner).collect();
        let paths = ClusterPaths::new(self.cluster);
        let lists = owners.into_iter().map(|owner| {
            let (store, paths) = (self.repository.store().clone(), paths.clone());
            async move {
                let mut there: BTreeMap<u32, u64> = BTreeMap::new();
                let mut listing = store.list(&paths.data(owner), None);
                while let Some(entry) = listing.try_next().await? {
                    if let Some(ClusterObject::Pack(_, n)) = paths.parse(&entry.key) {
                        there.insert(n, entry.size);
                    }
                }
                Ok::<_, RepoError>((owner, there))
            }
        });
        let mut lists = stream::iter(lists.collect::<Vec<_>>()).buffered(AT_ONCE);
        while let Some((owner, there)) = lists.try_next().await? {
            let of_it = self.packs.range((owner, 0)..=(owner, u32::MAX));
            let wrong = of_it.filter(|((_, n), (size, _))| there.get(n) != Some(&u64::from(*size)));
            let wrong: Vec<(u32, u64)> = wrong.map(|((_, n), (size, _))| (*n, u64::from(*size))).collect();
            // A listing that leaves something out would cost backups their place.
            let looking = wrong.into_iter().map(|(n, size)| {
                let (store, key) = (self.repository.store().clone(), paths.pack(owner, n));
                async move { store.head(&key).await.map(|there| (n, size, there)) }
            });
            let looking: Vec<_> = looking.collect();
            let mut looked = stream::iter(looking).buffered(AT_ONCE);
            while let Some((n, size, there)) = looked.try_next().await? {
                let (kind, what) = match there {
                    None => (FindingKind::Missing, "it is not there".to_owned()),
                    Some(meta) if meta.size != size => {
                        let is = meta.size;
                        (FindingKind::Size, format!("it has {is} bytes, the manifests say {size}"))
                    }
                    Some(_) => continue,
                };
                if self.is_still_used(owner, n).await? {
                    self.bad_pack(owner, n, kind, what);
                }
            }
        }
        Ok(())
    }

    /// Holds the WAL that is there against what backups and windows need.
    async fn promised(&mut self, catalog: &mut LineageCatalog, outlook: &Outlook) -> Result<NeededWal> {
        let lineage = catalog.lineage().clone();
        self.graphs.insert(lineage.id, catalog.facts().graph.clone());
        let Needed { onward, alone, need } = self.needed_by(&lineage, &outlook.decisions);
        let backups = || onward.iter().chain(&alone);
        catalog.look_for(&backups().map(wal_of).collect::<Vec<_>>()).await?;
        for backup in backups() {
            self.consistent(catalog, backup).await?;
        }
        catalog.end_looks();
        let timelines: Vec<TimelineId> = catalog.facts().graph.ids().collect();
        let mut there = BTreeMap::new();
        for timeline in timelines {
            let mut wanted = wanted(catalog, &need, timeline).await?;
            let range = |run: &walpoint_plan::runs::SegmentRun| SegmentRange {
                timeline,
                first: run.first,
                last: run.last,
            };
            let ranges: Vec<SegmentRange> = wanted.iter().map(range).collect();
            // What the index alone has is a gap.
            if !catalog.confirm(&ranges).await? {
                wanted = super::needed::wanted(catalog, &need, timeline).await?;
            }
            let gaps = |facts: &Facts| windows::gaps(facts, timeline);
            let seen = catalog.ask(None, gaps).await?;
            let mut seen: Vec<SegmentRange> =
                seen.into_iter().filter(|gap| need.needs_any(gap.timeline, gap.first, gap.last)).collect();
            let mut waited = Duration::ZERO;
            while !seen.is_empty() {
                catalog.look_again(&seen).await?;
                wanted = super::needed::wanted(catalog, &need, timeline).await?;
                if waited >= self.options.overtaken {
                    break;
                }
                let left = catalog.ask(None, gaps).await?;
                seen = catalog.overtaken(&left, self.options.overtaken).await?;
                if !seen.is_empty() {
                    tokio::time::sleep(AGAIN).await;
                    waited += AGAIN;
                }
            }
            for gap in catalog.ask(None, gaps).await? {
                if let Some(Needed { onward, .. }) = self.lost(&lineage, &gap, &need).await? {
                    self.gap(catalog, &gap, &onward);
                }
            }
            self.report.segment_count = self.report.segment_count.saturating_add(wanted.count());
            if self.options.depth != Depth::Full {
                let archive = catalog.archive().clone();
                self.parts(&archive, timeline, &mut wanted).await?;
            }
            there.insert(timeline, wanted);
        }
        // Damaged announcements have findings of their own, which name the object and the way out.
        let announcements = outlook.damaged_announcements.iter().map(|damaged| damaged.error().to_string());
        let announcements: BTreeSet<String> = announcements.collect();
        for problem in catalog.problems().into_iter().filter(|problem| !announcements.contains(problem)) {
            self.report.finding(VerifyFinding {
                kind: FindingKind::Damaged,
                object: format!("lineage {}", lineage.id),
                what: problem,
                backups: Vec::new(),
                moments: None,
                remedy: "Delete an object of the index: it is written again from the segments. Archive a history file again, \
                         from pg_wal or another repository.".into(),
            });
        }
        self.chain(catalog, &there).await?;
        Ok(NeededWal { lineage, timelines: there })
    }

    /// Whether a backup has the WAL without which it is not consistent.
    async fn consistent(&mut self, catalog: &mut LineageCatalog, backup: &Candidate) -> Result<()> {
        let id = backup.id;
        let missing = catalog.lacking(wal_of(backup)).await?;
        if !missing.is_empty() && self.is_gone(id).await? {
            return Ok(());
        }
        let (paths, size) = (catalog.archive().paths().clone(), catalog.lineage().segment_size);
        for range in missing {
            self.report.finding(VerifyFinding {
                kind: FindingKind::Missing,
                object: paths.segment(range.names(size).0).to_string(),
                what: format!("{} is not there or was stored although damaged", range.describe(size)),
                backups: vec![id.to_string()],
                moments: Some("the backup does not become consistent without it".to_owned()),
                remedy: Cure::Resupply,
            });
        }
        Ok(())
    }

    /// A gap, of which something is needed.
    fn gap(&mut self, catalog: &LineageCatalog, gap: &SegmentRange, onward: &[Candidate]) {
        let (lineage, size) = (catalog.id(), catalog.lineage().segment_size);
        let (from, until) = (gap.first.start(size), gap.last.end(size));
        let last = catalog.wal(gap.timeline).and_then(|wal| wal.runs().last());
        let at_end = last.is_none_or(|last| last < gap.first);
        // What goes on behind the end of a timeline are those that left it there.
        let graph = &catalog.facts().graph;
        let goes_on = |id: TimelineId| match at_end {
            true => graph.history(id).is_some_and(|path| path.timeline_at(until - 1) == gap.timeline),
            false => id == gap.timeline,
        };
        let next = onward.iter().filter(|b| goes_on(b.id.timeline()) && b.id.start() >= until);
        let next = next.min_by_key(|backup| backup.id.start()).map(|backup| backup.id);
        let before = onward.iter().filter(|b| b.id.timeline() <= gap.timeline && b.stop <= from);
        let upto = next.map_or("the end of the archive".to_owned(), |id| format!("backup {id}"));
        let on = match at_end {
            true => format!("timeline {} and what goes on from it", gap.timeline),
            false => format!("timeline {}", gap.timeline),
        };
        self.report.finding(VerifyFinding {
            kind: FindingKind::Gap,
            object: format!("{lineage}: {}", gap.describe(size)),
            what: format!("missing on timeline {} from {from} to {until}", gap.timeline),
            backups: before.map(|backup| backup.id.to_string()).collect(),
            moments: Some(format!("from {from} up to {upto} on {on}")),
            remedy: Cure::ResupplyOrBackup("the gap"),
        });
    }
}

/// A backup that was begun so long ago is hardly running.
const LONG: SignedDuration = SignedDuration::from_hours(24);
