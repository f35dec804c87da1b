//! What is known to be damaged or missing pushes nothing sound out, in the first run and in every later one.

use crate::verify::FindingKind;
use std::sync::Arc;

use walpoint_storage::error::{Override, Remark, Remedy, RepoError};

use super::*;
use crate::backup::AnnouncedWal;
use crate::verify::tests::Anything;
use crate::verify::{Depth, VerifyOptions, verify};

fn segment_path(bed: &Bed, number: u64) -> PathBuf {
    path(bed, bed.archive.paths().segment(SegmentNo(number).name(FIRST, size())).as_str())
}

fn damaged() -> Announcement {
    Announcement {
        written: Timestamp::now(),
        host: String::new(),
        agent: String::new(),
        reason: AnnouncementReason::Damaged,
        backups: Vec::new(),
        packs: Vec::new(),
        wal: Vec::new(),
        requests: Vec::new(),
    }
}

fn write_new(path: &PathBuf, bytes: &[u8]) {
    std::io::Write::write_all(&mut File::create_new(path).unwrap(), bytes).unwrap();
}

async fn announced_damage(bed: &Bed) -> usize {
    let announced = Backups::of(bed.archive.repository(), &cluster()).announcements().await.unwrap();
    announced.read.iter().filter(|one| one.announcement.reason == AnnouncementReason::Damaged).count()
}

/// What is reported of the newest of five backups.
fn newest_damage(report: &Expired) -> Option<&str> {
    report.backups.last().unwrap().damage.as_deref()
}

/// K1, promise 11: a pack that a manifest names and the store has lost is damage, whether anything was announced or not, for as
/// long as that manifest is there.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_pack_is_damage_for_as_long_as_a_manifest_names_it() {
    let (bed, ids) = world().await;
    std::fs::remove_file(path(&bed, ClusterPaths::new(&cluster()).pack(ids[4], 0).as_str())).unwrap();
    for _ in 0..3 {
        let report = run(&bed, &at_once(1)).await;
        assert_eq!(finished(&bed).await, [ids[3], ids[4]]);
        assert_eq!(newest_damage(&report), Some("1 damaged or missing packs"));
        // Who lists no packs knows it from here.
        let outlook = outlook(bed.archive.repository(), &cluster(), &at_once(1).policy, Timestamp::now())
            .await
            .unwrap();
        assert_eq!(outlook.decisions.last().unwrap().backup.damage.packs, 1);
        assert_eq!(announced_damage(&bed).await, 1);
    }
    all_is_well(&bed, &ids[3..4]).await;
    // Nothing names it any more.
    let paths = ClusterPaths::new(&cluster());
    for key in [paths.manifest(ids[4]), paths.intent(ids[4])] {
        std::fs::remove_file(path(&bed, key.as_str())).unwrap();
    }
    run(&bed, &at_once(1)).await;
    assert_eq!(announced_damage(&bed).await, 0);
    assert_eq!(finished(&bed).await, [ids[3]]);
}

/// The same for a pack that is not as long as what was written.
#[tokio::test(flavor = "multi_thread")]
async fn a_pack_that_was_cut_is_damage() {
    let (bed, ids) = world().await;
    let pack = path(&bed, ClusterPaths::new(&cluster()).pack(ids[4], 0).as_str());
    let bytes = std::fs::read(&pack).unwrap();
    std::fs::remove_file(&pack).unwrap();
    write_new(&pack, &bytes[..bytes.len() - 1]);
    let report = run(&bed, &at_once(1)).await;
    assert_eq!(
        (finished(&bed).await, newest_damage(&report)),
        (vec![ids[3], ids[4]], Some("1 damaged or missing packs"))
    );
}

