//! One backup from its intent to the draft of its manifest.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use walpoint_base::BackupId;
use walpoint_storage::error::{Remark, RepoError, Result};

use super::super::catalog::Backups;
use super::super::ending::Intent;
use super::super::facts::{BackupDescription, BackupSummary, Totals};
use super::super::geometry::BlockSize;
use super::super::hash::Hashing;
use super::super::live::Live;
use super::super::location::{BackupRef, PackNo};
use super::super::manifest::{Manifest, cannot_write};
use super::super::pack_table::{PackTable, PackUse};
use super::super::parent::Parents;
use super::super::progress::EncodedProgress;
use super::Shared;
use super::pack_stream::PackStream;
use super::publish::Draft;
use super::sink::{PackLimits, PackSink, WrittenPack};
use super::table::{Finished, Fresh, TableWriter};

/// What can be chosen about writing a backup.
#[derive(Clone, Debug)]
pub struct WriteOptions {
    /// Sizes of packs and bytes in flight.
    pub packs: PackLimits,
    /// A directory for scratch files, which have no name: the file table as it is sorted, and the parent's as it is
    /// compared, each about 150 bytes for each file of the cluster.
    pub scratch: PathBuf,
}

impl Default for WriteOptions {
    fn default() -> Self {
        Self { packs: PackLimits::default(), scratch: std::env::temp_dir() }
    }
}

/// A backup that is being written. Hands out [`PackStream`]s, one for each thread.
#[derive(Debug)]
pub struct BackupWriter {
    backups: Backups,
    intent: Intent,
    shared: Arc<Shared>,
    progress: tokio::sync::Mutex<Noted>,
    /// The same as [`Noted::objects`] and the number of packs of blocks then, to look at without waiting.
    noted: Mutex<(u32, usize)>,
}

/// What progress objects say by now.
#[derive(Default, Debug)]
struct Noted {
    /// How many there are.
    objects: u32,
    /// The packs that they name.
    packs: BTreeSet<PackNo>,
}

/// Progress objects that are written whenever there is a new pack; later ones come for every fourth.
const EARLY_NOTES: u32 = 8;

impl Backups {
    /// Begins a backup: creates its intent. `block_size` is the cluster's (`BLCKSZ`).
    pub async fn begin(
        &self,
        intent: Intent,
        block_size: BlockSize,
        options: &WriteOptions,
    ) -> Result<BackupWriter> {
        BackupWriter::begin(self, intent, block_size, options).await
    }
}

impl BackupWriter {
    /// Creates the intent, then opens what it names. `block_size` is the cluster's (`BLCKSZ`).
    pub(in crate::backup) async fn begin(
        backups: &Backups,
        intent: Intent,
        block_size: BlockSize,
        options: &WriteOptions,
    ) -> Result<Self> {
        backups.create_intent(&intent).await?;
        let id = intent.id;
        let parents = Parents::open(backups, &intent, block_size, &options.scratch).await?;
        let (packs, held) = (options.packs, parents.held());
        let sink = PackSink::new(backups, id, packs, held);
        let shared = Shared {
            hashing: Hashing::new(backups.sealer()),
            block_size,
            parents,
            sink: Arc::new(sink),
            table: Mutex::new(Some(TableWriter::new(&options.scratch))),
        };
        let (progress, noted) = Default::default();
        Ok(Self { backups: backups.clone(), intent, shared: Arc::new(shared), progress, noted })
    }

    /// Which backup.
    pub fn id(&self) -> BackupId {
        self.intent.id
    }

    /// How content is hashed, for comparisons.
    pub fn hashing(&self) -> &Hashing {
        &self.shared.hashing
    }

    /// A way in for one more thread. Each has buffers of about 2.5 MiB.
    pub fn stream(&self) -> PackStream {
        PackStream::new(Arc::clone(&self.shared))
    }

    /// Bytes of packs that are stored or on their way: for progress.
    pub fn stored(&self) -> u64 {
        self.shared.sink().stored()
    }

    /// The finished backup whose blocks are used; `None` if there is none.
    pub fn parent(&self) -> Option<BackupId> {
        self.shared.parents.parent()
    }

    /// What of earlier backups could not be used, and why; since the last call.
    pub fn take_notes(&self) -> Vec<Remark> {
        self.shared.parents.take_notes()
    }

    /// Whether so much was stored since the last progress object that another one is worth its request: after each pack
    /// at first, after every fourth one later.
    pub fn progress_is_due(&self) -> bool {
        let stored = self.shared.sink().stored_data_packs();
        let (objects, packs) = *self.noted.lock().unwrap_or_else(PoisonError::into_inner);
        let allowed = u32::try_from(stored / 4).unwrap_or(u32::MAX).saturating_add(EARLY_NOTES);
        stored > packs && objects < allowed
    }

    /// Stores what the next backup needs to know if this one dies: what lies in the packs that are stored by now. Streams go
    /// on meanwhile.
    pub async fn note_progress(&self) -> Result<()> {
        let mut noted = self.progress.lock().await;
        let data_packs = self.shared.sink().stored_data_packs();
        let stored = self.shared.sink().stored_packs();
        let Fresh { ranges, refs } = {
            let mut table = self.shared.table.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(table) = table.as_mut() else { return Ok(()) };
            table.take_fresh(stored.data_below)
        };
        let new = stored.packs.iter().filter(|(no, _)| !noted.packs.contains(no));
        let packs = new.map(|(no, pack)| PackUse {
            backup: BackupRef::OWN,
            pack: *no,
            size: pack.size,
            units: pack.units,
            live: pack.units,
        });
        let packs: Vec<PackUse> = packs.collect();
        if !(ranges.is_empty() && packs.is_empty()) {
            let (new, backups) = (PackTable::new(packs.clone()), &self.shared.parents.backups);
            let progress = EncodedProgress { backups, packs: new, refs: &refs, ranges: &ranges };
            let key = self.backups.paths().progress(self.intent.id, noted.objects);
            let object = progress.seal(self.backups.sealer(), &key).map_err(|e| cannot_write(&key, &e))?;
            self.backups.store().create_once(&object).await?;
            noted.objects = noted.objects.saturating_add(1);
            noted.packs.extend(packs.iter().map(|pack| pack.pack));
        }
        *self.noted.lock().unwrap_or_else(PoisonError::into_inner) = (noted.objects, data_packs);
        Ok(())
    }

