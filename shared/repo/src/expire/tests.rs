//! Expiry against a repository in a directory, whose files' times are the store's clock.

mod beside;
mod damage;
mod full_disk;
mod lost_timeline;
mod split_off;

use std::collections::BTreeSet;
use std::fs::File;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use jiff::{SignedDuration, Timestamp};
use walpoint_base::{BackupId, SegmentNo, SegmentSize, TimelineId, WalFileName};
use walpoint_plan::retention::Rule;
use walpoint_storage::layout::ClusterPaths;
use walpoint_storage::store::crashing::CrashingStore;

use super::*;
use crate::backup::{
    AnnouncedPacks, Announcement, AnnouncementReason, Attributes, BackupDescription, BackupWriter, BlockSize,
    HexBytes, Intent, ListedState, Method, TablePath, WalStored, WriteOptions,
};
use crate::catalog::Catalog;
use crate::holds::{HeldOn, Holds, Placement};
use crate::index::IndexWriter;
use crate::index::tests::{Bed, bed, header};
use crate::lease::{BACKUP, Holder, Lease, Leases};
use crate::wal::WalHeader;

const FIRST: TimelineId = TimelineId::FIRST;
const DAY: i64 = 24;

pub(crate) fn cluster() -> ClusterName {
    "main".parse().unwrap()
}

fn size() -> SegmentSize {
    SegmentSize::new(1 << 20).unwrap()
}

pub(crate) fn ago(hours: i64) -> Timestamp {
    Timestamp::now() - SignedDuration::from_hours(hours)
}

fn keep(count: u32) -> ExpireOptions {
    let rule = Rule { count: Some(count), ..Rule::default() };
    ExpireOptions {
        policy: Policy { rule, ..Policy::default() },
        grace: SignedDuration::from_hours(DAY),
        named: None,
        dry_run: false,
        host: "test".to_owned(),
        agent: "test".to_owned(),
    }
}

pub(crate) fn at_once(count: u32) -> ExpireOptions {
    ExpireOptions { grace: SignedDuration::ZERO, ..keep(count) }
}

/// One backup, deleted by name, and nothing that protects it overridden.
fn by_name(backup: BackupId) -> ExpireOptions {
    let named = NamedBackup {
        backup,
        who: "dba".to_owned(),
        even_if_held: false,
        even_if_last: false,
        abort_unfinished: false,
        abort_reason: String::new(),
    };
    ExpireOptions { named: Some(named), ..at_once(1) }
}

pub(crate) fn intent(bed: &Bed, id: BackupId, started: Timestamp) -> Intent {
    Intent {
        id,
        lineage: bed.archive.lineage().id,
        started,
        host: String::new(),
        agent: String::new(),
        label: String::new(),
        parents: vec![],
        resumed: vec![],
    }
}

pub(crate) fn id(segment: u64, hours: i64) -> BackupId {
    BackupId::new(ago(hours), FIRST, SegmentNo(segment).start(size()) + 40, u32::try_from(segment).unwrap())
}

/// A backup that ended so many hours ago; it needs two segments.
pub(crate) async fn backup(bed: &Bed, segment: u64, hours: i64) -> BackupId {
    let writer = begin(bed, intent(bed, id(segment, hours), ago(hours))).await;
    finish(bed, writer, segment, hours).await
}

async fn begin(bed: &Bed, intent: Intent) -> BackupWriter {
    let backups = Backups::of(bed.archive.repository(), &cluster());
    let block = BlockSize::new(8192).unwrap();
    backups.begin(intent, block, &WriteOptions::default()).await.unwrap()
}

/// Its one file holds `content` again and again.
async fn finish(bed: &Bed, writer: BackupWriter, content: u64, hours: i64) -> BackupId {
    let mut stream = writer.stream();
    tokio::task::spawn_blocking(move || {
        let attributes = Attributes { mode: 0o700, uid: 26, gid: 26, mtime: 0 };
        stream.directory(TablePath::data("").unwrap(), attributes).unwrap();
        let mut file = stream.file(TablePath::data("file").unwrap());
        file.write(&content.to_le_bytes().repeat(4000)).unwrap();
        file.finish(attributes).unwrap();
        stream.finish().unwrap();
    })
    .await
    .unwrap();
    publish(bed, writer, hours).await
}