/// K1, K2: a backup whose WAL from its start to its stop is not all there pushes none out that becomes consistent; that one's WAL
/// stays to the end of the archive.
#[tokio::test(flavor = "multi_thread")]
async fn a_backup_that_does_not_become_consistent_pushes_no_sound_one_out() {
    let (bed, ids) = world().await;
    let lost = SegmentNo::of(ids[4].start(), size()).0 + 1;
    std::fs::remove_file(segment_path(&bed, lost)).unwrap();
    for _ in 0..2 {
        let report = run(&bed, &at_once(1)).await;
        assert_eq!(finished(&bed).await, [ids[3], ids[4]]);
        assert_eq!(newest_damage(&report), Some("1 damaged or missing WAL segments"));
        let outlook = outlook(bed.archive.repository(), &cluster(), &at_once(1).policy, Timestamp::now())
            .await
            .unwrap();
        assert_eq!(outlook.decisions.last().unwrap().backup.damage.segments, 1);
    }
    let first = SegmentNo::of(ids[3].start(), size()).0;
    let expected: Vec<u64> = (first..100).filter(|n| *n != lost).collect();
    assert_eq!(segments(&bed).await, expected);
    // What comes back is sound again.
    bed.store_header(header(bed.archive.lineage().id, FIRST, lost)).await;
    run(&bed, &at_once(1)).await;
    assert_eq!(finished(&bed).await, [ids[4]]);
}

/// The same for a segment that was found damaged by its content: the announcement holds while a backup needs it.
#[tokio::test(flavor = "multi_thread")]
async fn a_segment_that_was_announced_as_damaged_counts_while_a_backup_needs_it() {
    let (bed, ids) = world().await;
    let first = SegmentNo::of(ids[4].start(), size()).0;
    let wal = AnnouncedWal { lineage: bed.archive.lineage().id, timeline: FIRST, first, last: first };
    let backups = Backups::of(bed.archive.repository(), &cluster());
    backups.announce(&Announcement { wal: vec![wal], ..damaged() }).await.unwrap();
    for _ in 0..2 {
        let report = run(&bed, &at_once(1)).await;
        assert_eq!(finished(&bed).await, [ids[3], ids[4]]);
        assert_eq!(newest_damage(&report), Some("1 damaged or missing WAL segments"));
        assert_eq!(announced_damage(&bed).await, 1);
    }
}

/// What a light verification finds to be damaged.
async fn damage_found(bed: &Bed) -> Vec<String> {
    let options = VerifyOptions { depth: Depth::Light, ..VerifyOptions::default() };
    let repository = bed.archive.repository();
    let outlook = outlook(repository, &cluster(), &Policy::default(), Timestamp::now()).await.unwrap();
    let report = verify(repository, &cluster(), &outlook, Arc::new(Anything), &options).await.unwrap();
    report.findings.into_iter().filter(|f| f.kind == FindingKind::Damaged).map(|f| f.object).collect()
}

async fn announce_segment(bed: &Bed, number: u64) {
    let lineage = bed.archive.lineage().id;
    let wal = AnnouncedWal { lineage, timeline: FIRST, first: number, last: number };
    let backups = Backups::of(bed.archive.repository(), &cluster());
    backups.announce(&Announcement { wal: vec![wal], ..damaged() }).await.unwrap();
}

/// K3, K4: that a segment is damaged through which recovery leads from a backup to later moments stays known in every later run,
/// also if it is missing meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn damage_in_the_wal_of_a_window_stays_announced() {
    let (bed, ids) = world().await;
    announce_segment(&bed, 70).await;
    let key = bed.archive.paths().segment(SegmentNo(70).name(FIRST, size())).to_string();
    for _ in 0..2 {
        run(&bed, &at_once(2)).await;
        assert_eq!(finished(&bed).await, ids[3..]);
        assert_eq!((announced_damage(&bed).await, damage_found(&bed).await), (1, vec![key.clone()]));
    }
    std::fs::remove_file(segment_path(&bed, 70)).unwrap();
    run(&bed, &at_once(2)).await;
    assert_eq!(announced_damage(&bed).await, 1);
}

