//! K4: damage done to a repository in a directory is found and named. Its segments have real headers and no real content:
//! whoever reads them finds that out.

mod announced;
mod content;
mod emptied;
mod expiring;
mod gaps;
mod large;
mod shared;
mod slices;

use std::io::Write;
use std::path::PathBuf;

use jiff::Timestamp;
use walpoint_base::facts::HistoryHash;
use walpoint_base::{Lsn, SegmentNo, SegmentSize, TimelineId};
use walpoint_plan::retention::Policy;
use walpoint_storage::layout::{ClusterPaths, Key};
use walpoint_storage::object::{ObjectKind, ObjectReader};
use walpoint_storage::store::crashing::CrashingStore;

use super::*;
use crate::backup::{
    AnnouncedPacks, Announcement, Attributes, BlockSize, INLINE_BLOCKS, Intent, PackLimits, WriteOptions,
};
use crate::expire::outlook;
use crate::expire::tests::{ago, cluster, id, intent, keys, publish, world, world_of};
use crate::holds::{HeldOn, Holds, Placement};
use crate::index::tests::Bed;

/// Finds nothing wrong with any page or record.
pub(crate) struct Anything;

impl ContentCheck for Anything {
    fn pages(
        &self,
        _: &BackupDescription,
        _: &TablePath,
        _: u64,
        _: &[u8],
        _: &mut dyn FnMut(u64, u16, u16),
    ) {
    }

    fn wal(&self) -> Box<dyn WalCheck> {
        Box::new(Anything)
    }
}

impl WalCheck for Anything {
    fn segment(&mut self, _: SegmentName, _: &[u8]) -> Result<(), String> {
        Ok(())
    }
}

/// Finds the records of one segment wrong.
pub(crate) struct BrokenRecords(pub(crate) SegmentName);

impl ContentCheck for BrokenRecords {
    fn pages(
        &self,
        _: &BackupDescription,
        _: &TablePath,
        _: u64,
        _: &[u8],
        _: &mut dyn FnMut(u64, u16, u16),
    ) {
    }

    fn wal(&self) -> Box<dyn WalCheck> {
        Box::new(Self(self.0))
    }
}

impl WalCheck for BrokenRecords {
    fn segment(&mut self, name: SegmentName, _: &[u8]) -> Result<(), String> {
        match name == self.0 {
            true => Err("a record's checksum is wrong".to_owned()),
            false => Ok(()),
        }
    }
}

pub(crate) async fn run_with(
    bed: &Bed,
    depth: Depth,
    backup: Option<BackupId>,
    check: Arc<dyn ContentCheck>,
) -> Verified {
    let options = VerifyOptions { backup, depth, ..VerifyOptions::default() };
    let repository = bed.archive.repository();
    let outlook = outlook(repository, &cluster(), &Policy::default(), Timestamp::now()).await.unwrap();
    verify(repository, &cluster(), &outlook, check, &options).await.unwrap()
}

pub(crate) async fn run(bed: &Bed, depth: Depth) -> Verified {
    run_with(bed, depth, None, Arc::new(Anything)).await
}

pub(crate) fn path(bed: &Bed, key: &str) -> PathBuf {
    bed.dir.path().join(key)
}

pub(crate) fn replace(path: &PathBuf, bytes: &[u8]) {
    std::fs::remove_file(path).unwrap();
    std::fs::File::create_new(path).unwrap().write_all(bytes).unwrap();
}

/// What the run itself found.
fn found_now(report: &Verified) -> impl Iterator<Item = &VerifyFinding> {
    report
        .findings
        .iter()
        .filter(|finding| !finding.what.contains("no full verification has found it sound since"))
}

