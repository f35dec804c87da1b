//! The harness itself: the WAL it makes holds what it promises, by `pg_waldump`.

use walpoint_tests::testbed;
use walpoint_tests::waldata::{self, Lost, WalData};

fn dump(wal: &WalData) -> String {
    wal.segments().iter().map(|segment| wal.waldump_file(segment).stdout).collect()
}

#[test]
fn the_mixed_workload_writes_all_sorts_of_records() {
    for (major, segment_mb) in [(14, 1), (18, 4), (19, 4)] {
        let wal = waldata::mixed(major, segment_mb);
        assert_eq!(wal.segment_size, u64::from(segment_mb) << 20);
        let dump = dump(&wal);
        for record in [
            "COMMIT_PREPARED",
            "ABORT_PREPARED",
            "PREPARE",
            "ABORT",
            "SWITCH",
            "RESTORE_POINT",
            "FPI",
            "TRUNCATE",
        ] {
            assert!(dump.contains(record), "no {record} in the WAL of {major}");
        }
        let largest = wal.segments().len();
        assert!(largest >= 7, "{largest} segments");
    }
}

#[test]
fn the_oldest_version_makes_wal_too() {
    assert!(!testbed::has_waldump(13));
    assert!(waldata::mixed(13, 1).segments().len() >= 7);
}

#[test]
fn a_promotion_leaves_its_files() {
    let wal = waldata::promotion(17);
    assert!(wal.archive.join("00000002.history").exists());
    let names: Vec<String> = std::fs::read_dir(&wal.archive)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    assert!(names.iter().any(|name| name.ends_with(".partial")), "{names:?}");
    assert!(names.iter().any(|name| name.len() == 24 && name.starts_with("00000002")), "{names:?}");
}

#[test]
fn a_contrecord_is_overwritten_after_a_crash() {
    for major in [14, 16, 18, 19] {
        let wal = waldata::overwritten_contrecord(major, Lost::InACrash);
        assert!(dump(&wal).contains("OVERWRITE_CONTRECORD"), "{major}: {:?}", wal.segments());
    }
}

#[test]
fn a_promotion_overwrites_no_contrecord() {
    let wal = waldata::overwritten_contrecord(16, Lost::InAPromotion);
    assert!(!dump(&wal).contains("OVERWRITE_CONTRECORD"));
    assert!(wal.archive.join("00000002.history").exists());
}