/// The same of a segment that is only still there: a longer retention may need it again before it is deleted.
#[tokio::test(flavor = "multi_thread")]
async fn damage_stays_announced_for_as_long_as_what_is_damaged_is_there() {
    let (bed, ids) = world().await;
    announce_segment(&bed, 30).await;
    let backups = Backups::of(bed.archive.repository(), &cluster());
    backups.announce(&Announcement { backups: vec![ids[1]], ..damaged() }).await.unwrap();
    run(&bed, &keep(1)).await;
    assert_eq!((finished(&bed).await, segments(&bed).await.len()), (ids.clone(), 100));
    assert_eq!(announced_damage(&bed).await, 2);
    assert_eq!(damage_found(&bed).await.len(), 2, "a longer retention brings back what was to be deleted");
    run(&bed, &at_once(1)).await;
    assert_eq!((finished(&bed).await, segments(&bed).await.first()), (vec![ids[4]], Some(&45)));
    run(&bed, &at_once(1)).await;
    assert_eq!(announced_damage(&bed).await, 0, "nothing that it names is there");
}

/// What restores to what was read, with pages that were damaged in the cluster, is better than what does not restore at all.
#[tokio::test(flavor = "multi_thread")]
async fn what_restores_is_never_dropped_for_what_does_not() {
    let (bed, ids) = world().await;
    for id in &ids[1..] {
        std::fs::remove_file(path(&bed, ClusterPaths::new(&cluster()).pack(*id, 0).as_str())).unwrap();
    }
    run(&bed, &at_once(1)).await;
    assert_eq!(finished(&bed).await, [ids[0], ids[4]]);
    all_is_well(&bed, &ids[..1]).await;
}

/// K1: what an announcement that cannot be read said of damage is not known, so nothing is deleted until it is found again.
#[tokio::test(flavor = "multi_thread")]
async fn an_announcement_that_cannot_be_read_stops_deletion() {
    let (bed, ids) = world().await;
    let backups = Backups::of(bed.archive.repository(), &cluster());
    backups.announce(&damaged()).await.unwrap();
    let key = ClusterPaths::new(&cluster()).announcement(0);
    let file = path(&bed, key.as_str());
    let mut bytes = std::fs::read(&file).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::remove_file(&file).unwrap();
    write_new(&file, &bytes);
    let error = expire(bed.archive.repository(), &cluster(), &at_once(1)).await.unwrap_err();
    assert!(
        error.to_string().contains(key.as_str()) && error.remedy() == Some(&Remedy::VerifyAll),
        "{error}"
    );
    assert_eq!(finished(&bed).await, ids);
    // A reader sees the rest.
    let outlook =
        outlook(bed.archive.repository(), &cluster(), &at_once(1).policy, Timestamp::now()).await.unwrap();
    assert_eq!((outlook.decisions.len(), outlook.damaged_announcements.len()), (5, 1));
}

/// K1: without the facts of a lineage what of it is needed is not known.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_lineage_stops_deletion() {
    let (bed, ids) = world().await;
    let key = ClusterPaths::new(&cluster()).lineage(bed.archive.lineage().id);
    std::fs::remove_file(path(&bed, key.as_str())).unwrap();
    let error = expire(bed.archive.repository(), &cluster(), &at_once(1)).await.unwrap_err().to_string();
    assert!(error.contains(key.as_str()) && error.contains("\nHINT: Put the object back"), "{error}");
    assert_eq!((finished(&bed).await.len(), segments(&bed).await.len()), (ids.len(), 100));
}

