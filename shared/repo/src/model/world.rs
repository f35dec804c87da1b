//! The repository in a directory, its clock, and what should be in it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use jiff::{SignedDuration, Timestamp};
use rand::rngs::StdRng;
use rand::seq::IteratorRandom;
use rand::{Rng, SeedableRng};
use walpoint_base::{BackupId, SegmentNo, SegmentSize, TimelineId};
use walpoint_storage::error::Result;
use walpoint_storage::layout::{ClusterPaths, Key};
use walpoint_storage::object::MasterKey;
use walpoint_storage::store::StoreSettings;
use walpoint_storage::store::crashing::CrashingStore;

use super::cluster::{Cluster, Files};
use super::writing::Writing;
use crate::Repository;
use crate::backup::{Backups, BlockSize, Intent, ListedState};
use crate::expire::tests::cluster;
use crate::index::tests::{Bed, bed_in};

pub(super) const FIRST: TimelineId = TimelineId::FIRST;

/// What a life is made of: the repository, and what the model knows about it.
pub(super) struct World {
    pub(super) rng: StdRng,
    pub(super) journal: Journal,
    pub(super) bed: Bed,
    pub(super) paths: ClusterPaths,
    pub(super) scratch: PathBuf,
    encrypted: bool,
    /// Whether this is a life with damage.
    pub(super) suffers: bool,
    pub(super) block: BlockSize,
    pub(super) cluster: Cluster,
    /// Finished backups that are there.
    pub(super) made: BTreeMap<BackupId, Made>,
    /// Begun and neither finished nor aborted.
    pub(super) unfinished: BTreeMap<BackupId, Intent>,
    /// Backups that somebody may go on with at any time.
    pub(super) asleep: Vec<Writing>,
    /// Holds in force, by number.
    pub(super) holds: BTreeMap<u64, HeldOn>,
    /// Packs that are not what was written.
    pub(super) damaged: BTreeSet<(BackupId, u32)>,
    /// Those of them that nothing may be built on any more, because they were reported, or because a listing shows it.
    pub(super) announced: BTreeSet<(BackupId, u32)>,
    /// Segments in the archive.
    pub(super) wal: BTreeSet<u64>,
    /// Those of them that are not what was written.
    pub(super) damaged_wal: BTreeSet<u64>,
    /// Those of these that were reported.
    pub(super) reported_wal: BTreeSet<u64>,
    /// The segment that is written next.
    pub(super) segment: u64,
    /// Numbers the backups.
    pub(super) number: u32,
    /// When the life began.
    pub(super) now: Timestamp,
}

/// A finished backup.
#[derive(Debug)]
pub(super) struct Made {
    /// What it must restore to.
    pub(super) files: Files,
    pub(super) label: String,
    pub(super) ended: Timestamp,
    /// The segments that make it consistent.
    pub(super) segments: (u64, u64),
    /// The packs that its manifest names.
    pub(super) packs: BTreeSet<(BackupId, u32)>,
    /// What of its manifest can be read.
    pub(super) manifest: Readable,
    /// Whether it was reported that not all of that can be.
    pub(super) reported: bool,
}

/// What can be read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Readable {
    All,
    /// Its summary and what it needs, and not all that is in it.
    Needs,
    /// Its summary, and not what it needs.
    Summary,
    Nothing,
}

impl Readable {
    /// Whether expiry knows what the backup needs, and so may decide about it.
    pub(super) fn shows_needs(self) -> bool {
        matches!(self, Self::All | Self::Needs)
    }
}

/// How long ago unfinished backups stored anything.
pub(super) type Silences = BTreeMap<BackupId, SignedDuration>;

/// What a hold is on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum HeldOn {
    Backup(BackupId),
    Label,
}

/// What was done, printed when a life fails.
#[derive(Default, Debug)]
pub(super) struct Journal {
    seed: u64,
    lines: Vec<String>,
    step: usize,
}

impl Journal {
    pub(super) fn step(&mut self, n: usize) {
        self.step = n;
    }

