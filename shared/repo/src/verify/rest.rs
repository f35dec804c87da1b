//! What no backup needs of a pack that is kept: frames of backups that were deleted, and the frame that ends it. What is damaged
//! there is told, and not announced: every backup that uses the pack can be restored.

use futures_util::{StreamExt, stream};
use walpoint_base::BackupId;
use walpoint_storage::error::{RepoError, Result};
use walpoint_storage::layout::ClusterPaths;

use super::Run;
use super::blocks::{Covered, WINDOW};
use super::report::{FindingKind, VerifyFinding};
use crate::backup::WindowLimits;

/// Packs that are read at the same time.
const AT_ONCE: usize = 2;

impl Run<'_> {
    /// After all blocks were read: reads of each sound pack the frames that were not.
    pub(super) async fn rest(&mut self, covered: &Covered) -> Result<()> {
        let sound = self.packs.iter().filter(|(pack, _)| !self.damaged.contains(pack));
        let packs: Vec<((BackupId, u32), u32)> = sound.map(|(pack, (size, _))| (*pack, *size)).collect();
        let (backups, paths) = (self.backups.clone(), ClusterPaths::new(self.cluster));
        let read = stream::iter(packs).map(|((owner, n), size)| {
            let (backups, key) = (&backups, paths.pack(owner, n));
            let was_read = move |frame| covered.has_frame((owner, n), frame);
            async move { (owner, n, backups.read_rest(&key, size, was_read).await) }
        });
        let mut read = read.buffered(AT_ONCE);
        while let Some((owner, n, result)) = read.next().await {
            match result {
                Ok(()) => {}
                Err(error @ RepoError::Corrupt { .. }) => {
                    self.damaged_pack(owner, n, error.to_string()).await?
                }
                Err(RepoError::NotFound { .. }) if !self.is_still_used(owner, n).await? => {}
                Err(error @ RepoError::NotFound { .. }) => {
                    self.bad_pack(owner, n, FindingKind::Missing, error.to_string());
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// A pack that is not what was written: announced, unless all that backups use of it is.
    pub(super) async fn damaged_pack(&mut self, owner: BackupId, n: u32, what: String) -> Result<()> {
        if self.is_needed_of_it(owner, n).await? {
            self.bad_pack(owner, n, FindingKind::Damaged, what);
            return Ok(());
        }
        self.report.finding(VerifyFinding {
            kind: FindingKind::Damaged,
            object: ClusterPaths::new(self.cluster).pack(owner, n).to_string(),
            what,
            backups: Vec::new(),
            moments: None,
            remedy:
                "Nothing needs to be done: all that backups use of it is sound, and it is deleted with the \
                last of them."
                    .into(),
        });
        Ok(())
    }

    /// Whether anything that a backup uses of a pack cannot be read, or it is not known what it uses.
    async fn is_needed_of_it(&mut self, owner: BackupId, n: u32) -> Result<bool> {
        let users = self.packs.get(&(owner, n)).map(|(_, users)| users.clone()).unwrap_or_default();
        let users = users.iter().filter_map(|at| self.ids.get(usize::from(*at)).copied());
        for id in users.collect::<Vec<BackupId>>() {
            match self.uses_soundly(id, owner, n).await {
                Ok(()) => {}
                Err(RepoError::NotFound { .. }) if self.is_gone(id).await? => {}
                Err(RepoError::Corrupt { .. } | RepoError::NotFound { .. }) => return Ok(true),
                Err(error) => return Err(error),
            }
        }
        Ok(false)
    }

    /// Reads the tables of a backup, and its blocks in one pack.
    async fn uses_soundly(&self, id: BackupId, owner: BackupId, n: u32) -> Result<()> {
        let reader = self.backups.open(id).await?;
        let owners = &reader.manifest().backups;
        let mut windows = reader.windows(WindowLimits { blocks: WINDOW, ..WindowLimits::default() });
        while let Some(window) = windows.next().await? {
            let units = window.units_where(|_, _, _, at| {
                at.frame.pack.0 == n && owners.get(usize::from(at.frame.backup.0)) == Some(&owner)
            });
            for unit in units {
                let fetched = reader.fetch(&unit).await?;
                let reader = reader.clone();
                crate::cpu::run(move || reader.scatter::<RepoError>(&unit, &fetched, |_| Ok(()))).await??;
            }
        }
        Ok(())
    }
}