/// Makes what was written a backup that ended so many hours ago.
pub(crate) async fn publish(bed: &Bed, writer: BackupWriter, hours: i64) -> BackupId {
    let (id, started) = (writer.id(), ago(hours));
    let start = id.start();
    let lineage = bed.archive.lineage();
    let facts = BackupDescription {
        label: String::new(),
        agent: String::new(),
        host: String::new(),
        started,
        ended: started,
        method: Method::Local,
        from_standby: false,
        lineage: lineage.id,
        major: lineage.major,
        block_size: 8192,
        relation_segment_blocks: 131_072,
        wal_segment_size: size().bytes(),
        data_checksums: true,
        start_timeline: id.timeline(),
        start_lsn: start,
        stop_timeline: id.timeline(),
        stop_lsn: start + size().bytes(),
        latest_commit: None,
        backup_label: HexBytes::default(),
        tablespace_map: HexBytes::default(),
        pgdata: HexBytes::default(),
        tablespaces: vec![],
        extra_paths: vec![],
        users: vec![],
        groups: vec![],
    };
    let draft = writer.finish(facts).await.unwrap();
    let (first, last) = draft.needs_wal().unwrap();
    draft.publish(WalStored { first, last }).await.unwrap();
    // The store had it then.
    let manifest = path(bed, ClusterPaths::new(&cluster()).manifest(id).as_str());
    let seconds = u64::try_from(hours.max(0)).unwrap() * 3600;
    File::open(manifest).unwrap().set_modified(SystemTime::now() - Duration::from_secs(seconds)).unwrap();
    id
}

/// Segments 0 to 99, a backup every ten segments and every day: the first ten days ago.
pub(crate) async fn world() -> (Bed, Vec<BackupId>) {
    world_of(|_| {}).await
}

/// The same, with headers that were changed before they were stored.
pub(crate) async fn world_of(change: impl Fn(&mut WalHeader)) -> (Bed, Vec<BackupId>) {
    let bed = bed().await;
    for number in 0..100 {
        let mut header = header(bed.archive.lineage().id, FIRST, number);
        change(&mut header);
        bed.store_header(header).await;
    }
    IndexWriter::new(bed.archive.clone()).catch_up(FIRST).await.unwrap();
    let mut ids = Vec::new();
    for n in 0..5u64 {
        ids.push(backup(&bed, 10 * n + 5, DAY * (10 - i64::try_from(n).unwrap())).await);
    }
    (bed, ids)
}

pub(crate) async fn keys(bed: &Bed) -> BTreeSet<String> {
    let all = bed.archive.repository().store().list_all(&ClusterPaths::new(&cluster()).all()).await.unwrap();
    all.into_iter().map(|entry| entry.key.to_string()).collect()
}

async fn segments(bed: &Bed) -> Vec<u64> {
    let keys = keys(bed).await;
    (0..100)
        .filter(|n| keys.contains(bed.archive.paths().segment(SegmentNo(*n).name(FIRST, size())).as_str()))
        .collect()
}

fn path(bed: &Bed, key: &str) -> PathBuf {
    bed.dir.path().join(key)
}

/// As if the store had had these objects for so long.
async fn age(bed: &Bed, part: &str, hours: u64) {
    for key in keys(bed).await.iter().filter(|key| key.contains(part)) {
        let file = File::open(path(bed, key)).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(hours * 3600)).unwrap();
    }
}

async fn run(bed: &Bed, options: &ExpireOptions) -> Expired {
    expire(bed.archive.repository(), &cluster(), options).await.unwrap()
}

async fn finished(bed: &Bed) -> Vec<BackupId> {
    let listed = Backups::of(bed.archive.repository(), &cluster()).list().await.unwrap();
    listed.iter().filter(|l| matches!(l.state, ListedState::Finished(_))).map(|l| l.id).collect()
}

/// Reads all of a backup.
async fn read(backups: &Backups, id: BackupId) {
    let reader = backups.open(id).await.unwrap();
    let mut windows = reader.windows(crate::backup::WindowLimits::default());
    while let Some(window) = windows.next().await.unwrap() {
        for unit in window.units() {
            let fetched = reader.fetch(&unit).await.unwrap();
            reader.scatter::<RepoError>(&unit, &fetched, |_| Ok(())).unwrap();
        }
    }
}