/// Promise 11: a manifest that is listed and that the store says is not there is none that was deleted: nothing goes for it, its backup
/// least of all.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_listed_and_not_found_is_not_gone() {
    let (bed, ids) = world().await;
    let store = CrashingStore::new(bed.dir.path(), u32::MAX);
    let repository = Repository::over("main", store.store(), None).await.unwrap();
    let before = keys(&bed).await;
    let newest = *ids.last().unwrap();
    let manifest = ClusterPaths::new(&cluster()).manifest(newest);
    store.hide(Some(manifest.as_str()));
    for _ in 0..2 {
        let report = expire(&repository, &cluster(), &at_once(2)).await.unwrap();
        let told = |note: &String| note.contains(manifest.as_str()) && note.contains("the store lists it");
        assert!(report.notes.iter().any(told), "{:?}", report.notes);
    }
    let of_it = |keys: &BTreeSet<String>| {
        keys.iter().filter(|key| key.contains(&newest.to_string())).cloned().collect::<Vec<_>>()
    };
    assert_eq!(of_it(&keys(&bed).await), of_it(&before));
    store.hide(None);
    expire(&repository, &cluster(), &at_once(1)).await.unwrap();
    assert_eq!(finished(&bed).await, [newest]);
}

/// Promise 11: a backup that was finished and has lost its manifest keeps what it may need until a person deletes it; one that is
/// being deleted does not.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_manifest_keeps_everything_older() {
    let (bed, ids) = world().await;
    let backups = Backups::of(bed.archive.repository(), &cluster());
    backups.tidy(ids[2]).await.unwrap();
    let paths = ClusterPaths::new(&cluster());
    std::fs::remove_file(path(&bed, paths.manifest(ids[2]).as_str())).unwrap();
    let packs = |keys: &BTreeSet<String>| {
        keys.iter().filter(|key| key.contains(&format!("/data/{}", ids[2]))).count()
    };
    let report = run(&bed, &at_once(1)).await;
    let told = |remark: &Remark| {
        remark.what.contains(&format!("manifest of backup {} is lost", ids[2]))
            && remark.remedy == Some(Remedy::ExpireBackup(ids[2]))
    };
    assert!(report.remarks.iter().any(told), "{:?}", report.remarks);
    assert!(packs(&keys(&bed).await) > 0);
    assert_eq!(segments(&bed).await.len(), 100, "which WAL it needs is not known");
    run(&bed, &by_name(ids[2])).await;
    assert_eq!(packs(&keys(&bed).await), 0);
    let left = keys(&bed).await;
    assert!(!left.iter().any(|key| key.contains(&ids[2].to_string())), "{left:?}");
    run(&bed, &at_once(1)).await;
    assert_eq!(finished(&bed).await, [ids[4]]);
    assert_eq!(segments(&bed).await.first(), Some(&45));
}

/// K3, promise 11: a backup whose manifest the store does not let go is listed, and stays whole: its packs and the WAL that makes it
/// consistent.
#[tokio::test(flavor = "multi_thread")]
async fn a_backup_under_lock_stays_whole() {
    let (bed, ids) = world().await;
    let store = CrashingStore::new(bed.dir.path(), u32::MAX);
    let repository = Repository::over("main", store.store(), None).await.unwrap();
    let manifest = ClusterPaths::new(&cluster()).manifest(ids[2]);
    store.lock(Some(manifest.as_str()));
    let packs = |keys: &BTreeSet<String>, id: BackupId| {
        keys.iter().filter(|key| key.contains(&format!("/data/{id}/"))).count()
    };
    let before = packs(&keys(&bed).await, ids[2]);
    for _ in 0..2 {
        let report = expire(&repository, &cluster(), &at_once(1)).await.unwrap();
        assert_eq!((report.denied_count, &report.denied_objects[..]), (1, &[manifest.to_string()][..]));
        assert_eq!(finished(&bed).await, [ids[2], ids[4]]);
        let keys = keys(&bed).await;
        assert_eq!((packs(&keys, ids[1]), packs(&keys, ids[2])), (0, before));
        let left = segments(&bed).await;
        assert!(left.contains(&25) && left.contains(&26) && !left.contains(&27), "{left:?}");
    }
    store.lock(None);
    expire(&repository, &cluster(), &at_once(1)).await.unwrap();
    assert_eq!(finished(&bed).await, [ids[4]]);
    assert_eq!(packs(&keys(&bed).await, ids[2]), 0);
    assert_eq!(segments(&bed).await.first(), Some(&45));
}