    /// The same for everything so far: closes the open packs and waits for them first. For a backup that is ending early.
    pub async fn progress(&self) -> Result<()> {
        self.shared.sink().flush().await?;
        self.note_progress().await
    }

    /// Everything was read and every stream finished: stores the file table and waits for the last pack. Nothing is
    /// announced yet: that is [`Draft::publish`].
    pub async fn finish(self, facts: BackupDescription) -> Result<Draft> {
        let shared = Arc::clone(&self.shared);
        let invalid = |e| RepoError::Internal(format!("the facts about the backup are impossible: {e}"));
        facts.check().map_err(invalid)?;
        if facts.block_size != u32::try_from(shared.block_size.bytes()).unwrap_or(0) {
            return Err(invalid(super::super::Malformed::new("it was cut into blocks of another size")));
        }
        let table = self.shared.table.lock().unwrap_or_else(PoisonError::into_inner).take();
        let table = table.ok_or_else(|| RepoError::Internal("a backup was finished twice".to_owned()))?;
        let sort = move || table.finish(shared.sink(), &shared.parents, shared.block_size);
        // Not one of the bounded workers: it may wait for uploads.
        let table = tokio::task::spawn_blocking(sort).await;
        let ended = |_| RepoError::Internal("the thread that sorts the file table panicked".to_owned());
        let Finished { index_blocks, live, mut totals, findings } = table.map_err(ended)??;
        let written = self.shared.sink().flush().await?;
        totals.stored = written.iter().map(|pack| u64::from(pack.size)).sum();
        let mut manifest = self.manifest(facts, totals, &written, &live)?;
        let places = number_anew(&self.shared.parents.backups, &mut manifest);
        manifest.index_blocks = index_blocks;
        for index_block in &mut manifest.index_blocks {
            let place = places.get(usize::from(index_block.at.backup.0)).copied().flatten();
            index_block.at.backup =
                place.ok_or_else(|| RepoError::Internal("an index block of no pack".to_owned()))?;
        }
        manifest.findings = findings;
        let (parent, notes) = (self.parent(), self.take_notes());
        Ok(Draft::new(self.backups, manifest, parent, notes))
    }

    /// The manifest without index blocks and findings, its packs named as in the parents' table of backups.
    fn manifest(
        &self,
        facts: BackupDescription,
        totals: Totals,
        written: &[WrittenPack],
        live: &Live,
    ) -> Result<Manifest> {
        let mut packs = own_packs(written, live);
        for ((backup, no), units) in live.iter().filter(|((backup, _), _)| *backup != BackupRef::OWN) {
            let pack = self.shared.parents.ledger.pack(*backup, *no, *units);
            packs.push(pack.ok_or_else(|| RepoError::Internal("an unknown pack is used".to_owned()))?);
        }
        let summary = BackupSummary { id: self.intent.id, facts, totals, parents: Vec::new() };
        let (backups, packs) = (Vec::new(), PackTable::new(packs));
        Ok(Manifest { summary, backups, packs, index_blocks: Vec::new(), findings: Vec::new() })
    }

    /// Aborts: waits for what is on its way and puts a tombstone where the manifest would be.
    pub async fn abandon(self, reason: &str) -> Result<()> {
        self.shared.sink().settle().await;
        self.backups.abort(self.intent.id, reason).await
    }
}

fn own_packs(written: &[WrittenPack], live: &Live) -> Vec<PackUse> {
    let packs = written.iter().zip(0u32..).map(|(pack, no)| {
        let pack_no = PackNo(no);
        let live = live.get(&(BackupRef::OWN, pack_no)).copied().unwrap_or(0);
        PackUse { backup: BackupRef::OWN, pack: pack_no, size: pack.size, units: pack.units, live }
    });
    packs.collect()
}

/// Leaves out of a manifest the backups that it could have used and does not. Gives for each of `known` its new place.
fn number_anew(known: &[BackupId], manifest: &mut Manifest) -> Vec<Option<BackupRef>> {
    let used: BTreeSet<BackupRef> = manifest.packs.packs().iter().map(|pack| pack.backup).collect();
    let mut places = vec![None; known.len()];
    for (id, at) in known.iter().zip(0u16..) {
        if at != BackupRef::OWN.0 && !used.contains(&BackupRef(at)) {
            continue;
        }
        let place = u16::try_from(manifest.backups.len()).unwrap_or(u16::MAX);
        if let Some(slot) = places.get_mut(usize::from(at)) {
            *slot = Some(BackupRef(place));
        }
        manifest.backups.push(*id);
    }
    manifest.summary.parents = manifest.backups.get(1..).unwrap_or_default().to_vec();
    let renamed = manifest.packs.packs().iter().filter_map(|pack| {
        let backup = places.get(usize::from(pack.backup.0)).copied().flatten()?;
        Some(PackUse { backup, ..*pack })
    });
    manifest.packs = PackTable::new(renamed.collect());
    places
}