/// Every backup that stays can be read, and has its WAL to the end of the archive.
async fn all_is_well(bed: &Bed, ids: &[BackupId]) {
    let backups = Backups::of(bed.archive.repository(), &cluster());
    let there: BTreeSet<u64> = segments(bed).await.into_iter().collect();
    for id in ids {
        read(&backups, *id).await;
        let first = SegmentNo::of(id.start(), size()).0;
        assert!(there.contains(&first) && there.contains(&(first + 1)), "{id}");
    }
    let mut catalog = Catalog::load(bed.archive.repository(), &cluster()).await.unwrap();
    let status = catalog.status().await.unwrap();
    assert_eq!(status.lineages[0].errors, [] as [String; 0]);
}

/// K1, K2, K3: nothing goes before its time, then exactly what is not needed, and a dry run changes nothing.
#[tokio::test(flavor = "multi_thread")]
async fn announced_first_and_deleted_after_the_grace_period() {
    let (bed, ids) = world().await;
    let strange = path(&bed, "clusters/main/notes.txt");
    let other = path(&bed, "clusters/other/backups/x");
    for file in [&strange, &other] {
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        File::create_new(file).unwrap();
    }
    let before = keys(&bed).await;

    let dry = run(&bed, &ExpireOptions { dry_run: true, ..keep(2) }).await;
    assert_eq!(keys(&bed).await, before);
    let decisions: Vec<BackupDecision> = dry.backups.iter().map(|b| b.decision).collect();
    assert_eq!(
        decisions,
        [
            BackupDecision::Expire,
            BackupDecision::Expire,
            BackupDecision::Expire,
            BackupDecision::Keep,
            BackupDecision::Keep
        ]
    );
    let class =
        |report: &Expired, class: Class| report.classes.iter().find(|c| c.class == class).unwrap().clone();
    assert_eq!(class(&dry, Class::Segment).marked_count, 35);
    assert_eq!((class(&dry, Class::Backup).marked_count, dry.freed_bytes), (6, 0));
    assert_eq!(dry.unknown_objects, ["clusters/main/notes.txt"]);

    let first = run(&bed, &keep(2)).await;
    assert_eq!((first.freed_bytes, class(&first, Class::Segment).marked_count), (0, 35));
    assert_eq!(keys(&bed).await.difference(&before).count(), 1, "one announcement");
    let again = run(&bed, &keep(2)).await;
    assert_eq!(class(&again, Class::Segment).pending_count, 35);
    assert_eq!(keys(&bed).await.difference(&before).count(), 1, "announced once");
    assert_eq!(finished(&bed).await, ids);

    age(&bed, "announcements/", 25).await;
    let second = run(&bed, &keep(2)).await;
    assert_eq!(class(&second, Class::Segment).deleted_count, 35);
    assert!(second.freed_bytes > 0 && second.denied_count == 0);
    assert_eq!(finished(&bed).await, ids[3..]);
    assert_eq!(segments(&bed).await, (35..100).collect::<Vec<u64>>());
    let now = keys(&bed).await;
    for gone in &ids[..3] {
        assert!(!now.iter().any(|key| key.contains(&gone.to_string())), "{gone}");
    }
    assert!(!now.iter().any(|key| key.contains("/announcements/")), "it is done");
    assert!(strange.exists() && other.exists());
    all_is_well(&bed, &ids[3..]).await;
    let index = crate::index::TimelineIndex::load(&bed.archive, FIRST).await.unwrap();
    assert!(index.open_groups().all(|group| group.iter().all(|(n, _)| n >= SegmentNo(35))));
    let third = run(&bed, &keep(2)).await;
    assert_eq!((third.freed_bytes, class(&third, Class::Segment).marked_count), (0, 0));
}

/// K1
#[tokio::test(flavor = "multi_thread")]
async fn without_a_grace_period_a_dry_run_tells_what_the_same_run_deletes() {
    let (bed, _) = world().await;
    let told = run(&bed, &ExpireOptions { dry_run: true, ..at_once(2) }).await;
    let done = run(&bed, &at_once(2)).await;
    let deleted = |report: &Expired| -> Vec<(u64, u64)> {
        report.classes.iter().map(|class| (class.deleted_count, class.deleted_bytes)).collect()
    };
    assert_eq!((deleted(&told), told.freed_bytes), (deleted(&done), done.freed_bytes));
    assert!(done.freed_bytes > 0);
}