/// K3: a backup of which the store keeps nothing but the intent is deleted and no unfinished one: it keeps none of its parents, and every
/// run tries to delete what is left.
#[tokio::test(flavor = "multi_thread")]
async fn an_intent_under_lock_is_no_unfinished_backup() {
    let (bed, ids) = world().await;
    let child = Intent { parents: vec![ids[3]], ..intent(&bed, id(8, 9 * DAY + 12), ago(9 * DAY + 12)) };
    let writer = begin(&bed, child).await;
    let child = finish(&bed, writer, 8, 9 * DAY + 12).await;
    let store = CrashingStore::new(bed.dir.path(), u32::MAX);
    let repository = Repository::over("main", store.store(), None).await.unwrap();
    let intent = ClusterPaths::new(&cluster()).intent(child);
    store.lock(Some(intent.as_str()));
    for (count, expected) in [(2, &ids[3..]), (2, &ids[3..]), (1, &ids[4..])] {
        let report = expire(&repository, &cluster(), &at_once(count)).await.unwrap();
        assert_eq!((report.denied_count, &report.denied_objects[..]), (1, &[intent.to_string()][..]));
        assert_eq!(finished(&bed).await, expected);
        let mut catalog = Catalog::load(bed.archive.repository(), &cluster()).await.unwrap();
        let status = catalog.status().await.unwrap();
        assert_eq!(status.backups.iter().map(|backup| backup.id).collect::<Vec<_>>(), expected);
        let of_child = keys(&bed).await.into_iter().filter(|key| key.contains(&child.to_string()));
        assert_eq!(of_child.collect::<Vec<_>>(), [intent.to_string()]);
    }
    store.lock(None);
    expire(&repository, &cluster(), &at_once(1)).await.unwrap();
    assert!(!keys(&bed).await.contains(intent.as_str()));
    assert_eq!(finished(&bed).await, [ids[4]]);
}

/// K3: the tombstone of an unfinished backup stands where a manifest would and needs nothing: under a lock it keeps nothing else
/// from being deleted.
#[tokio::test(flavor = "multi_thread")]
async fn a_tombstone_under_lock_stops_no_deletion() {
    let (bed, ids) = world().await;
    let writer = begin(&bed, intent(&bed, id(33, 9 * DAY), ago(9 * DAY))).await;
    let unfinished = writer.id();
    drop(writer);
    Backups::of(bed.archive.repository(), &cluster()).abort(unfinished, "it was interrupted").await.unwrap();
    age(&bed, &unfinished.to_string(), 8 * 24).await;
    let store = CrashingStore::new(bed.dir.path(), u32::MAX);
    let repository = Repository::over("main", store.store(), None).await.unwrap();
    let tombstone = ClusterPaths::new(&cluster()).manifest(unfinished);
    store.lock(Some(tombstone.as_str()));
    for _ in 0..2 {
        let report = expire(&repository, &cluster(), &at_once(1)).await.unwrap();
        assert_eq!((report.denied_count, &report.denied_objects[..]), (1, &[tombstone.to_string()][..]));
        assert_eq!(finished(&bed).await, [ids[4]]);
        let left = keys(&bed).await;
        assert!(ids[..4].iter().all(|id| !left.iter().any(|key| key.contains(&id.to_string()))), "{left:?}");
        assert_eq!(segments(&bed).await.first(), Some(&45));
    }
    store.lock(None);
    expire(&repository, &cluster(), &at_once(1)).await.unwrap();
    assert!(!keys(&bed).await.contains(tombstone.as_str()));
}

