//! Repositories with WAL in them for unit tests. No server takes part.
//!
//! Segments have facts and content, and are no WAL: what reads records out of them is tested elsewhere.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use walpoint_base::chain::{ChainBegin, ChainEnd, ChainFacts};
use walpoint_base::crossing::{CrossingFacts, RecordPiece};
use walpoint_base::facts::SegmentMarks;
use walpoint_base::{
    ClusterName, Lsn, PgMajor, SegmentFacts, SegmentName, SegmentSize, SystemId, TimelineId, WalFileName,
};
use walpoint_pg::wal::WalIdentity;
use walpoint_repo::repository::NewLineage;
use walpoint_repo::wal::{WalArchive, WalFlags};
use walpoint_repo::{Lineage, Repository};
use walpoint_runtime::args::Selection;
use walpoint_runtime::config::ClusterSettings;
use walpoint_storage::RepoError;
use walpoint_storage::object::Level;
use walpoint_storage::store::StoreSettings;

use super::target::WalTarget;
use super::upload::Uploader;
use crate::binding;

const SYSTEM: SystemId = SystemId(7400000000000000001);

/// By how many bytes the last records of two servers' segments lie apart.
const SEED_SPAN: u64 = 8;

/// A repository that a cluster is registered in, and an empty data directory.
pub(crate) struct Bed {
    pub(crate) archive: WalArchive,
    settings: StoreSettings,
    name: String,
    dir: tempfile::TempDir,
}

/// The segments of all beds.
pub(super) fn size() -> SegmentSize {
    SegmentSize::new(1 << 20).unwrap()
}

fn cluster() -> ClusterName {
    "main".parse().unwrap()
}

fn new_lineage() -> NewLineage {
    NewLineage {
        system_id: SYSTEM,
        major: PgMajor::new(17).unwrap(),
        segment_size: size(),
        wal_block_size: 8192,
        block_size: 8192,
        relation_segment_blocks: 131_072,
        ack: vec![],
    }
}

/// The history of the timeline that begins in the middle of this segment, so many bytes behind its start.
pub(crate) fn switch_in(name: &str, offset: u64) -> Vec<u8> {
    let name: SegmentName = name.parse().unwrap();
    let switch = name.number(size()).unwrap().start(size()) + offset;
    format!("{}\t{switch}\tno recovery target specified\n", name.timeline).into_bytes()
}

/// What stores in the repositories of these beds, out of the data directory of the first one. Those of `ack` have to acknowledge.
pub(super) fn uploader(beds: &[&Bed], ack: &[&str]) -> Uploader {
    let names = beds.iter().map(|bed| bed.name.clone()).collect();
    let mut settings = ClusterSettings::with_repositories(names);
    settings.ack = Some(ack.iter().map(|name| (*name).to_owned()).collect());
    let selection = Selection {
        cluster: cluster(),
        settings,
        repositories: beds.iter().map(|bed| (bed.name.clone(), bed.settings.clone())).collect(),
        chosen: false,
        config: None,
    };
    Uploader::new(&selection, &beds[0].pgdata())
}

/// The repositories `main`, which acknowledges, and `far`, which does not, with what stores in them and the cluster of both.
pub(super) async fn two() -> (Bed, Bed, Uploader, WalIdentity) {
    let (main, far) = (Bed::named("main").await, Bed::named("far").await);
    // Without a server, nothing else shows which lineage is meant.
    for bed in [&main, &far] {
        let (repository, lineage) = (bed.archive.repository().id(), bed.archive.lineage());
        binding::add(&main.pgdata(), &lineage.cluster, repository, lineage.id).unwrap();
    }
    let lineage = main.archive.lineage();
    let cluster = WalIdentity { system_id: lineage.system_id(), major: lineage.major, segment_size: size() };
    let uploader = uploader(&[&main, &far], &["main"]);
    (main, far, uploader, cluster)
}

/// Where the last record of a segment starts, by the server that wrote it.
fn last(start: Lsn, seed: u8) -> Lsn {
    start + (size().bytes() - 4096 + u64::from(seed) * SEED_SPAN)
}

impl Bed {
    /// With the repository `main`.
    pub(crate) async fn new() -> Self {
        Self::named("main").await
    }