#[test]
fn within_a_grace_period_without_beginning_nothing_is_eligible() {
    let now = Timestamp::now();
    assert_eq!(eligible_until(now, SignedDuration::ZERO), now);
    assert_eq!(eligible_until(now, SignedDuration::from_hours(110_000_000)), Timestamp::MIN);
    assert_eq!(eligible_until(now, SignedDuration::MAX), Timestamp::MIN);
}

/// K1: a hold placed while the grace period runs keeps what was announced.
#[tokio::test(flavor = "multi_thread")]
async fn a_hold_spares_what_was_announced() {
    let (bed, ids) = world().await;
    run(&bed, &keep(1)).await;
    let hold = Placement {
        on: HeldOn::Backup(ids[1]),
        reason: "audit".to_owned(),
        who: "dba".to_owned(),
        at: Timestamp::now(),
        until: None,
    };
    let holds = Holds::of(bed.archive.repository(), &cluster());
    let number = holds.add(&hold).await.unwrap();
    age(&bed, "announcements/", 25).await;
    let report = run(&bed, &keep(1)).await;
    assert_eq!(finished(&bed).await, [ids[1], ids[4]]);
    assert!(report.backups[1].reason.contains("hold 1 by dba"), "{}", report.backups[1].reason);
    assert_eq!(
        segments(&bed).await,
        [vec![15, 16], (45..100).collect()].concat(),
        "only what makes it consistent"
    );
    all_is_well(&bed, &[ids[1], ids[4]]).await;
    holds.remove(number, "dba", Timestamp::now()).await.unwrap();
    run(&bed, &at_once(1)).await;
    assert_eq!(finished(&bed).await, [ids[4]]);
    assert_eq!(segments(&bed).await, (45..100).collect::<Vec<u64>>());
}

/// K3: what an unfinished backup may use stays as long as it is unfinished: its parents, what it resumed, what that used.
#[tokio::test(flavor = "multi_thread")]
async fn a_backup_under_way_keeps_what_it_builds_on() {
    let (bed, ids) = world().await;
    let backups = Backups::of(bed.archive.repository(), &cluster());
    let block = BlockSize::new(8192).unwrap();
    let (silent, running) = (id(60, 50), id(70, 30));
    let resumed = Intent { parents: vec![ids[0]], ..intent(&bed, silent, ago(50)) };
    drop(backups.begin(resumed, block, &WriteOptions::default()).await.unwrap());
    let intent = Intent { parents: vec![ids[2]], resumed: vec![silent], ..intent(&bed, running, ago(30)) };
    drop(backups.begin(intent, block, &WriteOptions::default()).await.unwrap());
    // It was stopped for longer than any grace period, and no later one was finished.
    age(&bed, &running.to_string(), 40).await;
    age(&bed, &silent.to_string(), 40).await;
    for _ in 0..2 {
        let report = run(&bed, &at_once(1)).await;
        assert!(report.aborted_backups.is_empty());
    }
    assert_eq!(finished(&bed).await, [ids[0], ids[2], ids[4]]);
    assert!(keys(&bed).await.contains(backups.paths().intent(silent).as_str()));
    all_is_well(&bed, &[ids[0], ids[2], ids[4]]).await;
    assert_eq!(
        segments(&bed).await,
        [vec![5, 6], vec![25, 26], (45..100).collect()].concat(),
        "what is listed is consistent"
    );
    // No process came back for it within a week.
    age(&bed, &running.to_string(), 24 * 8).await;
    age(&bed, &silent.to_string(), 24 * 8).await;
    let report = run(&bed, &at_once(1)).await;
    assert_eq!(report.aborted_backups.len(), 2);
    assert_eq!(finished(&bed).await, [ids[4]]);
    let now = keys(&bed).await;
    assert!(!now.contains(backups.paths().intent(running).as_str()));
    assert!(
        now.contains(backups.paths().manifest(running).as_str()),
        "the tombstone stays for whoever was asleep"
    );
    age(&bed, "/manifest", 24 * 8).await;
    run(&bed, &at_once(1)).await;
    assert!(!keys(&bed).await.contains(backups.paths().manifest(running).as_str()));
    assert_eq!(finished(&bed).await, [ids[4]]);
}

