//! Where there is no room to write, and where the store's clock was wrong.

use super::*;
use crate::backup::AnnouncedWal;
use crate::index::TimelineIndex;

/// K1: marks that the store got while its clock was ahead keep what they name, and that is said with what to do.
#[tokio::test(flavor = "multi_thread")]
async fn marks_of_a_clock_that_was_ahead_are_told() {
    let (bed, ids) = world().await;
    let told = |report: &Expired| report.notes.iter().any(|note| note.contains("clock was ahead"));
    assert!(!told(&run(&bed, &keep(2)).await) && !told(&run(&bed, &keep(2)).await));
    for key in keys(&bed).await.iter().filter(|key| key.contains("announcements/")) {
        let file = File::open(path(&bed, key)).unwrap();
        file.set_modified(SystemTime::now() + Duration::from_secs(50 * 3600)).unwrap();
    }
    assert!(told(&run(&bed, &keep(2)).await));
    assert_eq!(finished(&bed).await, ids);
}

/// K1: where the filesystem is full, what was announced long enough ago goes before anything has to be written, and the error
/// names the way out if there is nothing of the kind.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_filesystem_is_expired() {
    let (bed, ids) = world().await;
    let crashing = CrashingStore::new(bed.dir.path(), u32::MAX);
    let repository = Repository::over("main", crashing.store(), None).await.unwrap();
    crashing.fill(5);
    let error = expire(&repository, &cluster(), &keep(2)).await.unwrap_err();
    let text = walpoint_storage::error::error_chain(&error);
    assert!(text.contains("Enlarge the filesystem, or delete something from it"), "{text}");
    assert_eq!(finished(&bed).await, ids);

    crashing.fill(0);
    run(&bed, &keep(2)).await;
    age(&bed, "announcements/", 25).await;
    crashing.fill(5);
    let report = expire(&repository, &cluster(), &keep(2)).await.unwrap();
    assert_eq!(finished(&bed).await, ids[3..]);
    assert!(report.freed_bytes > 0, "{report:#?}");
    assert_eq!(report.classes.iter().find(|c| c.class == Class::Segment).unwrap().deleted_count, 35);
    assert!(report.notes.iter().any(|note| note.contains("the filesystem is full")), "{report:#?}");
    all_is_well(&bed, &ids[3..]).await;
}

/// K1: where a full filesystem is another machine's, whose clock is behind, nothing goes before its time by that clock.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_filesystem_is_expired_by_its_own_clock() {
    let (bed, ids) = world().await;
    run(&bed, &keep(2)).await;
    // Two hours behind: what was stored now was stored at that time there, and what was announced 25 hours ago, 23 hours ago.
    let behind = Duration::from_secs(2 * 3600);
    for key in keys(&bed).await {
        let file = File::open(path(&bed, &key)).unwrap();
        let then = SystemTime::now() - behind;
        if file.metadata().unwrap().modified().unwrap() > then {
            file.set_modified(then).unwrap();
        }
    }
    age(&bed, "announcements/", 25).await;
    let crashing = CrashingStore::new(bed.dir.path(), u32::MAX);
    let repository = Repository::over("main", crashing.store(), None).await.unwrap();
    crashing.fill(5);
    let early = expire(&repository, &cluster(), &keep(2)).await;
    assert_eq!(finished(&bed).await, ids, "{early:#?}");
    age(&bed, "announcements/", 27).await;
    expire(&repository, &cluster(), &keep(2)).await.unwrap();
    assert_eq!(finished(&bed).await, ids[3..]);
}

/// K1: WAL that is long eligible goes though there is no room for the index that forgets it, and the error says what went.
#[tokio::test(flavor = "multi_thread")]
async fn wal_is_deleted_before_there_is_room_for_its_index() {
    let (bed, ids) = world().await;
    let wal = AnnouncedWal { lineage: bed.archive.lineage().id, timeline: FIRST, first: 0, last: 3 };
    let announced = Announcement {
        written: Timestamp::now(),
        host: String::new(),
        agent: String::new(),
        reason: AnnouncementReason::Expired,
        backups: Vec::new(),
        packs: Vec::new(),
        wal: vec![wal],
        requests: Vec::new(),
    };
    let backups = Backups::of(bed.archive.repository(), &cluster());
    backups.announce(&announced).await.unwrap();
    age(&bed, "announcements/", 25).await;
    let crashing = CrashingStore::new(bed.dir.path(), u32::MAX);
    let repository = Repository::over("main", crashing.store(), None).await.unwrap();
    let indexed = async || {
        let mut index = TimelineIndex::load(&bed.archive, FIRST).await.unwrap();
        index.group(0).await.unwrap().get(SegmentNo(0)).is_some()
    };
    crashing.fill(50);
    let error = expire(&repository, &cluster(), &keep(5)).await.unwrap_err();
    let text = walpoint_storage::error::error_chain(&error);
    assert!(text.contains("deleted first (4, with"), "{text}");
    assert!(!segments(&bed).await.contains(&3) && indexed().await);
    all_is_well(&bed, &ids).await;
    crashing.fill(0);
    expire(&repository, &cluster(), &keep(5)).await.unwrap();
    assert!(!indexed().await);
    all_is_well(&bed, &ids).await;
}
