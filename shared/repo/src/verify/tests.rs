//! K4: damage done to a repository in a directory is found and named. Its segments have real headers and no real content:
//! whoever reads them finds that out.

use std::io::Write;
use std::path::PathBuf;

use jiff::Timestamp;
use walpoint_base::facts::HistoryHash;
use walpoint_base::{Lsn, SegmentNo, SegmentSize, TimelineId};
use walpoint_plan::retention::Policy;
use walpoint_storage::layout::ClusterPaths;
use walpoint_storage::store::mortal::Mortal;

use super::*;
use crate::backup::{
    Attributes, BlockSize, Condemned, CondemnedPacks, INLINE_BLOCKS, Intent, PackLimits, WriteOptions,
};
use crate::expire::outlook;
use crate::expire::tests::{ago, cluster, id, intent, keys, publish, world, world_of};
use crate::index::tests::Bed;

/// Finds nothing wrong with any page or record.
pub(crate) struct Anything;

impl ContentCheck for Anything {
    fn pages(&self, _: &BackupFacts, _: &TablePath, _: u64, _: &[u8], _: &mut dyn FnMut(u64, u16, u16)) {}

    fn wal(&self) -> Box<dyn WalCheck> {
        Box::new(Anything)
    }
}

impl WalCheck for Anything {
    fn segment(&mut self, _: SegmentName, _: &[u8]) -> Result<(), String> {
        Ok(())
    }
}

/// A page check that finds the second block of every file wrong.
struct SecondBlock;

impl ContentCheck for SecondBlock {
    fn pages(
        &self,
        _: &BackupFacts,
        _: &TablePath,
        offset: u64,
        bytes: &[u8],
        bad: &mut dyn FnMut(u64, u16, u16),
    ) {
        let blocks = u64::try_from(bytes.len().div_ceil(8192)).unwrap();
        (offset / 8192..offset / 8192 + blocks)
            .filter(|block| *block == 1)
            .for_each(|block| bad(block, 1, 2));
    }

    fn wal(&self) -> Box<dyn WalCheck> {
        Box::new(Anything)
    }
}

async fn run_with(
    bed: &Bed,
    depth: Depth,
    backup: Option<BackupId>,
    check: Arc<dyn ContentCheck>,
) -> Verified {
    let options = VerifyOptions { backup, depth, host: String::new(), agent: String::new() };
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
    report.findings.iter().filter(|finding| !finding.what.contains("was not found whole again since"))
}

