//! R4: what earlier restores kept of a data directory or moved aside counts also when the directory is deleted, as the manual says, and
//! whatever could not be read of it or of `pg_wal` is refused.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use walpoint_tests::archived::Archived;
use walpoint_tests::rows::Ledger;
use walpoint_tests::user;

use crate::behind::{bed, is_replayed, killed};

/// A crashed server with a row in its last segment, which is in no archive; and the transaction before.
fn crashed() -> (Archived, Ledger, String) {
    let (mut bed, mut ledger) = bed(17);
    let archived = ledger.append_as(&bed.cluster, "a1").xid.to_string();
    bed.settle();
    ledger.append_as(&bed.cluster, "a2");
    bed.cluster.crash();
    (bed, ledger, archived)
}

#[test]
fn what_was_put_away_is_replayed_when_the_directory_was_deleted() {
    for (first, second) in
        [("--replace", &[][..]), ("--delta", &[]), ("--delta", &["--replace"]), ("--replace", &["--delta"])]
    {
        let (mut bed, ledger, archived) = crashed();
        bed.try_restore("data", &["--server-is-down", first, "--target-xid", &archived]).expect_success();
        fs::remove_dir_all(bed.cluster.pgdata()).unwrap();
        is_replayed(&mut bed, &ledger, second);
    }
}

/// The restore was killed, and is cancelled as the manual says.
#[test]
fn what_a_killed_restore_put_away_is_replayed_when_its_directory_was_deleted() {
    walpoint_tests::needs_root!();
    let (mut bed, ledger) = killed();
    fs::remove_dir_all(bed.cluster.pgdata()).unwrap();
    is_replayed(&mut bed, &ledger, &[]);
}

/// What the record of kept WAL says is not known when it cannot be read.
#[test]
fn what_a_repair_kept_is_not_left_out_where_its_record_cannot_be_read() {
    let (bed, _, archived) = crashed();
    bed.try_restore("data", &["--server-is-down", "--delta", "--target-xid", &archived]).expect_success();
    let beside = fs::read_dir(bed.cluster.dir().path()).unwrap().map(|entry| entry.unwrap().path());
    let kept: Vec<PathBuf> =
        beside.filter(|path| path.to_str().unwrap().contains("data.walpoint-kept-")).collect();
    let record = kept[0].join("walpoint-kept.json");
    fs::write(&record, "").unwrap();
    for way in ["--delta", "--replace"] {
        let refused = bed.try_restore("data", &[way, "--dry-run"]).expect_status(1);
        for says in
            [record.to_str().unwrap(), "is damaged", "--discard-unarchived-wal", "nothing was changed"]
        {
            assert!(refused.stderr.contains(says), "{way} {says}: {refused:#?}");
        }
        bed.try_restore("data", &[way, "--dry-run", "--discard-unarchived-wal"]).expect_success();
    }
}

/// The filesystem of a linked `pg_wal` is not mounted, or nothing is in its place: it is not empty, it is not there.
#[test]
fn a_pg_wal_that_is_not_there_is_not_taken_for_empty() {
    for way in ["--delta", "--replace"] {
        let (mut bed, ledger, _) = crashed();
        let (wal, mount, away) = (bed.cluster.wal_dir(), bed.place("mount"), bed.place("away"));
        fs::rename(&wal, &away).unwrap();
        let refused = |what: &str| {
            let restore = |options: &[&str]| {
                bed.try_restore("data", &[&[way, "--server-is-down", "--dry-run"], options].concat())
            };
            let refused = restore(&[]).expect_status(1);
            for says in ["pg_wal", "--discard-unarchived-wal", "nothing was changed"] {
                assert!(refused.stderr.contains(says), "{way} {what} {says}: {refused:#?}");
            }
            restore(&["--discard-unarchived-wal"]).expect_success();
        };
        refused("missing");
        symlink(&mount, &wal).unwrap();
        refused("a link that leads to nothing");
        fs::create_dir(&mount).unwrap();
        user::give(&mount);
        refused("an empty mount point");
        fs::remove_dir(&mount).unwrap();
        fs::rename(&away, &mount).unwrap();
        is_replayed(&mut bed, &ledger, &[way, "--server-is-down"]);
    }
}
