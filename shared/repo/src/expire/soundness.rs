//! What is known to be wrong with finished backups: packs that their manifests name and that are missing, or that were announced
//! as damaged; segments without which they do not become consistent and that are missing, or were announced as damaged; WAL that is missing behind them.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::{StreamExt, TryStreamExt, stream};
use jiff::Timestamp;
use walpoint_base::{BackupId, TimelineId};
use walpoint_plan::restore::windows;
use walpoint_storage::error::{RepoError, Result};
use walpoint_storage::layout::ClusterObject;

use super::ExpireOptions;
use super::announcements::KnownAnnouncements;
use super::gather::Gathered;
use super::scan::runs_of;
use crate::backup::{
    AnnouncedPacks, AnnouncedSet, AnnouncedWal, Announcement, AnnouncementReason, Backups, ManifestState,
    PackNo,
};
use crate::catalog::Catalog;
use crate::reach::Roots;

/// Manifests that are read at the same time, and packs that are asked for.
const AT_ONCE: usize = 16;

/// A pack: who wrote it, and its number.
pub(super) type Pack = (BackupId, u32);

/// The packs that the store has, and how long each is.
#[derive(Debug)]
pub(super) struct PackLengths(BTreeMap<BackupId, Vec<(u32, u64)>>);

/// A finished backup, by its whole manifest.
#[derive(Debug)]
pub(super) struct Proven {
    pub(super) standing: ManifestState,
    /// Packs that it uses and that are missing, or not as long as what was written.
    pub(super) lost: BTreeSet<Pack>,
    /// Packs that it uses and that were announced as damaged.
    pub(super) announced: BTreeSet<Pack>,
    /// Whether its manifest was announced as damaged.
    pub(super) manifest: bool,
}

impl PackLengths {
    pub(super) async fn list(backups: &Backups) -> Result<Self> {
        let mut packs: BTreeMap<BackupId, Vec<(u32, u64)>> = BTreeMap::new();
        let mut listing = backups.store().list(&backups.paths().all_data(), None);
        while let Some(entry) = listing.try_next().await? {
            if let Some(ClusterObject::Pack(owner, n)) = backups.paths().parse(&entry.key) {
                packs.entry(owner).or_default().push((n, entry.size));
            }
        }
        packs.values_mut().for_each(|of_one| of_one.sort_unstable());
        Ok(Self(packs))
    }

    fn has(&self, (owner, n): Pack, size: u64) -> bool {
        let of_it = self.0.get(&owner).map(Vec::as_slice).unwrap_or_default();
        let at = of_it.binary_search_by_key(&n, |(n, _)| *n);
        at.is_ok_and(|at| of_it.get(at).is_some_and(|(_, is)| *is == size))
    }
}

/// What became of finished backups, by their whole manifests. `stored` was listed after they were.
pub(super) async fn prove(
    backups: &Backups,
    ids: Vec<BackupId>,
    stored: &PackLengths,
    damaged: &AnnouncedSet,
) -> Vec<(BackupId, Result<Proven>)> {
    let read = stream::iter(ids).map(|id| async move {
        let proven = match backups.standing(id).await {
            Ok(ManifestState::Finished(summary)) => {
                prove_one(backups, id, ManifestState::Finished(summary), stored, damaged).await
            }
            Ok(standing) => Ok(Proven::plain(standing)),
            Err(error) => Err(error),
        };
        (id, proven)
    });
    read.buffered(AT_ONCE).collect().await
}