fn of_packs(report: &Verified) -> Vec<(&'static str, String)> {
    let packs = report.findings.iter().filter(|finding| finding.object.ends_with(".pack"));
    packs.map(|finding| (finding.kind, finding.object.clone())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_gone_or_cut_is_seen_by_name_and_size() {
    let (bed, ids) = world().await;
    let clean = run(&bed, Depth::Light).await;
    assert_eq!((clean.found, clean.backups, clean.segments), (0, 5, 95));
    let paths = ClusterPaths::new(&cluster());
    let pack = paths.pack(ids[1], 0);
    let file = path(&bed, pack.as_str());
    let whole = std::fs::read(&file).unwrap();

    replace(&file, &whole[..whole.len() - 1]);
    let report = run(&bed, Depth::Light).await;
    assert_eq!(of_packs(&report), [("size", pack.to_string())]);
    assert_eq!(report.findings[0].backups, [ids[1].to_string()]);
    std::fs::remove_file(&file).unwrap();
    let report = run(&bed, Depth::Light).await;
    assert_eq!(of_packs(&report), [("missing", pack.to_string())]);
    let condemned = keys(&bed).await.into_iter().filter(|key| key.contains("/condemned/")).count();
    assert_eq!(condemned, 1, "announced once: the next backup does not build on it");
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::fs::File::create_new(&file).unwrap().write_all(&whole).unwrap();

    let segment = |n: u64| {
        let size = SegmentSize::new(1 << 20).unwrap();
        bed.archive.paths().segment(SegmentNo(n).name(TimelineId::FIRST, size)).to_string()
    };
    std::fs::remove_file(path(&bed, &segment(15))).unwrap();
    std::fs::remove_file(path(&bed, &segment(50))).unwrap();
    let report = run(&bed, Depth::Light).await;
    let kinds: Vec<&str> = found_now(&report).map(|finding| finding.kind).collect();
    assert_eq!(kinds, ["missing", "gap", "gap"], "{report:#?}");
    assert_eq!(
        (report.findings[0].object.clone(), report.findings[0].backups.clone()),
        (segment(15), vec![ids[1].to_string()])
    );
    assert!(report.findings[1].moments.as_ref().unwrap().contains(&ids[2].to_string()), "{report:#?}");
    assert!(report.findings[2].moments.as_ref().unwrap().contains("the end of the archive"), "{report:#?}");
    assert_eq!(run_with(&bed, Depth::Light, Some(ids[3]), Arc::new(Anything)).await.found, 0);

    let manifest = path(&bed, paths.manifest(ids[3]).as_str());
    let mut bytes = std::fs::read(&manifest).unwrap();
    let last = bytes.len() - 10;
    bytes[last] ^= 1;
    replace(&manifest, &bytes);
    let report = run(&bed, Depth::Light).await;
    assert!(
        report.findings.iter().any(|f| f.kind == "damaged" && f.backups == [ids[3].to_string()]),
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
    assert_eq!(found, [("chain", paths(&bed, 50)), ("chain", paths(&bed, 70))], "{report:#?}");
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
    assert_eq!(found, [("chain", paths(&bed, 50))], "{report:#?}");
    assert!(report.findings[0].what.contains("pg_resetwal"), "{report:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_bit_is_read() {
    let (bed, ids) = world().await;
    let clean = run(&bed, Depth::Full).await;
    assert_eq!(of_packs(&clean), []);
    assert_eq!(clean.verified_bytes, 5 * 32_000);
    assert_eq!(clean.found, 95, "segments without the content that their headers describe");
    assert!(
        clean.findings.iter().all(|finding| finding.kind == "damaged" && finding.object.contains("/wal/"))
    );

    let pages = run_with(&bed, Depth::Full, Some(ids[0]), Arc::new(SecondBlock)).await;
    let wrong: Vec<&VerifyFinding> = pages.findings.iter().filter(|finding| finding.kind == "page").collect();
    assert_eq!(wrong.len(), 1);
    assert!(
        wrong[0].object.starts_with("file block 1") || wrong[0].object.contains("block 1 in"),
        "{wrong:?}"
    );

    for key in keys(&bed).await.into_iter().filter(|key| key.ends_with(".pack")) {
        let file = path(&bed, &key);
        let whole = std::fs::read(&file).unwrap();
        let mut bytes = whole.clone();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        replace(&file, &bytes);
        assert_eq!(found_now(&run(&bed, Depth::Light).await).count(), 0, "{key}");
        let report = run(&bed, Depth::Full).await;
        assert_eq!(of_packs(&report), [("damaged", key.clone())]);
        replace(&file, &whole);
    }
    let condemned =
        bed.archive.repository().store().list_all(&ClusterPaths::new(&cluster()).all()).await.unwrap();
    assert!(condemned.iter().any(|entry| entry.key.as_str().contains("/condemned/")));
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
    let mut lane = writer.lane();
    tokio::task::spawn_blocking(move || {
        let attributes = Attributes { mode: 0o700, uid: 26, gid: 26, mtime: hours };
        lane.directory(TablePath::data("").unwrap(), attributes).unwrap();
        for (n, noise) in noise.chunks(usize::try_from(INLINE_BLOCKS).unwrap() * 8192).enumerate() {
            let mut file = lane.file(TablePath::data(format!("noise{n}")).unwrap());
            file.write(noise).unwrap();
            file.finish(attributes).unwrap();
        }
        lane.finish().unwrap();
    })
    .await
    .unwrap();
    publish(bed, writer, hours).await
}

/// Where a backup's tables are damaged, what others share with it is read with them.
#[tokio::test(flavor = "multi_thread")]
async fn damaged_tables_hide_no_damaged_block() {
    let (bed, _) = world().await;
    let first = of_noise(&bed, 60, 3, &[]).await;
    let second = of_noise(&bed, 70, 2, &[first]).await;
    let backups = Backups::of(bed.archive.repository(), &cluster());
    assert_eq!(backups.open(second).await.unwrap().manifest().backups, [second, first]);
    let packs: Vec<String> = keys(&bed)
        .await
        .into_iter()
        .filter(|key| key.contains(&format!("{first}/")) && key.ends_with(".pack"))
        .collect();
    let flip = |key: &str| {
        let file = path(&bed, key);
        let mut bytes = std::fs::read(&file).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        replace(&file, &bytes);
    };
    let mut tables = Vec::new();
    for pack in &packs {
        flip(pack);
        let report = run(&bed, Depth::Full).await;
        assert_eq!(of_packs(&report), [("damaged", pack.clone())]);
        if report.notes.iter().any(|note| note.contains(&format!("the rest of backup {first}"))) {
            tables.push(pack.clone());
        }
        flip(pack);
    }
    assert!(tables.len() == 1 && packs.len() > 2, "{tables:?} of {packs:?}");
    flip(&tables[0]);
    for pack in packs.iter().filter(|pack| !tables.contains(pack)) {
        flip(pack);
        let mut found = of_packs(&run(&bed, Depth::Full).await);
        found.sort();
        let mut both = [("damaged", pack.clone()), ("damaged", tables[0].clone())];
        both.sort();
        assert_eq!(found, both);
        flip(pack);
    }
}

/// What many backups share is read once, though the backup that wrote it has expired and none of them uses all of it.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_shared_is_read_once() {
    let (bed, _) = world().await;
    let first = of_noise(&bed, 60, 20, &[]).await;
    let mut last = first;
    for n in 0..8 {
        last = of_noise(&bed, 61 + n, 19 - i64::try_from(n).unwrap(), &[last]).await;
    }
    let paths = ClusterPaths::new(&cluster());
    let store = bed.archive.repository().store();
    let mut stored = 0;
    for entry in store.list_all(&paths.all_data()).await.unwrap() {
        stored += entry.size;
    }
    // The writer goes, and with it the only one that uses all of its packs.
    store.delete(&paths.manifest(first)).await.unwrap();
    store.delete(&paths.intent(first)).await.unwrap();
    let before = store.requests().bytes_in;
    let report = run(&bed, Depth::Full).await;
    assert_eq!(of_packs(&report), []);
    let read = store.requests().bytes_in - before;
    println!("{stored} bytes are stored in packs, {read} were read");
    assert!(read < stored * 3 / 2, "{read} of {stored}");
    // And what is damaged in it is found all the same.
    let pack = paths.pack(first, 1);
    let file = path(&bed, pack.as_str());
    let mut bytes = std::fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    replace(&file, &bytes);
    assert_eq!(of_packs(&run(&bed, Depth::Full).await), [("damaged", pack.to_string())]);
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

/// That a pack is to be deleted may be taken back; that it is damaged stays known.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_to_be_deleted_is_condemned_for_its_damage_too() {
    let (bed, ids) = world().await;
    let backups = Backups::of(bed.archive.repository(), &cluster());
    let packs = vec![CondemnedPacks::all_of(ids[1])];
    let expired = Condemned {
        written: Timestamp::now(),
        host: String::new(),
        agent: String::new(),
        reason: CondemnedReason::Expired,
        backups: Vec::new(),
        packs,
        wal: Vec::new(),
        requests: Vec::new(),
    };
    backups.condemn(&expired).await.unwrap();
    let file = path(&bed, ClusterPaths::new(&cluster()).pack(ids[1], 0).as_str());
    let mut bytes = std::fs::read(&file).unwrap();
    bytes.pop();
    replace(&file, &bytes);
    for _ in 0..2 {
        run(&bed, Depth::Light).await;
        let condemned = backups.condemned().await.unwrap();
        let damaged = condemned.read.iter().filter(|one| one.condemned.reason == CondemnedReason::Damaged);
        let named: Vec<&CondemnedPacks> = damaged.flat_map(|one| &one.condemned.packs).collect();
        assert_eq!(named, [&CondemnedPacks { backup: ids[1], first: 0, count: 1 }]);
    }
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
    let report = run(&bed, Depth::Budget(Duration::from_secs(60))).await;
    assert_eq!(report.found, 95);
}

/// K4: without the right to delete, or under a lock, the place where the last one stopped stays behind.
#[tokio::test(flavor = "multi_thread")]
async fn samples_go_on_though_nothing_can_be_deleted() {
    let (bed, _) = readable_world().await;
    let store = Mortal::new(bed.dir.path(), u32::MAX);
    store.lock(Some("clusters/"));
    let repository = Repository::over("main", store.store(), None).await.unwrap();
    let outlook = outlook(&repository, &cluster(), &Policy::default(), Timestamp::now()).await.unwrap();
    let depth = Depth::Sample(0.4);
    let options = VerifyOptions { backup: None, depth, host: String::new(), agent: String::new() };
    for runs in 1..=3 {
        let check = Arc::new(Anything);
        let report = verify(&repository, &cluster(), &outlook, check, &options).await.unwrap();
        assert_eq!(report.found, 0, "{report:#?}");
        let places = keys(&bed).await.into_iter().filter(|key| key.contains("/leases/verify/")).count();
        assert_eq!(places, runs);
    }
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

async fn announced(bed: &Bed) -> usize {
    Backups::of(bed.archive.repository(), &cluster()).condemned().await.unwrap().read.len()
}

/// What is known of each backup without reading what it uses.
async fn soundness(bed: &Bed) -> Vec<bool> {
    let now = Timestamp::now();
    let outlook = outlook(bed.archive.repository(), &cluster(), &Policy::default(), now).await.unwrap();
    outlook.decisions.iter().map(|decision| decision.backup.is_sound()).collect()
}

/// K4: a damaged segment in which a backup begins is told of that backup, which is not named as the first that is whole again.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_segment_costs_the_backup_that_begins_in_it() {
    let (bed, ids) = readable_world().await;
    assert_eq!(run(&bed, Depth::Full).await.found, 0);
    let segment = path(&bed, &segment_key(&bed, 15));
    let whole = std::fs::read(&segment).unwrap();
    flip(&segment);
    let report = run(&bed, Depth::Full).await;
    let [finding] = &report.findings[..] else { panic!("{report:#?}") };
    assert_eq!((finding.kind, &finding.backups), ("damaged", &vec![ids[1].to_string()]));
    let moments = finding.moments.as_ref().unwrap();
    assert!(
        moments.contains("the end of the archive") && moments.contains("do not become consistent"),
        "{finding:#?}"
    );
    assert_eq!(soundness(&bed).await, [true, false]);
    // One between two backups costs the moments behind it.
    flip(&path(&bed, &segment_key(&bed, 10)));
    let report = run(&bed, Depth::Full).await;
    let finding = report.findings.iter().find(|finding| finding.object == segment_key(&bed, 10)).unwrap();
    assert_eq!(finding.backups, [ids[0].to_string()]);
    assert!(finding.moments.as_ref().unwrap().contains(&format!("up to backup {}", ids[1])), "{finding:#?}");
    assert_eq!(soundness(&bed).await, [true, false]);
    // Put back, and read again.
    replace(&segment, &whole);
    assert_eq!(soundness(&bed).await, [true, false]);
    run(&bed, Depth::Full).await;
    assert_eq!(soundness(&bed).await, [true, true]);
}

/// K4: damage that is over is taken back by who has read that it is, and not by who only looked.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_whole_again_is_damaged_no_more() {
    let (bed, ids) = readable_world().await;
    let packs = [0, 1].map(|n| path(&bed, ClusterPaths::new(&cluster()).pack(ids[1], n).as_str()));
    let whole = std::fs::read(&packs[0]).unwrap();
    packs.iter().for_each(flip_block);
    assert_eq!(run(&bed, Depth::Full).await.found, 2);
    assert_eq!((soundness(&bed).await, announced(&bed).await), (vec![true, false], 1));
    replace(&packs[0], &whole);
    run(&bed, Depth::Full).await;
    let left = Backups::of(bed.archive.repository(), &cluster()).condemned().await.unwrap().read;
    let named: Vec<u32> = left.iter().flat_map(|one| &one.condemned.packs).map(|packs| packs.first).collect();
    assert_eq!(named, [1], "the other one is still damaged");
    flip_block(&packs[1]);
    assert_eq!(
        (run(&bed, Depth::Light).await.found, announced(&bed).await),
        (1, 1),
        "told until it was read"
    );
    assert_eq!((run(&bed, Depth::Full).await.found, announced(&bed).await), (0, 0));
    assert_eq!(soundness(&bed).await, [true, true]);
}

/// K4: a damaged announcement is a finding, and a run that reads everything says again what it said of damage.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_announcement_is_replaced_by_what_is_found() {
    let (bed, ids) = readable_world().await;
    flip_block(&path(&bed, ClusterPaths::new(&cluster()).pack(ids[1], 0).as_str()));
    run(&bed, Depth::Full).await;
    let key = ClusterPaths::new(&cluster()).condemned(0);
    flip(&path(&bed, key.as_str()));
    for depth in [Depth::Light, Depth::Sample(1.0)] {
        let report = run(&bed, depth).await;
        assert!(report.findings.iter().any(|finding| finding.object == key.as_str()), "{report:#?}");
        assert!(keys(&bed).await.contains(key.as_str()), "not all was read");
    }
    let report = run(&bed, Depth::Full).await;
    assert!(report.findings.iter().any(|finding| finding.object == key.as_str()), "{report:#?}");
    assert!(!keys(&bed).await.contains(key.as_str()));
    assert_eq!(soundness(&bed).await, [true, false]);
    assert!(!run(&bed, Depth::Full).await.findings.iter().any(|finding| finding.object == key.as_str()));
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
        ("damaged", lineage.as_str(), 2)
    );
    std::fs::remove_file(&file).unwrap();
    let report = run(&bed, Depth::Light).await;
    let [finding] = &report.findings[..] else { panic!("{report:#?}") };
    assert_eq!(
        (finding.kind, finding.object.as_str(), finding.backups.len()),
        ("missing", lineage.as_str(), 2)
    );
}

