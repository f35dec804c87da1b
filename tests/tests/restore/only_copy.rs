//! R4: what is damaged in the archive and sound in the `pg_wal` of the directory that is repaired is nowhere else: it is kept, whether the
//! damage is known or not, and where recovery needs it the restore says so before anything is changed.

use std::fs;
use std::path::PathBuf;

use walpoint_tests::archived::Archived;
use walpoint_tests::cluster::Cluster;
use walpoint_tests::rows::{Ledger, Mark};
use walpoint_tests::store::Store;

/// A crashed server with rows in three archived segments, all of which its `pg_wal` still has, and one in its last, which is in no
/// archive.
fn crashed() -> (Archived, Ledger, Vec<Mark>) {
    let mut bed = Archived::start(Cluster::builder().segment_size_mb(1), Store::local());
    let mut ledger = Ledger::create(&bed.cluster, "rows");
    bed.backup();
    let mut marks = Vec::new();
    for label in ["a1", "a2", "a3"] {
        marks.push(ledger.append_as(&bed.cluster, label));
        bed.settle();
    }
    marks.push(ledger.append_as(&bed.cluster, "a4"));
    bed.cluster.crash();
    bed.stop_daemon();
    (bed, ledger, marks)
}

/// Damages what the archive has of a segment, behind its header; its object.
#[track_caller]
fn damage(bed: &Archived, segment: &str) -> String {
    let door = bed.back_door();
    let key = door.list("clusters/main").into_iter().find(|key| key.ends_with(segment)).unwrap();
    door.flip_bit(&key, door.get(&key).unwrap().len() * 3 / 4);
    key
}

/// The copies of a segment that earlier restores kept.
fn kept(bed: &Archived, segment: &str) -> Vec<PathBuf> {
    let beside = fs::read_dir(bed.cluster.dir().path()).unwrap().map(|entry| entry.unwrap().path());
    let kept = beside.filter(|path| path.to_str().unwrap().contains(".walpoint-kept-"));
    kept.map(|directory| directory.join(segment)).filter(|path| path.exists()).collect()
}

/// Puts the sound file in the place of the damaged object, as the programs say it.
#[track_caller]
fn cure(bed: &Archived, key: &str, file: &str) {
    bed.back_door().delete(key);
    bed.agent.run(&["push", file]).expect_success();
}

#[track_caller]
fn recovers_all(bed: &mut Archived, ledger: &Ledger) {
    bed.try_restore("data", &["--delta", "--server-is-down", "--resume-archiving"]).expect_success();
    bed.cluster.start();
    bed.cluster.wait_promoted();
    assert_eq!(ledger.labels(&bed.cluster), "a1 a2 a3 a4");
}

#[track_caller]
fn is_kept_by_a_repair_that_does_not_need_it(known: bool) {
    let (mut bed, ledger, marks) = crashed();
    let segment = &marks[1].segment;
    let sound = fs::read(bed.cluster.wal_dir().join(segment)).unwrap();
    let key = damage(&bed, segment);
    if known {
        bed.agent.run(&["verify"]).expect_status(3);
    }
    let first = marks[0].xid.to_string();
    let options = ["--delta", "--server-is-down", "--target-xid", &first];
    let told = bed.try_restore("data", &options).expect_success().stdout;
    let [kept] = &kept(&bed, segment)[..] else { panic!("known: {known}: nothing was kept: {told}") };
    assert_eq!(fs::read(kept).unwrap(), sound, "known: {known}");
    let push = format!("archive-agent push {}", kept.display());
    assert!(told.contains(&push), "known: {known}: {told}");
    cure(&bed, &key, kept.to_str().unwrap());
    recovers_all(&mut bed, &ledger);
}

#[test]
fn what_is_known_to_be_damaged_in_the_archive_is_kept() {
    is_kept_by_a_repair_that_does_not_need_it(true);
}

#[test]
fn what_is_damaged_in_the_archive_and_was_never_read_is_kept() {
    is_kept_by_a_repair_that_does_not_need_it(false);
}

/// In the middle, and the archive's last one, behind which comes what only `pg_wal` has.
#[test]
fn what_recovery_needs_and_only_pg_wal_has_undamaged_is_archived_first() {
    for at in [1, 2] {
        let (mut bed, ledger, marks) = crashed();
        let segment = &marks[at].segment;
        let key = damage(&bed, segment);
        let before = fs::read_dir(bed.cluster.wal_dir()).unwrap().count();
        let refused = bed.try_restore("data", &["--delta", "--server-is-down"]).expect_status(1);
        let file = bed.cluster.wal_dir().join(segment).display().to_string();
        for says in
            [&key, &format!("archive-agent push {file}"), "--discard-unarchived-wal", "nothing was changed"]
        {
            assert!(refused.stderr.contains(says), "{at} {says}: {refused:#?}");
        }
        assert_eq!(fs::read_dir(bed.cluster.wal_dir()).unwrap().count(), before, "{at}");
        bed.try_restore("data", &["--delta", "--server-is-down", "--discard-unarchived-wal", "--dry-run"])
            .expect_success();
        cure(&bed, &key, &file);
        recovers_all(&mut bed, &ledger);
    }
}

/// A copy that another repository has sound is enough.
#[test]
fn what_another_repository_has_undamaged_is_not_kept() {
    let second = Store::local();
    let builder = Cluster::builder().segment_size_mb(1);
    let mut bed = Archived::start_with(builder, Store::local(), |agent| agent.repository("second", &second));
    let mut ledger = Ledger::create(&bed.cluster, "rows");
    bed.backup();
    let segment = ledger.append_as(&bed.cluster, "a1").segment;
    bed.settle();
    let both = || second.back_door().list("clusters/main").iter().any(|key| key.ends_with(&segment));
    walpoint_tests::wait::until_true(walpoint_tests::wait::SOON, "both have it", both);
    bed.cluster.crash();
    damage(&bed, &segment);
    bed.try_restore("data", &["--delta", "--server-is-down"]).expect_success();
    assert_eq!(kept(&bed, &segment), Vec::<PathBuf>::new());
}