    pub(super) fn note(&mut self, what: impl Into<String>) {
        self.lines.push(format!("{:3} {}", self.step, what.into()));
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!(
                "WALPOINT_MODEL_SEED={} failed at step {}:\n{}",
                self.seed,
                self.step,
                self.lines.join("\n")
            );
        }
    }
}

/// Where lives happen: in memory if the machine has such a place, as every object is synced.
fn place() -> PathBuf {
    let shared = Path::new("/dev/shm");
    let usable = tempfile::tempfile_in(shared).is_ok();
    if usable { shared.to_owned() } else { std::env::temp_dir() }
}

pub(super) fn segment_size() -> SegmentSize {
    SegmentSize::new(1 << 20).unwrap()
}

impl World {
    pub(super) async fn new(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let (encrypted, suffers) = (rng.random_bool(0.3), rng.random_bool(0.35));
        let dir = tempfile::tempdir_in(place()).unwrap();
        let bed = bed_in(dir, encrypted.then(key)).await;
        let block = BlockSize::new(if rng.random_bool(0.85) { 1024 } else { 8192 }).unwrap();
        let cluster_files = Cluster::new(&mut rng, block.as_usize());
        let mut journal = Journal { seed, lines: Vec::new(), step: 0 };
        journal.note(format!("blocks of {} bytes, encrypted: {encrypted}, damage: {suffers}", block.bytes()));
        Self {
            rng,
            journal,
            bed,
            paths: ClusterPaths::new(&cluster()),
            scratch: place(),
            encrypted,
            suffers,
            block,
            cluster: cluster_files,
            made: BTreeMap::new(),
            unfinished: BTreeMap::new(),
            asleep: Vec::new(),
            holds: BTreeMap::new(),
            damaged: BTreeSet::new(),
            announced: BTreeSet::new(),
            wal: BTreeSet::new(),
            damaged_wal: BTreeSet::new(),
            reported_wal: BTreeSet::new(),
            segment: 5,
            number: 0,
            now: Timestamp::now(),
        }
    }

    /// The repository as a process that just began sees it.
    pub(super) async fn open(&self) -> Repository {
        let settings = StoreSettings::at(self.bed.dir.path().to_str().unwrap());
        Repository::open_with_key("main", &settings, self.encrypted.then(key)).await.unwrap()
    }

    /// The same for a process that dies soon.
    pub(super) async fn open_crashing(&self, life: u32) -> (CrashingStore, Result<Repository>) {
        let crashing = CrashingStore::new(self.bed.dir.path(), life);
        let repository = Repository::over("main", crashing.store(), self.encrypted.then(key)).await;
        (crashing, repository)
    }

    pub(super) async fn backups(&self) -> Backups {
        Backups::of(&self.open().await, &cluster())
    }

    pub(super) fn file_of(&self, key: &Key) -> PathBuf {
        self.bed.dir.path().join(key.as_str())
    }

    /// Users change the cluster, and it writes WAL.
    pub(super) fn load(&mut self) {
        let earlier = self.made.values().choose(&mut self.rng).map(|made| made.files.clone());
        let done = self.cluster.load(&mut self.rng, earlier.as_ref());
        self.journal.note(done);
    }

    /// Archives every segment up to the open one, which becomes the next.
    pub(super) async fn archive(&mut self) -> u64 {
        let last = self.segment;
        self.bed.store_whole(last).await;
        self.wal.insert(last);
        self.segment += 1;
        last
    }

    /// Everything in the repository becomes that much older: for the store, time has gone by.
    pub(super) fn time_goes_by(&mut self) {
        let hours = [1, 5, 13, 25, 30, 100, 200][self.rng.random_range(0..7usize)];
        self.age(hours);
    }

    pub(super) fn age(&mut self, hours: u64) {
        self.journal.note(format!("{hours} hours go by"));
        for path in files_below(&self.bed.dir.path().join("clusters")) {
            let is_manifest = path.file_name().is_some_and(|name| name == "manifest");
            let file = File::open(path).unwrap();
            // Nor does a backup become older by its own times.
            if is_manifest && file.metadata().unwrap().len() > 2048 {
                continue;
            }
            let modified = file.metadata().unwrap().modified().unwrap();
            file.set_modified(modified - Duration::from_secs(hours * 3600)).unwrap();
        }
    }