fn of_packs(report: &Verified) -> Vec<(FindingKind, String)> {
    let packs = report.findings.iter().filter(|finding| finding.object.ends_with(".pack"));
    packs.map(|finding| (finding.kind, finding.object.clone())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_gone_or_cut_is_seen_by_name_and_size() {
    let (bed, ids) = world().await;
    let clean = run(&bed, Depth::Light).await;
    assert_eq!((clean.finding_count, clean.backup_count, clean.segment_count), (0, 5, 95));
    let paths = ClusterPaths::new(&cluster());
    let pack = paths.pack(ids[1], 0);
    let file = path(&bed, pack.as_str());
    let whole = std::fs::read(&file).unwrap();

    replace(&file, &whole[..whole.len() - 1]);
    let report = run(&bed, Depth::Light).await;
    assert_eq!(of_packs(&report), [(FindingKind::Size, pack.to_string())]);
    assert_eq!(report.findings[0].backups, [ids[1].to_string()]);
    std::fs::remove_file(&file).unwrap();
    let report = run(&bed, Depth::Light).await;
    assert_eq!(of_packs(&report), [(FindingKind::Missing, pack.to_string())]);
    let announced = keys(&bed).await.into_iter().filter(|key| key.contains("/announcements/")).count();
    assert_eq!(announced, 1, "announced once: the next backup does not build on it");
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::fs::File::create_new(&file).unwrap().write_all(&whole).unwrap();

    let segment = |n: u64| {
        let size = SegmentSize::new(1 << 20).unwrap();
        bed.archive.paths().segment(SegmentNo(n).name(TimelineId::FIRST, size)).to_string()
    };
    std::fs::remove_file(path(&bed, &segment(15))).unwrap();
    std::fs::remove_file(path(&bed, &segment(50))).unwrap();
    let report = run(&bed, Depth::Light).await;
    let kinds: Vec<FindingKind> = found_now(&report).map(|finding| finding.kind).collect();
    assert_eq!(kinds, [FindingKind::Missing, FindingKind::Gap, FindingKind::Gap], "{report:#?}");
    assert_eq!(
        (report.findings[0].object.clone(), report.findings[0].backups.clone()),
        (segment(15), vec![ids[1].to_string()])
    );
    assert!(report.findings[1].moments.as_ref().unwrap().contains(&ids[2].to_string()), "{report:#?}");
    assert!(report.findings[2].moments.as_ref().unwrap().contains("the end of the archive"), "{report:#?}");
    assert_eq!(run_with(&bed, Depth::Light, Some(ids[3]), Arc::new(Anything)).await.finding_count, 0);

    let manifest = path(&bed, paths.manifest(ids[3]).as_str());
    let mut bytes = std::fs::read(&manifest).unwrap();
    let last = bytes.len() - 10;
    bytes[last] ^= 1;
    replace(&manifest, &bytes);
    let report = run(&bed, Depth::Light).await;
    assert!(
        report.findings.iter().any(|f| f.kind == FindingKind::Damaged && f.backups == [ids[3].to_string()]),
        "{report:#?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn segments_of_two_servers_under_one_timeline_are_a_finding() {
    let size = SegmentSize::new(1 << 20).unwrap();
    let paths = |bed: &Bed, n: u64| {
        bed.archive.paths().segment(SegmentNo(n).name(TimelineId::FIRST, size)).to_string()
    };
    // From 50 on, and at 70 by its history.
    let (bed, ids) = world_of(|header| {
        if header.segment.0 == 50 {
            header.chain.begin.previous = Some(header.segment.start(size) - 96);
        }
        header.history = HistoryHash([u8::try_from(header.segment.0 / 70).unwrap() + 1; 16]);
    })
    .await;
    let report = run(&bed, Depth::Light).await;
    let found: Vec<_> = report.findings.iter().map(|f| (f.kind, f.object.clone())).collect();
    assert_eq!(
        found,
        [(FindingKind::Chain, paths(&bed, 50)), (FindingKind::Chain, paths(&bed, 70))],
        "{report:#?}"
    );
    let first = &report.findings[0];
    assert!(first.what.starts_with("split brain: ") && first.what.contains("0/31FFFA0"), "{first:#?}");
    assert_eq!(first.remedy, Cure::SplitBrain, "{first:#?}");
    assert_eq!(first.backups, [ids[4].to_string()], "the last one that cannot pass it");

    // pg_resetwal is no second server, but recovery does not pass it either.
    let (bed, _) = world_of(|header| {
        if header.segment.0 == 50 {
            header.chain.begin.previous = Some(Lsn(0));
        }
    })
    .await;
    let report = run(&bed, Depth::Light).await;
    let found: Vec<_> = report.findings.iter().map(|f| (f.kind, f.object.clone())).collect();
    assert_eq!(found, [(FindingKind::Chain, paths(&bed, 50))], "{report:#?}");
    assert!(report.findings[0].what.contains("pg_resetwal"), "{report:#?}");
}

/// A backup of files that fill some packs and whose entries differ from those of other times. The files are so short that
/// their blocks are listed in their entries: nothing of the tables is shared.
async fn of_noise(bed: &Bed, segment: u64, hours: i64, parents: &[BackupId]) -> BackupId {
    let mut noise = vec![0; 1_000_000];
    blake3::Hasher::new().finalize_xof().fill(&mut noise);
    let intent = Intent { parents: parents.to_vec(), ..intent(bed, id(segment, hours), ago(hours)) };
    let options =
        WriteOptions { packs: PackLimits { pack: 300_000, in_flight: 700_000 }, ..WriteOptions::default() };
    let backups = Backups::of(bed.archive.repository(), &cluster());
    let writer = backups.begin(intent, BlockSize::new(8192).unwrap(), &options).await.unwrap();
    let mut stream = writer.stream();
    tokio::task::spawn_blocking(move || {
        let attributes = Attributes { mode: 0o700, uid: 26, gid: 26, mtime: hours };
        stream.directory(TablePath::data("").unwrap(), attributes).unwrap();
        for (n, noise) in noise.chunks(usize::try_from(INLINE_BLOCKS).unwrap() * 8192).enumerate() {
            let mut file = stream.file(TablePath::data(format!("noise{n}")).unwrap());
            file.write(noise).unwrap();
            file.finish(attributes).unwrap();
        }
        stream.finish().unwrap();
    })
    .await
    .unwrap();
    publish(bed, writer, hours).await
}

/// Objects that no backup and no window needs are read too.
#[tokio::test(flavor = "multi_thread")]
async fn what_only_helps_to_find_the_rest_is_read_too() {
    let (bed, _) = world().await;
    let all = keys(&bed).await;
    let key = all.iter().find(|key| key.contains("/index/")).unwrap();
    let damaged = async || run(&bed, Depth::Full).await.findings.iter().any(|finding| finding.object == *key);
    assert!(!damaged().await);
    let file = path(&bed, key);
    let mut bytes = std::fs::read(&file).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    replace(&file, &bytes);
    assert!(damaged().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn samples_go_on_where_the_last_one_stopped() {
    let (bed, _) = world().await;
    let packs = keys(&bed).await.iter().filter(|key| key.ends_with(".pack")).count();
    let mut seen = BTreeSet::new();
    for _ in 0..4 {
        let report = run(&bed, Depth::Sample(0.25)).await;
        for finding in found_now(&report) {
            assert!(seen.insert(finding.object.clone()), "read twice: {finding:?}");
        }
        let leases = keys(&bed).await.into_iter().filter(|key| key.contains("/leases/verify/")).count();
        assert_eq!(leases, 1);
    }
    assert!(seen.len() >= 94, "{} segments of 95, after {packs} packs", seen.len());
    for time in [Duration::from_secs(60), Duration::MAX] {
        let report = run(&bed, Depth::Budget(time)).await;
        assert_eq!(report.finding_count, 95, "{time:?}");
    }
}

/// K4: a sample goes on behind the object that was read last though that was deleted since.
#[tokio::test(flavor = "multi_thread")]
async fn a_sample_goes_on_behind_what_was_deleted() {
    let (bed, ids) = readable_world().await;
    let last = async || {
        let key = keys(&bed).await.into_iter().filter(|key| key.contains("/leases/verify/")).max().unwrap();
        let (key, sealer) = (key.parse::<Key>().unwrap(), bed.archive.repository().sealer().clone());
        let bytes = bed.archive.repository().store().get(&key).await.unwrap();
        let mut json = Vec::new();
        ObjectReader::open(&sealer, &[ObjectKind::Lease], &key, bytes)
            .and_then(|reader| reader.read_all(4096, &mut json))
            .unwrap();
        serde_json::from_slice::<serde_json::Value>(&json).unwrap()["after"].as_str().unwrap().to_owned()
    };
    let newer = ids[1].to_string();
    while run(&bed, Depth::Sample(0.01)).await.read_object_count == 1 && !last().await.contains(&newer) {}
    let before = last().await;
    std::fs::remove_file(path(&bed, ClusterPaths::new(&cluster()).manifest(ids[1]).as_str())).unwrap();
    std::fs::remove_dir_all(path(&bed, &before).parent().unwrap()).unwrap();
    run(&bed, Depth::Sample(0.01)).await;
    assert!(last().await.contains("/wal/"), "{before}");
}

/// K4: without the right to delete, or under a lock, the place where the last one stopped stays behind.
#[tokio::test(flavor = "multi_thread")]
async fn samples_go_on_though_nothing_can_be_deleted() {
    let (bed, _) = readable_world().await;
    let store = CrashingStore::new(bed.dir.path(), u32::MAX);
    store.lock(Some("clusters/"));
    let repository = Repository::over("main", store.store(), None).await.unwrap();
    let outlook = outlook(&repository, &cluster(), &Policy::default(), Timestamp::now()).await.unwrap();
    let depth = Depth::Sample(0.4);
    let options = VerifyOptions { depth, ..VerifyOptions::default() };
    for runs in 1..=3 {
        let check = Arc::new(Anything);
        let report = verify(&repository, &cluster(), &outlook, check, &options).await.unwrap();
        assert_eq!(report.finding_count, 0, "{report:#?}");
        let places = keys(&bed).await.into_iter().filter(|key| key.contains("/leases/verify/")).count();
        assert_eq!(places, runs);
    }
}

/// K4: a run says that the next one begins where it did only if the place where it stopped was not stored, whenever it dies.
#[tokio::test(flavor = "multi_thread")]
async fn a_place_that_was_stored_is_the_next_beginning_though_the_old_one_stays() {
    let (bed, _) = readable_world().await;
    let repository = bed.archive.repository();
    let outlook = outlook(repository, &cluster(), &Policy::default(), Timestamp::now()).await.unwrap();
    let depth = Depth::Sample(0.01);
    run(&bed, depth).await;
    let options = VerifyOptions { depth, ..VerifyOptions::default() };
    let newest = async || keys(&bed).await.into_iter().filter(|key| key.contains("/leases/verify/")).max();
    let mut notes = Vec::new();
    for life in 1.. {
        let store = CrashingStore::new(bed.dir.path(), life);
        let Ok(repository) = Repository::over("main", store.store(), None).await else { continue };
        let before = newest().await;
        let result = verify(&repository, &cluster(), &outlook, Arc::new(Anything), &options).await;
        let died = store.has_crashed().await;
        let Ok(report) = result else { continue };
        let begins_there = report.notes.iter().any(|note| note.contains("starts where this one started"));
        assert_eq!(begins_there, newest().await == before, "{life}: {report:#?}");
        notes.extend(report.notes);
        if !died {
            break;
        }
    }
    assert!(notes.iter().any(|note| note.contains("could not be deleted")), "{notes:#?}");
}

/// A repository whose segments can be read, with two backups.
pub(crate) async fn readable_world() -> (Bed, Vec<BackupId>) {
    let bed = crate::index::tests::bed().await;
    for number in 0..30 {
        bed.store_whole(number).await;
    }
    let ids = vec![of_noise(&bed, 5, 20, &[]).await, of_noise(&bed, 15, 10, &[]).await];
    (bed, ids)
}

pub(crate) fn flip(path: &PathBuf) {
    let mut bytes = std::fs::read(path).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    replace(path, &bytes);
}

/// Among the blocks of a pack, which end with a directory that no restore reads.
fn flip_block(path: &PathBuf) {
    let mut bytes = std::fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    replace(path, &bytes);
}

pub(crate) fn segment_key(bed: &Bed, n: u64) -> String {
    let size = SegmentSize::new(1 << 20).unwrap();
    bed.archive.paths().segment(SegmentNo(n).name(TimelineId::FIRST, size)).to_string()
}

/// K4: what is found of a backup's own list of files is known to all, and small objects are read too.
#[tokio::test(flavor = "multi_thread")]
async fn small_objects_are_read_and_lineages_are_missed() {
    let (bed, ids) = readable_world().await;
    let store = bed.archive.repository().store();
    let paths = ClusterPaths::new(&cluster());
    let lease = paths.lease("backup", 3).unwrap();
    assert!(store.create_blindly(&lease, bytes::Bytes::from_static(b"noise")).await.unwrap());
    flip(&path(&bed, paths.intent(ids[0]).as_str()));
    let report = run(&bed, Depth::Full).await;
    let mut objects: Vec<&str> = report.findings.iter().map(|finding| finding.object.as_str()).collect();
    objects.sort_unstable();
    assert_eq!(objects, [paths.intent(ids[0]).as_str(), lease.as_str()]);

    let lineage = paths.lineage(bed.archive.lineage().id);
    let file = path(&bed, lineage.as_str());
    flip(&file);
    let report = run(&bed, Depth::Light).await;
    let [finding] = &report.findings[..] else { panic!("{report:#?}") };
    assert_eq!(
        (finding.kind, finding.object.as_str(), finding.backups.len()),
        (FindingKind::Damaged, lineage.as_str(), 2)
    );
    std::fs::remove_file(&file).unwrap();
    let report = run(&bed, Depth::Light).await;
    let [finding] = &report.findings[..] else { panic!("{report:#?}") };
    assert_eq!(
        (finding.kind, finding.object.as_str(), finding.backups.len()),
        (FindingKind::Missing, lineage.as_str(), 2)
    );
}

/// K4: what says that a hold was placed is read by a full verification, beside the hold itself.
#[tokio::test(flavor = "multi_thread")]
async fn what_says_that_a_hold_was_placed_is_read() {
    let (bed, _) = readable_world().await;
    let (on, at) = (HeldOn::Label("audit".to_owned()), Timestamp::now());
    let placement = Placement { on, reason: String::new(), who: String::new(), at, until: None };
    let number = Holds::of(bed.archive.repository(), &cluster()).add(&placement).await.unwrap();
    assert_eq!(run(&bed, Depth::Full).await.findings, []);
    let given = ClusterPaths::new(&cluster()).hold_given(number);
    flip(&path(&bed, given.as_str()));
    let objects = run(&bed, Depth::Full).await.findings.into_iter().map(|finding| finding.object);
    assert_eq!(objects.collect::<Vec<_>>(), [given.to_string()]);
}

/// K4: what says that a hold was placed is missed if it is lost, until the next entry stores it again.
#[tokio::test(flavor = "multi_thread")]
async fn what_says_that_a_hold_was_placed_is_missed() {
    let (bed, _) = readable_world().await;
    let (on, at) = (HeldOn::Label("audit".to_owned()), Timestamp::now());
    let placement = Placement { on, reason: String::new(), who: String::new(), at, until: None };
    let holds = Holds::of(bed.archive.repository(), &cluster());
    let number = holds.add(&placement).await.unwrap();
    let given = ClusterPaths::new(&cluster()).hold_given(number);
    std::fs::remove_file(path(&bed, given.as_str())).unwrap();
    for depth in [Depth::Light, Depth::Full] {
        let objects =
            run(&bed, depth).await.findings.into_iter().map(|finding| (finding.kind, finding.object));
        assert_eq!(objects.collect::<Vec<_>>(), [(FindingKind::Missing, given.to_string())]);
    }
    holds.add(&placement).await.unwrap();
    assert_eq!(run(&bed, Depth::Light).await.findings, []);
}

/// K4: a backup that was finished and has lost its manifest is a finding, and so are packs of which nothing else is there; one that
/// was killed is none, and what is being deleted is none.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_manifest_is_a_finding() {
    let (bed, ids) = readable_world().await;
    let backups = Backups::of(bed.archive.repository(), &cluster());
    let paths = ClusterPaths::new(&cluster());
    ids.iter().for_each(|id| assert!(path(&bed, paths.manifest(*id).as_str()).exists()));
    let manifest = path(&bed, paths.manifest(ids[0]).as_str());
    let bytes = std::fs::read(&manifest).unwrap();
    std::fs::remove_file(&manifest).unwrap();
    assert_eq!(run(&bed, Depth::Light).await.finding_count, 0, "as one that was killed");
    replace_new(&manifest, &bytes);
    backups.tidy(ids[0]).await.unwrap();
    assert_eq!(run(&bed, Depth::Full).await.finding_count, 0);
    std::fs::remove_file(&manifest).unwrap();
    for depth in [Depth::Light, Depth::Full] {
        let report = run(&bed, depth).await;
        let [finding] = &report.findings[..] else { panic!("{report:#?}") };
        assert_eq!(
            (finding.kind, finding.object.as_str()),
            (FindingKind::Missing, paths.manifest(ids[0]).as_str())
        );
        assert_eq!(finding.backups, [ids[0].to_string()]);
    }
    // Nothing but its packs is left.
    std::fs::remove_dir_all(manifest.parent().unwrap()).unwrap();
    assert_eq!(run(&bed, Depth::Light).await.finding_count, 0, "it may have begun just now");
    for key in keys(&bed).await.iter().filter(|key| key.contains(&format!("/data/{}", ids[0]))) {
        let day = std::time::SystemTime::now() - Duration::from_secs(25 * 3600);
        std::fs::File::open(path(&bed, key)).unwrap().set_modified(day).unwrap();
    }
    let report = run(&bed, Depth::Light).await;
    let [finding] = &report.findings[..] else { panic!("{report:#?}") };
    assert_eq!(
        (finding.kind, finding.object.as_str()),
        (FindingKind::Missing, paths.manifest(ids[0]).as_str())
    );
    let announced = Announcement {
        written: Timestamp::now(),
        host: String::new(),
        agent: String::new(),
        reason: AnnouncementReason::Expired,
        backups: Vec::new(),
        packs: vec![AnnouncedPacks::all_of(ids[0])],
        wal: Vec::new(),
        requests: Vec::new(),
    };
    backups.announce(&announced).await.unwrap();
    assert_eq!(run(&bed, Depth::Light).await.finding_count, 0, "it is being deleted");
}

fn replace_new(path: &PathBuf, bytes: &[u8]) {
    std::fs::File::create_new(path).unwrap().write_all(bytes).unwrap();
}