    /// With a repository of that name.
    pub(crate) async fn named(name: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("pgdata/pg_wal/archive_status")).unwrap();
        let settings = StoreSettings::at(dir.path().join("repository").to_str().unwrap());
        std::fs::create_dir(dir.path().join("repository")).unwrap();
        let repository = Repository::init(name, &settings, None).await.unwrap().repository;
        // As it is opened for archiving: whoever asks tries again.
        let repository = repository.with_limits(repository.store().limits().once());
        let lineage = repository.create_lineage(&cluster(), new_lineage()).await.unwrap();
        Self { archive: repository.wal(&lineage), settings, name: name.to_owned(), dir }
    }

    /// Creates another lineage of the cluster.
    pub(super) async fn next_lineage(&self) -> Lineage {
        self.archive.repository().create_lineage(&cluster(), new_lineage()).await.unwrap()
    }

    /// The data directory.
    pub(super) fn pgdata(&self) -> PathBuf {
        self.dir.path().join("pgdata")
    }

    /// The repository as a process knows it that has just begun.
    pub(super) fn target(&self, acknowledges: bool) -> WalTarget {
        let pgdata = self.pgdata();
        let settings = self.settings.clone();
        WalTarget::new(&self.name, (&cluster(), &pgdata), settings, Level::nearest(1), acknowledges)
    }

    /// Stores the whole segment of that name. Segments of one seed continue each other, and those of others do not.
    pub(crate) async fn put(&self, name: &str, seed: u8) {
        self.put_flagged(name, seed, WalFlags::default()).await;
    }

    /// Stores that segment as one that was accepted although it is damaged.
    pub(crate) async fn put_damaged(&self, name: &str, seed: u8) {
        self.put_flagged(name, seed, WalFlags { damaged: true, ..WalFlags::default() }).await;
    }

    async fn put_flagged(&self, name: &str, seed: u8, flags: WalFlags) {
        let facts = facts(name.parse().unwrap(), seed);
        let content = Bytes::from(content(&facts, seed));
        self.archive.put_segment(&facts, content, flags).await.unwrap();
    }

    /// Stores a segment that is WAL.
    pub(super) async fn put_wal(&self, name: &str, content: &[u8]) {
        let facts = walpoint_pg::wal::inspect(name.parse().unwrap(), content).unwrap();
        let content = Bytes::copy_from_slice(content);
        self.archive.put_segment(&facts, content, WalFlags::default()).await.unwrap();
    }

    /// Writes the segment of that name into `pg_wal`, as [`Self::put`] stores it.
    pub(crate) fn write(&self, name: &str, seed: u8) {
        let content = content(&facts(name.parse().unwrap(), seed), seed);
        walpoint_base::durable::replace(&self.pgdata().join("pg_wal").join(name), &content, 0o600).unwrap();
    }

    /// Lets every read of a stored file fail as an I/O error does, which the store's answers about other objects do not show: a file of
    /// the kernel is shorter than it says. It is listed all the same.
    pub(crate) fn make_unreadable(&self, name: &str) -> Unreadable {
        let path = self.stored(name);
        let aside = self.dir.path().join(name);
        rename(&path, &aside);
        std::os::unix::fs::symlink("/sys/devices/system/cpu/online", &path).unwrap();
        Unreadable { path, aside }
    }

    /// The file in which the repository has what is stored under that name.
    pub(super) fn stored(&self, name: &str) -> PathBuf {
        find(&self.dir.path().join("repository"), name).unwrap()
    }

    /// Damages the end of what is stored under that name. Its header can be read as before.
    pub(crate) fn damage(&self, name: &str) {
        let path = self.stored(name);
        let mut bytes = std::fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 0xFF;
        walpoint_base::durable::replace(&path, &bytes, 0o600).unwrap();
    }

    /// Puts a copy of the repository in its place, as on another disk.
    pub(crate) fn replace_directory(&self) {
        let (place, copied) = (self.dir.path().join("repository"), self.dir.path().join("copied"));
        let copy = std::process::Command::new("cp").arg("-a").args([&place, &copied]).status();
        assert!(copy.unwrap().success());
        rename(&place, self.dir.path().join("before"));
        rename(&copied, &place);
    }

    /// What an outage of the repository answers.
    pub(crate) fn unavailable(&self) -> RepoError {
        let store = self.archive.repository().store().name().to_owned();
        RepoError::Unavailable { what: "clusters".to_owned(), store, source: "it is away".into() }
    }

    /// Where the repository records which ones acknowledge.
    fn records(&self) -> PathBuf {
        let lineage = self.archive.lineage();
        self.dir.path().join(format!("repository/clusters/{}/{}/ack", lineage.cluster, lineage.id))
    }

    /// Lets every record of those that acknowledge fail. None is there yet.
    pub(crate) fn take_no_records(&self) {
        let records = self.records();
        std::fs::create_dir_all(records.parent().unwrap()).unwrap();
        walpoint_base::durable::replace(&records, b"no directory", 0o600).unwrap();
    }

    /// Lets the record of that number of those that acknowledge fail.
    pub(crate) fn refuse_record(&self, number: u64) {
        std::fs::create_dir(self.records().join(format!("{number:012}"))).unwrap();
    }

    /// Lets what stores the record of that number of those that acknowledge hang, until what is returned is dropped: it looks at what has
    /// the name already.
    pub(crate) fn hang_record(&self, number: u64) -> Hanging {
        let record = self.records().join(format!("{number:012}"));
        let made = std::process::Command::new("mkfifo").arg(&record).status();
        assert!(made.unwrap().success());
        Hanging(record)
    }

    /// Damages the record of that number of those that acknowledge.
    pub(crate) fn damage_record(&self, number: u64) {
        let record = self.records().join(format!("{number:012}"));
        walpoint_base::durable::replace(&record, b"damaged", 0o600).unwrap();
    }

    /// Takes the repository's descriptor away.
    pub(crate) fn hide_descriptor(&self) {
        rename(self.dir.path().join("repository/walpoint.json"), self.dir.path().join("walpoint.json"));
    }

    /// Stores the history of a timeline.
    pub(crate) async fn put_history(&self, timeline: u32, content: Vec<u8>) {
        let name = WalFileName::History(TimelineId::new(timeline).unwrap());
        self.archive.put_file(name, content).await.unwrap();
    }
}