/// K3: a backup that renews its lease lives, however long it has stored nothing and whatever a wrong clock made of its id.
#[tokio::test(flavor = "multi_thread")]
async fn a_backup_whose_lease_lives_is_not_aborted() {
    let (bed, ids) = world().await;
    let repository = bed.archive.repository();
    // Before the newest one, by the server's clock.
    let quiet = begin(&bed, intent(&bed, id(16, 200), ago(200))).await.id();
    let leases = Leases::of(repository, &cluster(), BACKUP);
    let holder = Holder {
        host: "db1".to_owned(),
        agent: String::new(),
        boot: String::new(),
        process: 1,
        process_start: 1,
        pid_namespace: String::new(),
    };
    // It was taken before the backup began, and renewed since.
    let since = ago(31);
    let lease = Lease { holder, since, seconds: 900, renewal: 400, ended: false };
    let key = leases.put(7, &lease).await;
    for hours in [30, 24 * 8] {
        age(&bed, &quiet.to_string(), hours).await;
        if hours > 30 {
            leases.put(8, &Lease { since: ago(24 * 9), ..lease.clone() }).await;
        }
        let report = run(&bed, &at_once(1)).await;
        assert!(report.aborted_backups.is_empty(), "{hours}: {report:#?}");
    }
    // A lease that was taken after the backup began is another one's, and one that was not renewed is over.
    std::fs::remove_file(path(&bed, leases.key(8).unwrap().as_str())).unwrap();
    assert_eq!(run(&bed, &ExpireOptions { dry_run: true, ..at_once(1) }).await.aborted_backups, [quiet]);
    age(&bed, &quiet.to_string(), 30).await;
    age(&bed, key.as_str(), 1).await;
    assert_eq!(run(&bed, &at_once(1)).await.aborted_backups, [quiet]);
    assert_eq!(finished(&bed).await, ids[4..]);
}

/// K3: a backup that another one took over and that was finished after all is listed, and so it stays whole.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_taken_over_and_finished_all_the_same_stays_whole() {
    let (bed, ids) = world().await;
    let slow = Intent { parents: vec![ids[0]], ..intent(&bed, id(16, 200), ago(200)) };
    let slow = begin(&bed, slow).await;
    let other = Intent { resumed: vec![slow.id()], ..intent(&bed, id(70, 30), ago(30)) };
    drop(begin(&bed, other).await);
    // What the oldest one holds: nothing of it is stored again.
    let slow = finish(&bed, slow, 5, 200).await;
    let backups = Backups::of(bed.archive.repository(), &cluster());
    let used = backups.open(slow).await.unwrap().manifest().backups.clone();
    assert_eq!(used, [slow, ids[0]]);
    for _ in 0..2 {
        run(&bed, &at_once(1)).await;
        assert_eq!(finished(&bed).await, [slow, ids[4]]);
        read(&backups, slow).await;
    }
}

/// K3: interrupted at any moment, the next run finishes the work.
#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_expiry_is_finished_by_the_next() {
    let (bed, ids) = world().await;
    let (whole, other) = world().await;
    run(&whole, &at_once(2)).await;
    for n in 0..60u64 {
        let limit = Duration::from_micros(300 * n);
        let options = at_once(2);
        tokio::time::timeout(limit, expire(bed.archive.repository(), &cluster(), &options)).await.ok();
        let there = finished(&bed).await;
        assert!(there.ends_with(&ids[3..]), "{there:?}");
        all_is_well(&bed, &there).await;
    }
    run(&bed, &at_once(2)).await;
    assert_eq!(finished(&bed).await, ids[3..]);
    assert_eq!(segments(&bed).await, segments(&whole).await);
    let left = |keys: &BTreeSet<String>| {
        keys.iter().filter(|k| k.contains("/data/") || k.contains("/backups/")).count()
    };
    assert_eq!(left(&keys(&bed).await), left(&keys(&whole).await));
    assert_eq!(finished(&whole).await, other[3..]);
}