/// K4: what `expire` deletes beside a run is no finding, and is not announced as damaged.
#[tokio::test(flavor = "multi_thread")]
async fn what_expires_beside_a_run_is_no_finding() {
    let (bed, ids) = readable_world().await;
    let (repository, cluster) = (bed.archive.repository(), cluster());
    let outlook = outlook(repository, &cluster, &Policy::default(), Timestamp::now()).await.unwrap();
    let options =
        VerifyOptions { backup: None, depth: Depth::Full, host: String::new(), agent: String::new() };
    let mut run = Run::new(repository, &cluster, &outlook, Arc::new(Anything), &options);
    let needed = run.light(&outlook).await.unwrap();
    // As expire does: announced, then the intent, the manifest, the packs, the WAL.
    let wal = crate::backup::CondemnedWal {
        lineage: bed.archive.lineage().id,
        timeline: TimelineId::FIRST,
        first: 0,
        last: 14,
    };
    let condemned = Condemned {
        written: Timestamp::now(),
        host: String::new(),
        agent: String::new(),
        reason: CondemnedReason::Expired,
        backups: vec![ids[0]],
        packs: vec![CondemnedPacks::all_of(ids[0])],
        wal: vec![wal],
        requests: Vec::new(),
    };
    Backups::of(repository, &cluster).condemn(&condemned).await.unwrap();
    let own =
        |key: &String| key.contains(&ids[0].to_string()) || (0..15).any(|n| *key == segment_key(&bed, n));
    for key in keys(&bed).await.iter().filter(|key| own(key)) {
        std::fs::remove_file(path(&bed, key)).unwrap();
    }
    run.blocks().await.unwrap();
    run.wal(&needed).await.unwrap();
    run.others(&needed).await.unwrap();
    assert_eq!(run.report.findings, []);
    assert!(run.damaged.is_empty() && run.damaged_wal.is_empty());
}

