//! Every block of every backup: each frame is opened and checked, each block held against the hash in the manifest's
//! tables, each page against its checksum.
//!
//! Backups share packs. A block is read with the backup that wrote it, where that is looked at too and all of the pack is in
//! its use, and otherwise with every backup that refers to it: so nothing is left out, and little is read twice.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures_util::{StreamExt, stream};
use walpoint_base::BackupId;

use super::report::VerifyFinding;
use super::{ContentCheck, Run};
use crate::backup::{BackupReader, PackUnit, Window, WindowLimits};
use crate::error::{RepoError, Result};
use crate::layout::{ClusterPaths, Key};

/// Units on their way: at most 8 MiB each, mostly a third.
const AT_ONCE: usize = 4;

/// Blocks of a window: what is remembered of it is some megabytes.
const WINDOW: u32 = 1 << 18;

/// Wrong pages of a backup that are told.
const PAGES: usize = 100;

/// A page with a wrong checksum.
struct BadPage {
    path: String,
    block: u64,
    stored: u16,
    computed: u16,
}

impl Run<'_> {
    /// Goes through the backups, oldest first.
    pub(super) async fn blocks(&mut self) -> Result<()> {
        let mut covered = BTreeSet::new();
        for id in self.ids.clone() {
            let reader = match self.backups.open(id).await {
                Ok(reader) => reader,
                Err(error) if error.is_not_found() => continue,
                Err(error) => return Err(error),
            };
            let manifest = reader.manifest();
            let used =
                manifest.packs.packs().iter().filter(|pack| pack.backup.0 == 0 && pack.live == pack.units);
            let own: Vec<(BackupId, u32)> = used.map(|pack| (id, pack.pack.0)).collect();
            // Where its tables are damaged, some of its blocks were not read with it.
            if self.backup(id, &reader, &covered).await? {
                covered.extend(own);
            }
        }
        Ok(())
    }

    /// Reads what a backup refers to and is not covered; whether its tables led to all of it.
    async fn backup(
        &mut self,
        id: BackupId,
        reader: &BackupReader,
        covered: &BTreeSet<(BackupId, u32)>,
    ) -> Result<bool> {
        let limits = WindowLimits { blocks: WINDOW, ..WindowLimits::default() };
        let mut windows = reader.windows(limits);
        let owners = &reader.manifest().backups;
        loop {
            let window = match windows.next().await {
                Ok(Some(window)) => Arc::new(window),
                Ok(None) => return Ok(true),
                // The tables themselves are damaged: where the rest of the files are is not known.
                Err(error) => return self.unreadable(id, error).map(|()| false),
            };
            let units = window.units_where(|_, _, _, at| {
                let owner = owners.get(usize::from(at.frame.backup.0)).copied();
                owner.is_none_or(|owner| owner == id || !covered.contains(&(owner, at.frame.pack.0)))
            });
            let known = Arc::new(known_bad(reader));
            let check = Arc::clone(&self.check);
            let results = stream::iter(units).map(|unit| {
                let (reader, window, known, check) =
                    (reader.clone(), Arc::clone(&window), Arc::clone(&known), Arc::clone(&check));
                async move {
                    let (backup, pack) = unit.pack();
                    let at = (reader.manifest().backups.get(usize::from(backup.0)).copied(), pack.0);
                    (at, unit_of(reader, unit, window, known, check).await)
                }
            });
            let mut results = results.buffer_unordered(AT_ONCE);
            let mut pages = Vec::new();
            while let Some(((owner, pack), result)) = results.next().await {
                match result {
                    Ok(checked) => {
                        self.report.verified_bytes += checked.bytes;
                        self.report.known_bad_pages += checked.known;
                        pages.extend(checked.bad);
                    }
                    Err(error @ (RepoError::Corrupt { .. } | RepoError::NotFound { .. })) => match owner {
                        Some(owner) => self.bad_pack(owner, pack, "damaged", error.to_string()),
                        None => self.unreadable(id, error)?,
                    },
                    Err(error) => return Err(error),
                }
            }
            drop(results);
            self.bad_pages(id, pages);
        }
    }

    fn bad_pages(&mut self, id: BackupId, pages: Vec<BadPage>) {
        for page in pages.into_iter().take(PAGES) {
            let BadPage { path, block, stored, computed } = page;
            self.report.finding(VerifyFinding {
                kind: "page",
                object: format!("{path} block {block} in backup {id}"),
                what: format!("checksum {stored:04X} in the page, {computed:04X} of its content: it was damaged before it was \
                               stored"),
                backups: vec![id.to_string()],
                moments: None,
                remedy: "restore the table from an older backup, or rebuild what can be rebuilt (REINDEX)".to_owned(),
            });
        }
    }

    /// What a backup's tables lead to cannot be read.
    fn unreadable(&mut self, id: BackupId, error: RepoError) -> Result<()> {
        let key: Key = match &error {
            RepoError::Corrupt { key, .. } | RepoError::NotFound { key, .. } => key.clone(),
            _ => return Err(error),
        };
        if let Some(crate::layout::ClusterObject::Pack(owner, n)) =
            ClusterPaths::new(self.cluster).parse(&key)
        {
            self.bad_pack(owner, n, "damaged", error.to_string());
            self.report.notes.push(format!("the rest of backup {id} could not be read behind {key}"));
            return Ok(());
        }
        self.report.finding(VerifyFinding {
            kind: "damaged",
            object: key.to_string(),
            what: error.to_string(),
            backups: vec![id.to_string()],
            moments: None,
            remedy: "take a backup; this one cannot be restored whole from here".to_owned(),
        });
        Ok(())
    }
}

/// What a unit showed.
struct Checked {
    bytes: u64,
    known: u64,
    bad: Vec<BadPage>,
}

/// Pages that were bad when the backup was made: they are told there.
fn known_bad(reader: &BackupReader) -> BTreeSet<(String, u64)> {
    reader.manifest().findings.iter().map(|finding| (finding.path.to_string(), finding.block)).collect()
}

async fn unit_of(
    reader: BackupReader,
    unit: PackUnit,
    window: Arc<Window>,
    known: Arc<BTreeSet<(String, u64)>>,
    check: Arc<dyn ContentCheck>,
) -> Result<Checked> {
    let fetched = reader.fetch(&unit).await?;
    crate::cpu::run(move || {
        let facts = &reader.manifest().summary.facts;
        let (mut bytes, mut recorded, mut bad) = (0u64, 0u64, Vec::new());
        reader.scatter::<RepoError>(&unit, &fetched, |piece| {
            bytes += u64::try_from(piece.bytes.len()).unwrap_or(0);
            let Some(part) = window.parts().get(piece.part).filter(|_| facts.data_checksums) else {
                return Ok(());
            };
            let path = &part.entry.path;
            check.pages(facts, path, piece.offset, piece.bytes, &mut |block, stored, computed| {
                let path = path.to_string();
                if known.contains(&(path.clone(), block)) {
                    recorded += 1;
                } else if bad.len() < PAGES {
                    bad.push(BadPage { path, block, stored, computed });
                }
            });
            Ok(())
        })?;
        Ok(Checked { bytes, known: recorded, bad })
    })
    .await?
}