async fn prove_one(
    backups: &Backups,
    id: BackupId,
    standing: ManifestState,
    stored: &PackLengths,
    damaged: &AnnouncedSet,
) -> Result<Proven> {
    let reader = match backups.open(id).await {
        Ok(reader) => reader,
        // Deleted by another expire meanwhile, if it is not listed any more.
        Err(RepoError::NotFound { .. }) => return Ok(Proven::plain(ManifestState::Unfinished)),
        Err(error) => return Err(error),
    };
    let (mut announced, mut unlisted) = (BTreeSet::new(), Vec::new());
    let manifest = reader.manifest();
    for pack in manifest.packs.packs() {
        let Some(owner) = manifest.backups.get(usize::from(pack.backup.0)) else { continue };
        let (name, size) = ((*owner, pack.pack.0), u64::from(pack.size));
        if damaged.has_pack(*owner, pack.pack) {
            announced.insert(name);
        }
        if !stored.has(name, size) {
            unlisted.push((name, size));
        }
    }
    // A listing that leaves something out costs a backup its place: each is asked for before it counts as lost.
    let asked = unlisted.into_iter().map(|((owner, n), size)| async move {
        let is = backups.store().head(&backups.paths().pack(owner, n)).await?;
        Ok::<_, RepoError>(is.is_none_or(|is| is.size != size).then_some((owner, n)))
    });
    let asked: Vec<_> =
        stream::iter(asked.collect::<Vec<_>>()).buffer_unordered(AT_ONCE).try_collect().await?;
    let (lost, manifest) = (asked.into_iter().flatten().collect(), damaged.has_backup(id));
    Ok(Proven { standing, lost, announced, manifest })
}

impl Proven {
    pub(super) fn plain(standing: ManifestState) -> Self {
        Self { standing, lost: BTreeSet::new(), announced: BTreeSet::new(), manifest: false }
    }
}

/// Finds the WAL that is missing between backups and what they lead to.
pub(super) async fn find_gaps(gathered: &mut Gathered, catalog: &mut Catalog) -> Result<()> {
    // Nothing stands in for the only backup.
    if gathered.facts.backups.len() < 2 {
        return Ok(());
    }
    for lineage in catalog.lineages_mut() {
        let (id, size) = (lineage.id(), lineage.lineage().segment_size);
        let Some(life) = gathered.facts.lives.iter_mut().find(|life| life.lineage == id) else { continue };
        for timeline in lineage.facts().graph.ids().collect::<Vec<TimelineId>>() {
            let gaps = lineage.ask(None, |facts| windows::gaps(facts, timeline)).await?;
            life.gaps.extend(gaps.iter().map(|gap| (gap.timeline, gap.first.end(size) - 1)));
        }
    }
    Ok(())
}

/// Whether a backup that is there uses something that an announcement of damage names, or may use it, or a window leads through
/// it.
pub(super) fn is_named(gathered: &Gathered, roots: &Roots, announced: &KnownAnnouncements, n: u64) -> bool {
    let of = || announced.damaged().filter(|(number, _)| *number == n);
    let mut packs = of().flat_map(|(_, one)| &one.packs);
    let named = |packs: &AnnouncedPacks| {
        let named = gathered.announced.range((packs.backup, packs.first)..);
        named
            .take_while(|(owner, _)| *owner == packs.backup)
            .any(|(owner, n)| packs.names(*owner, PackNo(*n)))
    };
    let mut wal = of().flat_map(|(_, one)| &one.wal);
    let needed = |wal: &AnnouncedWal| {
        let (first, last) = wal.segments();
        roots.needs_segments(wal.lineage, wal.timeline, first, last)
    };
    let mut backups = of().flat_map(|(_, one)| &one.backups);
    let is_here = |id: &BackupId| gathered.facts.backups.iter().any(|backup| backup.id == *id);
    gathered.has_unreadable()
        || gathered.by_wal.contains(&n)
        || packs.any(named)
        || wal.any(needed)
        || backups.any(is_here)
}

/// Announces as damaged what was found to be missing and was not announced before: a reader that does not list all packs learns of it
/// from there.
pub(super) async fn announce_lost(
    backups: &Backups,
    gathered: &Gathered,
    options: &ExpireOptions,
    now: Timestamp,
) -> Result<()> {
    let mut by_owner: BTreeMap<BackupId, BTreeSet<u32>> = BTreeMap::new();
    for (owner, n) in gathered.lost.difference(&gathered.announced) {
        by_owner.entry(*owner).or_default().insert(*n);
    }
    let packs: Vec<AnnouncedPacks> =
        by_owner.iter().flat_map(|(owner, numbers)| runs_of(*owner, numbers)).collect();
    for some in packs.chunks(super::scan::RANGES) {
        let announced = Announcement {
            written: now,
            host: options.host.clone(),
            agent: options.agent.clone(),
            reason: AnnouncementReason::Damaged,
            backups: Vec::new(),
            packs: some.to_vec(),
            wal: Vec::new(),
            requests: Vec::new(),
        };
        backups.announce(&announced).await?;
    }
    Ok(())
}