/// A page of block 1 that is newer than the backups that started before this.
struct NewerThan(Lsn);

impl ContentCheck for NewerThan {
    fn pages(
        &self,
        facts: &BackupFacts,
        path: &TablePath,
        offset: u64,
        bytes: &[u8],
        bad: &mut dyn FnMut(u64, u16, u16),
    ) {
        if facts.start_lsn > self.0 && path.to_string() == "file" {
            SecondBlock.pages(facts, path, offset, bytes, bad);
        }
    }

    fn wal(&self) -> Box<dyn WalCheck> {
        Box::new(Anything)
    }
}

/// A shared block is nothing wrong in the backup that it is newer than, and damage in one that began later.
#[tokio::test(flavor = "multi_thread")]
async fn a_page_left_to_replay_by_one_backup_is_judged_again_with_the_next() {
    let (bed, _) = world().await;
    let mut made = Vec::new();
    for (segment, hours) in [(60, 3), (70, 2)] {
        let intent = Intent { parents: made.clone(), ..intent(&bed, id(segment, hours), ago(hours)) };
        let backups = Backups::of(bed.archive.repository(), &cluster());
        let options = WriteOptions::default();
        let writer = backups.begin(intent, BlockSize::new(8192).unwrap(), &options).await.unwrap();
        let mut lane = writer.lane();
        tokio::task::spawn_blocking(move || {
            let attributes = Attributes { mode: 0o700, uid: 26, gid: 26, mtime: hours };
            lane.directory(TablePath::data("").unwrap(), attributes).unwrap();
            let mut file = lane.file(TablePath::data("file").unwrap());
            file.write(&[7; 4 * 8192]).unwrap();
            file.finish(attributes).unwrap();
            lane.finish().unwrap();
        })
        .await
        .unwrap();
        made.push(publish(&bed, writer, hours).await);
    }
    let newer = Arc::new(NewerThan(made[0].start()));
    let report = run_with(&bed, Depth::Full, None, newer).await;
    let pages: Vec<_> = report.findings.iter().filter(|finding| finding.kind == "page").collect();
    assert_eq!(pages.len(), 1, "{report:#?}");
    assert_eq!(pages[0].backups, [made[1].to_string()]);
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
    assert_eq!(run(&bed, Depth::Light).await.found, 0, "as one that was killed");
    replace_new(&manifest, &bytes);
    backups.tidy(ids[0]).await.unwrap();
    assert_eq!(run(&bed, Depth::Full).await.found, 0);
    std::fs::remove_file(&manifest).unwrap();
    for depth in [Depth::Light, Depth::Full] {
        let report = run(&bed, depth).await;
        let [finding] = &report.findings[..] else { panic!("{report:#?}") };
        assert_eq!((finding.kind, finding.object.as_str()), ("missing", paths.manifest(ids[0]).as_str()));
        assert_eq!(finding.backups, [ids[0].to_string()]);
    }
    // Nothing but its packs is left.
    std::fs::remove_dir_all(manifest.parent().unwrap()).unwrap();
    assert_eq!(run(&bed, Depth::Light).await.found, 0, "it may have begun just now");
    for key in keys(&bed).await.iter().filter(|key| key.contains(&format!("/data/{}", ids[0]))) {
        let day = std::time::SystemTime::now() - Duration::from_secs(25 * 3600);
        std::fs::File::open(path(&bed, key)).unwrap().set_modified(day).unwrap();
    }
    let report = run(&bed, Depth::Light).await;
    let [finding] = &report.findings[..] else { panic!("{report:#?}") };
    assert_eq!((finding.kind, finding.object.as_str()), ("missing", paths.manifest(ids[0]).as_str()));
    let condemned = Condemned {
        written: Timestamp::now(),
        host: String::new(),
        agent: String::new(),
        reason: CondemnedReason::Expired,
        backups: Vec::new(),
        packs: vec![CondemnedPacks::all_of(ids[0])],
        wal: Vec::new(),
        requests: Vec::new(),
    };
    backups.condemn(&condemned).await.unwrap();
    assert_eq!(run(&bed, Depth::Light).await.found, 0, "it is being deleted");
}