/// K3: what a run wrote itself, and has no more use for, may lie under a lock too: that is no error.
#[tokio::test(flavor = "multi_thread")]
async fn an_announcement_under_lock_is_reported_and_tried_again() {
    let (bed, ids) = world().await;
    Backups::of(bed.archive.repository(), &cluster()).announce(&damaged()).await.unwrap();
    let store = CrashingStore::new(bed.dir.path(), u32::MAX);
    let repository = Repository::over("main", store.store(), None).await.unwrap();
    let paths = ClusterPaths::new(&cluster());
    let announcements = [paths.announcement(1).to_string(), paths.announcement(0).to_string()];
    store.lock(Some("clusters/main/announcements/"));
    for _ in 0..2 {
        let report = expire(&repository, &cluster(), &at_once(1)).await.unwrap();
        assert_eq!((report.denied_count, &report.denied_objects[..]), (2, &announcements[..]));
        assert_eq!((finished(&bed).await, segments(&bed).await.first()), (vec![ids[4]], Some(&45)));
    }
    store.lock(None);
    let report = expire(&repository, &cluster(), &at_once(1)).await.unwrap();
    assert_eq!(report.denied_count, 0);
    assert!(!keys(&bed).await.iter().any(|key| key.contains("/announcements/")));
}

/// K1: which label a backup has whose manifest cannot be read is not known, so a hold on any label may be on it.
#[tokio::test(flavor = "multi_thread")]
async fn a_hold_on_a_label_keeps_what_cannot_be_read_from_going_by_name() {
    let (bed, ids) = world().await;
    let manifest = path(&bed, ClusterPaths::new(&cluster()).manifest(ids[1]).as_str());
    let mut bytes = std::fs::read(&manifest).unwrap();
    bytes[200] ^= 1;
    std::fs::remove_file(&manifest).unwrap();
    write_new(&manifest, &bytes);
    let hold = Placement {
        on: HeldOn::Label("audit".to_owned()),
        reason: "audit".to_owned(),
        who: "dba".to_owned(),
        at: Timestamp::now(),
        until: None,
    };
    Holds::of(bed.archive.repository(), &cluster()).add(&hold).await.unwrap();
    age(&bed, &ids[1].to_string(), 2).await;
    let named = |even_if_held| NamedBackup {
        backup: ids[1],
        who: "dba".to_owned(),
        even_if_held,
        even_if_last: false,
        abort_unfinished: false,
        abort_reason: String::new(),
    };
    let named = |even_if_held| ExpireOptions { named: Some(named(even_if_held)), ..at_once(5) };
    let refused = expire(bed.archive.repository(), &cluster(), &named(false)).await.unwrap_err();
    let RepoError::Protected { obstacles, .. } = refused else { panic!("{refused}") };
    assert_eq!(obstacles[0].overridden_by, Override::Held);
    assert_eq!(finished(&bed).await, ids);
    run(&bed, &named(true)).await;
    assert_eq!(finished(&bed).await, [&ids[..1], &ids[2..]].concat());
}

/// What another server's younger timeline says of a stored one decides nothing about that one's WAL, nor does it know its own need.
#[tokio::test(flavor = "multi_thread")]
async fn while_a_younger_timeline_contradicts_a_stored_history_all_wal_stays() {
    let (bed, _) = world().await;
    let before = segments(&bed).await;
    for (id, text) in [
        (2, "1\t0/6300000\tno recovery target specified\n"),
        (3, "1\t0/6400000\tno recovery target specified\n2\t0/6500000\tno recovery target specified\n"),
    ] {
        let name = WalFileName::History(TimelineId::new(id).unwrap());
        bed.archive.put_file(name, text.as_bytes().to_vec()).await.unwrap();
    }
    let report = run(&bed, &at_once(1)).await;
    assert!(
        report.notes.iter().any(|note| note.contains("two servers claim timeline 2")),
        "{:?}",
        report.notes
    );
    assert_eq!(segments(&bed).await, before);
}