/// What cannot be read keeps what it may need.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_manifest_keeps_everything_older() {
    let (bed, ids) = world().await;
    let manifest = path(&bed, ClusterPaths::new(&cluster()).manifest(ids[2]).as_str());
    let mut bytes = std::fs::read(&manifest).unwrap();
    bytes[200] ^= 1;
    std::fs::remove_file(&manifest).unwrap();
    std::io::Write::write_all(&mut File::create_new(&manifest).unwrap(), &bytes).unwrap();
    let packs = |keys: &BTreeSet<String>| keys.iter().filter(|key| key.contains("/data/")).count();
    let before = packs(&keys(&bed).await);
    let report = run(&bed, &at_once(1)).await;
    assert!(
        report.remarks.iter().any(|remark| remark.what.contains("all older packs are kept")),
        "{:?}",
        report.remarks
    );
    let after = packs(&keys(&bed).await);
    assert!(after < before && after > 3, "{before} {after}: what is newer than it goes");
    assert_eq!(segments(&bed).await.len(), 100, "nobody knows which WAL it needs");
    std::fs::remove_file(&manifest).unwrap();
    std::fs::remove_file(path(&bed, ClusterPaths::new(&cluster()).intent(ids[2]).as_str())).unwrap();
    run(&bed, &at_once(1)).await;
    assert_eq!(finished(&bed).await, [ids[4]]);
    assert_eq!(segments(&bed).await.first(), Some(&45));
}

/// A backup with a pack that was found damaged takes the place of no sound one.
#[tokio::test(flavor = "multi_thread")]
async fn a_backup_with_a_damaged_pack_pushes_no_sound_one_out() {
    let (bed, ids) = world().await;
    let backups = Backups::of(bed.archive.repository(), &cluster());
    let announced = Announcement {
        written: Timestamp::now(),
        host: String::new(),
        agent: String::new(),
        reason: AnnouncementReason::Damaged,
        backups: Vec::new(),
        packs: vec![AnnouncedPacks { backup: ids[4], first: 0, count: 1 }],
        wal: Vec::new(),
        requests: Vec::new(),
    };
    backups.announce(&announced).await.unwrap();
    let report = run(&bed, &at_once(1)).await;
    assert_eq!(finished(&bed).await, [ids[3], ids[4]]);
    let damage: Vec<Option<&str>> = report.backups.iter().map(|b| b.damage.as_deref()).collect();
    assert_eq!(damage, [None, None, None, None, Some("1 damaged or missing packs")]);
}

/// Of a timeline that two servers claim, what is stored is one server's: it hangs together, and the rest goes.
#[tokio::test(flavor = "multi_thread")]
async fn a_refused_history_keeps_no_wal() {
    let (bed, ids) = world().await;
    let two = TimelineId::new(2).unwrap();
    let stored = b"1\t0/6300000\tno recovery target specified\n".to_vec();
    bed.archive.put_file(WalFileName::History(two), stored).await.unwrap();
    let refused = b"1\t0/6200000\tno recovery target specified\n".to_vec();
    bed.archive.put_refused_history(two, refused).await.unwrap();
    let report = run(&bed, &at_once(1)).await;
    let told = "timeline 2: two servers claim it, with different histories: in lineage ";
    assert!(
        report.notes.iter().any(|note| note.starts_with(told) && note.ends_with("the stored one counts")),
        "{:?}",
        report.notes
    );
    assert_eq!(finished(&bed).await, [ids[4]]);
    assert_eq!(segments(&bed).await.first(), Some(&45));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_retention_or_a_backup_nothing_goes() {
    let (bed, _) = world().await;
    let before = keys(&bed).await;
    let none = ExpireOptions { policy: Policy::default(), ..at_once(1) };
    let report = run(&bed, &none).await;
    assert!(!report.retention_configured && report.notes[0].contains("nothing is deleted"));
    assert_eq!(keys(&bed).await, before);
    let empty = super::super::index::tests::bed().await;
    empty.store(0..20).await;
    let report = run(&empty, &at_once(1)).await;
    assert!(report.notes[0].contains("no finished backup"), "{:?}", report.notes);
    assert_eq!(segments(&empty).await.len(), 20);
    let name = WalFileName::Segment(SegmentNo(3).name(FIRST, size()));
    assert!(keys(&empty).await.contains(empty.archive.paths().file(name).as_str()));
}
