//! The last step of a backup: proving that everything is there, then creating the manifest.

use std::time::Duration;

use futures_util::TryStreamExt;
use walpoint_base::{BackupId, PgTimestamp, SegmentName};
use walpoint_storage::error::{Remark, RepoError, Result};

use super::super::announcements::AnnouncedSet;
use super::super::catalog::{Backups, ManifestState};
use super::super::facts::BackupSummary;
use super::super::location::pack_no;
use super::super::manifest::{Manifest, cannot_write};
use super::super::pack_table::PackUse;

/// Between two looks whether another command has ended the backup.
const LOOK: Duration = Duration::from_secs(20);

/// What the caller found stored in the lineage: every WAL segment from `first` to `last`, along the timelines from the
/// backup's start to its stop. Only whoever looked can say so; [`Draft::publish`] checks that it is what is needed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WalStored {
    /// The segment that holds the start position.
    pub first: SegmentName,
    /// The segment that holds the last byte before the stop position.
    pub last: SegmentName,
}

/// A backup whose packs are stored and whose manifest is not. Dropped, it leaves an intent and packs without a manifest.
#[derive(Debug)]
pub struct Draft {
    backups: Backups,
    manifest: Manifest,
    parent: Option<BackupId>,
    notes: Vec<Remark>,
}

impl Draft {
    pub(super) fn new(
        backups: Backups,
        manifest: Manifest,
        parent: Option<BackupId>,
        notes: Vec<Remark>,
    ) -> Self {
        Self { backups, manifest, parent, notes }
    }

    /// The finished backup that it was compared with; `None` if there was none.
    pub fn parent(&self) -> Option<BackupId> {
        self.parent
    }

    /// What of earlier backups could not be used, and why, as far as nobody has taken it from the writer.
    pub fn notes(&self) -> &[Remark] {
        &self.notes
    }

    /// What the manifest will say.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The WAL segments, first and last, that have to be stored before [`Self::publish`].
    pub fn needs_wal(&self) -> Result<(SegmentName, SegmentName)> {
        self.manifest.summary.facts.wal().map_err(|e| RepoError::Internal(e.to_string()))
    }

    /// Notes the latest time at which a transaction ended before the segment in which the backup starts, if one is known that is
    /// later than what is noted.
    pub fn note_latest_commit(&mut self, time: Option<PgTimestamp>) {
        let noted = &mut self.manifest.summary.facts.latest_commit;
        *noted = (*noted).max(time.map(PgTimestamp::to_time));
    }

    /// Ends once another command has ended the backup with a tombstone: it can never be published then.
    pub async fn aborted(&self) -> RepoError {
        let id = self.manifest.summary.id;
        loop {
            if let Ok(ManifestState::Aborted(tombstone)) = self.backups.standing(id).await {
                return self.backups.ended(id, &tombstone);
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Finds every pack with its size, then creates the manifest: afterwards the backup exists. Fails with
    /// [`RepoError::Refused`] if another command ended the backup with a tombstone meanwhile.
    pub async fn publish(self, wal: WalStored) -> Result<BackupSummary> {
        let (backups, id) = (self.backups.clone(), self.manifest.summary.id);
        match self.create_manifest(wal).await {
            Err(error) => Err(backups.why_failed(id, error).await),
            published => published,
        }
    }

    async fn create_manifest(self, wal: WalStored) -> Result<BackupSummary> {
        let (first, last) = self.needs_wal()?;
        if (wal.first, wal.last) != (first, last) {
            let WalStored { first: has, last: to } = wal;
            return Err(RepoError::Internal(format!(
                "the backup needs WAL from {first} to {last}, stored are {has} to {to}"
            )));
        }
        self.prove_packs().await?;
        self.prove_nothing_announced().await?;
        let key = self.backups.paths().manifest(self.manifest.summary.id);
        let sealer = self.backups.sealer().clone();
        let (manifest, object) = crate::cpu::run(move || {
            let object = self.manifest.seal(&sealer, &key).map_err(|e| cannot_write(&key, &e));
            (self, object)
        })
        .await?;
        manifest.backups.store().create_once(&object?).await?;
        Ok(manifest.manifest.summary)
    }

    /// What was announced after the backup began is not built on either. The next backup resumes this one, and stores again
    /// what was announced.
    async fn prove_nothing_announced(&self) -> Result<()> {
        if self.manifest.backups.len() < 2 {
            return Ok(());
        }
        let announced = self.backups.announcements().await?;
        let (own, announced) = (self.manifest.summary.id, AnnouncedSet::of(&announced));
        for pack in self.manifest.packs.packs() {
            let id = self.manifest.backups.get(usize::from(pack.backup.0));
            if let Some(id) = id.filter(|id| **id != own && announced.has_pack(**id, pack.pack)) {
                let key = self.backups.paths().manifest(self.manifest.summary.id);
                let what = format!(
                    "it builds on pack {} of backup {id}, which was marked as expired or damaged while the backup ran\nHINT: \
                     Run the backup again: it stores what is missing and uses the rest.",
                    pack.pack.0
                );
                return Err(RepoError::Refused { key, what });
            }
        }
        Ok(())
    }

    /// One listing for each backup whose packs are used.
    async fn prove_packs(&self) -> Result<()> {
        let packs = self.manifest.packs.packs();
        for used in packs.chunk_by(|a, b| a.backup == b.backup) {
            let Some(first) = used.first() else { continue };
            let Some(id) = self.manifest.backups.get(usize::from(first.backup.0)) else {
                return Err(RepoError::Internal("a pack of a backup that is not listed is used".to_owned()));
            };
            let mut missing: Vec<&PackUse> = used.iter().collect();
            let mut found = vec![false; used.len()];
            let mut listing = self.backups.store().list(&self.backups.paths().data(*id), None);
            while let Some(entry) = listing.try_next().await? {
                let Some(no) = pack_no(&entry.key) else { continue };
                let Ok(at) = used.binary_search_by_key(&no, |pack| pack.pack) else { continue };
                let (Some(pack), Some(found)) = (used.get(at), found.get_mut(at)) else { continue };
                if entry.size != u64::from(pack.size) {
                    let (is, should) = (entry.size, pack.size);
                    return Err(RepoError::corrupt(
                        &entry.key,
                        format!("it has {is} bytes, {should} were stored"),
                    ));
                }
                *found = true;
            }
            let mut found = found.iter();
            missing.retain(|_| found.next() != Some(&true));
            if let Some(pack) = missing.first() {
                let key = self.backups.paths().pack(*id, pack.pack.0);
                return Err(RepoError::NotFound { key, store: self.backups.store().name().to_owned() });
            }
        }
        Ok(())
    }
}