fn content(facts: &SegmentFacts, seed: u8) -> Vec<u8> {
    let mut content = vec![seed; size().as_usize()];
    content[..8].copy_from_slice(&facts.last_record.unwrap().0.to_le_bytes());
    // Where a page says which segment it is of.
    content[8..16].copy_from_slice(&(facts.end.0 - size().bytes()).to_le_bytes());
    content
}

/// WAL: a segment that holds nothing but a switch, which a transaction of that number wrote.
pub(super) fn switched(name: &str, xid: u32) -> Vec<u8> {
    let name: SegmentName = name.parse().unwrap();
    let start = name.number(size()).unwrap().start(size());
    // XLogLongPageHeaderData, then XLogRecord (src/include/access).
    let mut bytes = walpoint_pg::wal::magic_of_major(PgMajor::new(17).unwrap()).to_le_bytes().to_vec();
    bytes.extend(2_u16.to_le_bytes());
    bytes.extend(name.timeline.get().to_le_bytes());
    bytes.extend(start.0.to_le_bytes());
    bytes.extend([0; 8]);
    bytes.extend(SYSTEM.0.to_le_bytes());
    bytes.extend(u32::try_from(size().bytes()).unwrap().to_le_bytes());
    bytes.extend(8192_u32.to_le_bytes());
    let record = bytes.len();
    bytes.extend(24_u32.to_le_bytes());
    bytes.extend(xid.to_le_bytes());
    bytes.extend((start.0 - 64).to_le_bytes());
    bytes.extend([0x40, 0, 0, 0]);
    // CRC-32C.
    let crc = bytes[record..].iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0x82F6_3B78 & (crc & 1).wrapping_neg()))
    });
    bytes.extend((!crc).to_le_bytes());
    bytes.resize(size().as_usize(), 0);
    bytes
}

/// A stored file whose readers wait.
pub(crate) struct Hanging(PathBuf);

impl Drop for Hanging {
    fn drop(&mut self) {
        // A reader that waits reads the end of it, and the next one a file.
        let held = std::fs::OpenOptions::new().read(true).write(true).open(&self.0);
        let removed = std::fs::remove_file(&self.0);
        drop(held);
        assert!(removed.is_ok());
    }
}

/// A stored file that cannot be read.
pub(crate) struct Unreadable {
    path: PathBuf,
    aside: PathBuf,
}

impl Unreadable {
    /// It can be read again.
    pub(crate) fn put_back(&self) {
        std::fs::remove_file(&self.path).unwrap();
        rename(&self.aside, &self.path);
    }
}

#[allow(clippy::disallowed_methods, reason = "nothing has to last")]
fn rename(from: impl AsRef<Path>, to: impl AsRef<Path>) {
    std::fs::rename(from, to).unwrap();
}

/// The file of that name in a directory.
fn find(directory: &Path, name: &str) -> Option<PathBuf> {
    let entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let (directories, files): (Vec<_>, Vec<_>) = entries.partition(|path| path.is_dir());
    let found = files.into_iter().find(|path| path.file_name().is_some_and(|file| file == name));
    found.or_else(|| directories.iter().find_map(|directory| find(directory, name)))
}

/// The edges of the segment of that name as [`Bed::put`] stores it.
pub(super) fn chain(name: SegmentName, seed: u8) -> ChainFacts {
    facts(name, seed).chain
}

/// What the WAL reader says of a segment.
fn facts(name: SegmentName, seed: u8) -> SegmentFacts {
    let size = size();
    let start = name.number(size).unwrap().start(size);
    let end = start + size.bytes();
    let (before, last) = (Lsn(start.0 - size.bytes()), last(start, seed));
    SegmentFacts {
        name,
        system_id: SYSTEM,
        major: PgMajor::new(17).unwrap(),
        size,
        block_size: 8192,
        first_page_timeline: name.timeline,
        content_len: size.bytes(),
        first_record: Some(start + 40),
        last_record: Some(last),
        end,
        whole: true,
        switched: false,
        records: 12,
        transactions: None,
        crossing: CrossingFacts { open: None, rest: RecordPiece::of(b"") },
        chain: ChainFacts {
            begin: ChainBegin {
                previous: Some(self::last(before, seed)),
                carried: 0,
                overwritten: false,
                rest: None,
            },
            end: ChainEnd { last: Some(last), complete: Some(last), carried: Some(0), due: None },
        },
        marks: SegmentMarks::default(),
        restore_points: Vec::new(),
        further_points: 0,
    }
}