/// K4: what was found damaged is a finding of every later run, whatever that reads, until it is found whole again.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_found_damaged_is_told_by_every_run() {
    let (bed, ids) = readable_world().await;
    let damaged = [
        path(&bed, ClusterPaths::new(&cluster()).pack(ids[1], 0).as_str()),
        path(&bed, &segment_key(&bed, 16)),
    ];
    let whole = damaged.each_ref().map(|file| std::fs::read(file).unwrap());
    flip_block(&damaged[0]);
    flip(&damaged[1]);
    assert!(run(&bed, Depth::Full).await.found >= 2);
    for depth in [Depth::Light, Depth::Light, Depth::Sample(0.01), Depth::Sample(0.01)] {
        let report = run(&bed, depth).await;
        for file in &damaged {
            let told = |object: &str| file.ends_with(object);
            assert!(report.findings.iter().any(|finding| told(&finding.object)), "{depth:?} {report:#?}");
        }
    }
    damaged.iter().zip(&whole).for_each(|(file, bytes)| replace(file, bytes));
    assert_eq!(run(&bed, Depth::Full).await.found, 0);
    assert_eq!(run(&bed, Depth::Light).await.found, 0);
}

fn replace_new(path: &PathBuf, bytes: &[u8]) {
    std::fs::File::create_new(path).unwrap().write_all(bytes).unwrap();
}
