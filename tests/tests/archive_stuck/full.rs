//! A full `pg_wal`: archiving is what empties it.

use walpoint_tests::faults::SmallDisk;
use walpoint_tests::{needs_root, wait};

use super::damaged::flip;
use super::{SOON, refused_at, waiting};
use crate::archive_bed::{Bed, forget};

/// Puts the record of what was stored on a disk without room.
fn fill_record(bed: &Bed) -> SmallDisk {
    let (disk, record) = (SmallDisk::new(1), bed.cluster.wal_dir().join("walpoint-archived"));
    std::fs::remove_file(&record).unwrap();
    std::os::unix::fs::symlink(disk.path().join("record"), &record).unwrap();
    disk.fill(0);
    disk
}

/// Promise 1: where the disk is full, what is stored is acknowledged though that cannot be noted, the daemon says so, and the way out
/// that it names needs no space.
#[test]
fn what_cannot_be_noted_on_a_full_disk_is_archived() {
    needs_root!();
    let (bed, names, command) = waiting(|_, _, agent| agent);
    let (disk, record) = (fill_record(&bed), bed.cluster.wal_dir().join("walpoint-archived"));
    let daemon = bed.agent.daemon();
    bed.cluster.set("archive_command", &command);
    bed.cluster.reload();
    bed.cluster.wait_done(&names[1]);
    let health = || bed.agent.run(&["health"]).stderr;
    wait::until_true(SOON * 2, "the daemon says so", || {
        health().contains("walpoint-archived: No space left on device")
    });

    // Another process knows nothing of it, and a person has to say whose it is.
    daemon.kill();
    forget(&bed.cluster, &names[1]);
    let daemon = bed.agent.daemon();
    let next = bed.cluster.switch_wal();
    refused_at(&bed, &next, "nothing shows that this server wrote it");
    let path = bed.cluster.wal_dir().join(&next).display().to_string();
    let pushed = bed.agent.run(&["push", "--same-server", &path]).expect_success();
    assert!(pushed.stderr.contains("counts for this push only"), "{pushed:#?}");
    disk.free();
    let last = bed.cluster.switch_wal();
    bed.cluster.wait_done(&last);
    assert!(std::fs::read_to_string(&record).unwrap().contains(&last));
    wait::until_true(SOON * 2, "nothing is wrong any more", || health().is_empty());
    drop(daemon);
}

/// Promise 1: where the disk is full, what follows a segment that is damaged in `pg_wal` since it was stored is archived: the daemon knows
/// whose it is, and without one what is sound of it shows that.
#[test]
fn what_follows_a_damaged_segment_is_archived_though_nothing_can_be_noted() {
    needs_root!();
    for with_daemon in [true, false] {
        let (bed, names, command) = waiting(|_, _, agent| agent);
        let _disk = fill_record(&bed);
        let path = bed.cluster.wal_dir().join(&names[0]);
        bed.agent.run(&["push", path.to_str().unwrap()]).expect_success();
        flip(&path, 100_000);
        let daemon = with_daemon.then(|| bed.agent.daemon());
        bed.cluster.set("archive_command", &command);
        bed.cluster.reload();
        bed.cluster.wait_done(&names[1]);
        assert!(bed.ready().is_empty(), "with a daemon: {with_daemon}: {:?}", bed.ready());
        drop(daemon);
    }
}
