//! Saying what is damaged to all who read the repository, and taking it back where it is whole again.

use std::collections::BTreeSet;

use futures_util::{StreamExt, stream};
use jiff::Timestamp;
use walpoint_base::{BackupId, SegmentNo};
use walpoint_storage::error::error_chain;
use walpoint_storage::layout::ClusterPaths;

use super::light::NeededWal;
use super::report::{Cure, FindingKind, VerifyFinding};
use super::{Run, Segment};
use crate::backup::{
    AnnouncedPacks, AnnouncedWal, Announcement, AnnouncementReason, DamagedAnnouncement,
    NumberedAnnouncement, PackNo,
};

/// Objects that are looked at at the same time.
const AT_ONCE: usize = 8;

/// Ranges that are longer are left as they are announced.
const MANY: u32 = 1 << 20;

/// What an announcement of damage names, one by one.
#[derive(Default)]
struct Named {
    packs: BTreeSet<(BackupId, u32)>,
    wal: BTreeSet<Segment>,
    manifests: BTreeSet<BackupId>,
}

impl Run<'_> {
    /// Announces what is damaged and was not announced as that before: that it is to be deleted may be taken back. A segment that was
    /// stored since it was announced, and is damaged again, is announced again. Whether that could be done.
    pub(super) async fn announce(&mut self, needed: &[NeededWal]) -> bool {
        let again = self.damaged_again(needed).await;
        let known: Vec<&Announcement> = self.announced.iter().map(|one| &one.announcement).collect();
        let new = Named {
            packs: self.damaged.iter().filter(|pack| !names_pack(&known, **pack)).copied().collect(),
            wal: self
                .damaged_wal
                .iter()
                .filter(|segment| again.contains(segment) || !names_segment(&known, **segment))
                .copied()
                .collect(),
            manifests: self
                .damaged_manifests
                .iter()
                .filter(|id| !known.iter().any(|one| one.backups.contains(id)))
                .copied()
                .collect(),
        };
        self.announce_named(new).await
    }

    /// The segments that this run found damaged, and that were stored after they had been announced: readers take an object that is
    /// younger than its announcement for another one, and look at no more than that it can be read.
    async fn damaged_again(&self, needed: &[NeededWal]) -> BTreeSet<Segment> {
        let paths = ClusterPaths::new(self.cluster);
        let found = self.damaged_wal.difference(&self.told_again);
        let looking = found.filter_map(|segment| {
            let &(lineage, timeline, n) = segment;
            let announced = self
                .announced
                .iter()
                .filter(|one| names_segment(&[&one.announcement], *segment))
                .map(|one| one.stored)
                .max()?;
            let size = needed.iter().find(|needed| needed.lineage.id == lineage)?.lineage.segment_size;
            Some((*segment, paths.wal(lineage).segment(SegmentNo(n).name(timeline, size)), announced))
        });
        let looking: Vec<_> = looking.collect();
        let newer = stream::iter(looking).map(async |(segment, key, announced)| {
            // Announced twice does no harm, and not at all may.
            let is_newer = match self.repository.store().head(&key).await {
                Ok(meta) => meta.is_some_and(|meta| meta.modified > announced),
                Err(_) => true,
            };
            is_newer.then_some(segment)
        });
        newer.buffer_unordered(AT_ONCE).filter_map(async |segment| segment).collect().await
    }

    async fn announce_named(&mut self, named: Named) -> bool {
        if named.packs.is_empty() && named.wal.is_empty() && named.manifests.is_empty() {
            return true;
        }
        let packs = named.packs.into_iter().map(|(backup, first)| AnnouncedPacks { backup, first, count: 1 });
        let wal = named.wal.into_iter().map(|(lineage, timeline, n)| AnnouncedWal {
            lineage,
            timeline,
            first: n,
            last: n,
        });
        let announced = Announcement {
            written: Timestamp::now(),
            host: self.options.host.clone(),
            agent: self.options.agent.clone(),
            reason: AnnouncementReason::Damaged,
            backups: named.manifests.into_iter().collect(),
            packs: packs.collect(),
            wal: wal.collect(),
            requests: Vec::new(),
        };
        match self.backups.announce(&announced).await {
            Ok(_) => true,
            // What was found is told wherever nothing can be written: without the right to, on a full disk, or read-only.
            Err(error) => {
                self.report
                    .notes
                    .push(format!("could not record the damaged objects: {}", error_chain(&error)));
                false
            }
        }
    }

    /// After everything was read and what is damaged was announced: takes back announcements of what is whole, and those that
    /// cannot be read, whatever they said of damage.
    pub(super) async fn absolve(&mut self, unreadable: &[DamagedAnnouncement]) {
        let mut over: Vec<u64> = Vec::new();
        if !self.left_out {
            over.extend(unreadable.iter().map(|damaged| damaged.n));
            for one in std::mem::take(&mut self.announced) {
                let (still, whole) = self.still_damaged(&one);
                if whole == 0 {
                    continue;
                }
                // The rest first: what is damaged is announced at every moment.
                if self.announce_named(still).await {
                    self.report.notes.push(format!(
                        "{whole} of the objects recorded as damaged on {:.0} are sound again",
                        one.announcement.written
                    ));
                    over.push(one.n);
                }
            }
        }
        for n in over {
            match self.backups.absolve(n).await {
                Ok(()) => {}
                Err(error) => {
                    let error = error_chain(&error);
                    self.report.notes.push(format!("announcements/{n:012} could not be taken back: {error}"));
                }
            }
        }
    }

    /// What of an announcement still has to be said, and how many of the things that it names were read and are whole.
    fn still_damaged(&self, one: &NumberedAnnouncement) -> (Named, u64) {
        let (mut still, mut whole) = (Named::default(), 0);
        let many = one.announcement.packs.iter().any(|packs| packs.count > MANY)
            || one.announcement.wal.iter().any(|wal| wal.last.saturating_sub(wal.first) > u64::from(MANY));
        if many {
            return (still, whole);
        }
        for packs in &one.announcement.packs {
            for n in (0..packs.count).map_while(|n| packs.first.checked_add(n)) {
                let pack = (packs.backup, n);
                match self.packs.contains_key(&pack) && !self.damaged.contains(&pack) {
                    true => whole += 1,
                    false => drop(still.packs.insert(pack)),
                }
            }
        }
        for wal in &one.announcement.wal {
            for n in wal.first..=wal.last {
                let segment = (wal.lineage, wal.timeline, n);
                match self.sound_wal.contains(&segment) {
                    true => whole += 1,
                    false => drop(still.wal.insert(segment)),
                }
            }
        }
        for id in &one.announcement.backups {
            match self.ids.contains(id) && !self.damaged_manifests.contains(id) {
                true => whole += 1,
                false => drop(still.manifests.insert(*id)),
            }
        }
        (still, whole)
    }

    /// Findings for what was announced as damaged and is still used, as long as that is not taken back: a run that does not read
    /// everything would be silent about most of it.
    pub(super) fn known(&mut self, needed: &[NeededWal]) {
        let announced: Vec<(Announcement, String)> = self
            .announced
            .iter()
            .map(|one| {
                let Announcement { written, host, .. } = &one.announcement;
                let by = if host.is_empty() { String::new() } else { format!(" by {host}") };
                let what = format!(
                    "it was found damaged on {written:.0}{by}, and no full verification has found it sound since"
                );
                (one.announcement.clone(), what)
            })
            .collect();
        let paths = ClusterPaths::new(self.cluster);
        for (announced, what) in announced {
            let packs = self.packs.keys().filter(|pack| names_pack(&[&announced], **pack));
            for (owner, n) in packs.copied().collect::<Vec<_>>() {
                self.bad_pack(owner, n, FindingKind::Damaged, what.clone());
            }
            for id in announced.backups.iter().filter(|id| self.ids.contains(id)) {
                if self.damaged_manifests.insert(*id) {
                    self.report.finding(VerifyFinding {
                        kind: FindingKind::Damaged,
                        object: paths.manifest(*id).to_string(),
                        what: what.clone(),
                        backups: vec![id.to_string()],
                        moments: None,
                        remedy:
                            "Take a backup. Until then, restore from another backup or another repository."
                                .into(),
                    });
                }
            }
            for wal in &announced.wal {
                let of_it = needed.iter().find(|needed| needed.lineage.id == wal.lineage);
                let runs = of_it.and_then(|needed| Some((needed, needed.timelines.get(&wal.timeline)?)));
                let Some((needed, runs)) = runs else { continue };
                for run in runs.iter() {
                    for n in run.first.0.max(wal.first)..=run.last.0.min(wal.last) {
                        let segment = (wal.lineage, wal.timeline, n);
                        if self.sound_wal.contains(&segment) || !self.damaged_wal.insert(segment) {
                            continue;
                        }
                        self.told_again.insert(segment);
                        let name = SegmentNo(n).name(wal.timeline, needed.lineage.segment_size);
                        self.report.finding(VerifyFinding {
                            kind: FindingKind::Damaged,
                            object: paths.wal(wal.lineage).segment(name).to_string(),
                            what: what.clone(),
                            backups: Vec::new(),
                            moments: Some("those after it: recovery ends there".to_owned()),
                            remedy: Cure::Resupply,
                        });
                    }
                }
            }
        }
    }

    /// Whether a segment was announced as damaged before the run.
    pub(super) fn was_announced(&self, segment: Segment) -> bool {
        let known: Vec<&Announcement> = self.announced.iter().map(|one| &one.announcement).collect();
        names_segment(&known, segment)
    }
}

fn names_pack(known: &[&Announcement], (owner, n): (BackupId, u32)) -> bool {
    known.iter().flat_map(|one| &one.packs).any(|packs| packs.names(owner, PackNo(n)))
}

fn names_segment(known: &[&Announcement], (lineage, timeline, n): Segment) -> bool {
    known
        .iter()
        .flat_map(|one| &one.wal)
        .any(|wal| (wal.lineage, wal.timeline) == (lineage, timeline) && (wal.first..=wal.last).contains(&n))
}