    /// How long ago each unfinished backup stored anything.
    pub(super) fn silences(&self) -> Silences {
        self.unfinished.keys().map(|id| (*id, self.silent(*id))).collect()
    }

    fn silent(&self, id: BackupId) -> SignedDuration {
        let root = self.bed.dir.path().join("clusters/main");
        let of = ["backups", "data"].map(|part| files_below(&root.join(part).join(id.to_string())));
        let times = of.iter().flatten().map(|path| path.metadata().unwrap().modified().unwrap());
        let last = times.max().unwrap_or(SystemTime::UNIX_EPOCH);
        SignedDuration::try_from(SystemTime::now().duration_since(last).unwrap_or_default()).unwrap()
    }

    /// The packs that are there, by who wrote them.
    pub(super) fn packs(&self) -> BTreeSet<(BackupId, u32)> {
        let data = self.bed.dir.path().join("clusters/main/data");
        let packs = files_below(&data).into_iter().map(|path| {
            let number = path.file_stem().unwrap().to_str().unwrap().parse().unwrap();
            let owner = path.parent().unwrap().file_name().unwrap().to_str().unwrap();
            (owner.parse().unwrap(), number)
        });
        packs.collect()
    }

    pub(super) fn segments(&self) -> BTreeSet<u64> {
        let there = |n: &u64| {
            let name = SegmentNo(*n).name(FIRST, segment_size());
            self.file_of(&self.bed.archive.paths().segment(name)).exists()
        };
        self.wal.iter().copied().filter(there).collect()
    }

    /// Looks at what is listed and takes note of what went or was aborted. Panics if anything did that had no reason to.
    pub(super) async fn observe(&mut self, may_go: &BTreeSet<BackupId>, may_end: &BTreeSet<BackupId>) {
        let listed = self.backups().await.list().await.unwrap();
        let mut finished = BTreeSet::new();
        for one in &listed {
            match one.state {
                ListedState::Finished(_) => {
                    assert!(self.made.contains_key(&one.id), "{} was never finished", one.id);
                    finished.insert(one.id);
                }
                ListedState::Aborted(_) => {
                    if self.unfinished.remove(&one.id).is_some() {
                        assert!(may_end.contains(&one.id), "{} was aborted and could be finished", one.id);
                    }
                }
                ListedState::Unfinished => {
                    let known = self.unfinished.contains_key(&one.id);
                    assert!(
                        known || one.begun.is_none(),
                        "{} is listed and was never begun, or is gone",
                        one.id
                    );
                }
            }
        }
        for id in self.unfinished.keys() {
            assert!(
                listed.iter().any(|one| one.id == *id && one.begun.is_some()),
                "{id} is unfinished and gone"
            );
        }
        let gone: Vec<BackupId> = self.made.keys().copied().filter(|id| !finished.contains(id)).collect();
        for id in gone {
            assert!(may_go.contains(&id), "backup {id} is gone and had to stay");
            self.journal.note(format!("    {id} is gone"));
            self.made.remove(&id);
        }
        self.look_for_packs();
    }

    /// Every pack that a manifest names is there.
    fn look_for_packs(&self) {
        let there = self.packs();
        for (id, made) in &self.made {
            let needed = |pack: &&(BackupId, u32)| match made.manifest {
                Readable::All | Readable::Needs => true,
                Readable::Summary | Readable::Nothing => pack.0 <= *id,
            };
            for pack in made.packs.iter().filter(needed).filter(|pack| !self.damaged.contains(pack)) {
                assert!(there.contains(pack), "backup {id} needs pack {pack:?}, which is gone");
            }
        }
    }
}

fn key() -> MasterKey {
    MasterKey::new([42; 32])
}

/// Every file below a directory, whether that is there or not.
fn files_below(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.unwrap().path();
        if path.is_dir() { files.extend(files_below(&path)) } else { files.push(path) }
    }
    files
}
