//! R2: the right backup and the right WAL on a cluster that was restored twice, so that its archive holds three timelines,
//! two of them abandoned.

use serde_json::Value;
use walpoint_tests::archived::Archived;
use walpoint_tests::cluster::Cluster;
use walpoint_tests::rows::Ledger;
use walpoint_tests::store::Store;

/// The cluster dies; what takes its place is restored from the archive to a target, and archives again.
fn lose_and_restore(bed: &mut Archived, lost: &str, target: &[&str]) {
    bed.settle();
    bed.cluster.crash();
    let pgdata = bed.cluster.pgdata().to_owned();
    std::fs::rename(&pgdata, bed.place(lost)).unwrap();
    let options = [target, &["--target-action", "promote", "--resume-archiving"]].concat();
    bed.restore(pgdata.file_name().unwrap().to_str().unwrap(), &options);
    bed.cluster.start();
    bed.cluster.wait_promoted();
}

#[track_caller]
fn plan(bed: &Archived, options: &[&str]) -> Value {
    let output = bed.agent.restore(&[&["--json", "plan"], options].concat());
    serde_json::from_str(&output.expect_success().stdout).unwrap()
}

/// R2, F7: every target kind on every branch starts from the newest backup that lies before it on the path to it, and lands
/// on that branch's rows.
#[test]
fn every_branch_of_a_forked_archive_is_reached_from_its_own_backup() {
    let mut bed = Archived::start(Cluster::builder().segment_size_mb(1), Store::local());
    let mut ledger = Ledger::create(&bed.cluster, "rows");
    // Timeline 1: backup A, a1, a2, backup B, a3, a4, and the disaster.
    let a = bed.backup();
    let a1 = ledger.append_as(&bed.cluster, "a1");
    let a2 = ledger.append_as(&bed.cluster, "a2");
    let b = bed.backup();
    let a3 = ledger.append_as(&bed.cluster, "a3");
    bed.cluster.psql("select pg_create_restore_point('spot')");
    let a4 = ledger.append_as(&bed.cluster, "a4");
    // Timeline 2 leaves it after a1, before B: b1, b2, backup C, b3, and another disaster.
    lose_and_restore(&mut bed, "lost1", &["--target-time", &a1.time_after]);
    let b1 = ledger.append_as(&bed.cluster, "b1");
    bed.cluster.psql("select pg_create_restore_point('spot')");
    let b2 = ledger.append_as(&bed.cluster, "b2");
    let c = bed.backup();
    let b3 = ledger.append_as(&bed.cluster, "b3");
    // Timeline 3 leaves timeline 1 after a3, before the restore point: B is on its path, C is not.
    lose_and_restore(&mut bed, "lost2", &["--target-xid", &a3.xid.to_string(), "--target-timeline", "1"]);
    let c1 = ledger.append_as(&bed.cluster, "c1");
    bed.cluster.psql("select pg_create_restore_point('spot')");
    let c2 = ledger.append_as(&bed.cluster, "c2");
    bed.settle();

    let [a2_xid, b3_xid, c2_xid] = [&a2, &b3, &c2].map(|mark| mark.xid.to_string());
    let on = |timeline: &'static str, options: &[&'static str]| {
        [&["--target-timeline", timeline], options].concat()
    };
    let cases: Vec<(Vec<&str>, &str, &str)> = vec![
        (vec![], &b, "a1 a2 a3 c1 c2"),
        (vec!["--target-name", "spot"], &b, "a1 a2 a3 c1"),
        (vec!["--target-time", &c1.time_after], &b, "a1 a2 a3 c1"),
        (vec!["--target-xid", &c2_xid], &b, "a1 a2 a3 c1 c2"),
        // Before the branches part.
        (vec!["--target-time", &a1.time_after], &a, "a1"),
        (vec!["--target-immediate"], &b, "a1 a2"),
        // The abandoned first branch.
        (on("1", &[]), &b, "a1 a2 a3 a4"),
        (on("1", &["--target-name", "spot"]), &b, "a1 a2 a3"),
        (on("1", &["--target-immediate"]), &b, "a1 a2"),
        (vec!["--target-timeline", "1", "--target-lsn", &a4.after], &b, "a1 a2 a3 a4"),
        (vec!["--target-timeline", "1", "--target-xid", &a2_xid], &a, "a1 a2"),
        (vec!["--target-timeline", "current", "--backup", &a], &a, "a1 a2 a3 a4"),
        // The abandoned second one. B ends before its moments and at lower positions, but on a branch that was left before.
        (on("2", &[]), &c, "a1 b1 b2 b3"),
        (on("2", &["--target-immediate"]), &c, "a1 b1 b2"),
        (on("2", &["--target-name", "spot"]), &a, "a1 b1"),
        (vec!["--target-timeline", "2", "--target-time", &b1.time_after], &a, "a1 b1"),
        (vec!["--target-timeline", "2", "--target-lsn", &b2.after], &a, "a1 b1 b2"),
        (vec!["--target-timeline", "2", "--target-xid", &b3_xid], &c, "a1 b1 b2 b3"),
    ];
    for (options, backup, rows) in &cases {
        let plan = plan(&bed, options);
        assert_eq!(plan["backup"]["id"], *backup, "{options:?}: {plan:#}");
        let restored =
            bed.restore_and_start("branch", &[options, &["--target-action", "promote"][..]].concat());
        restored.wait_promoted();
        assert_eq!(ledger.labels(&restored), *rows, "{options:?}\n{}", restored.log());
        drop(restored);
        std::fs::remove_dir_all(bed.place("branch")).unwrap();
    }

    // What the path does not lead through is refused.
    for (options, says) in [
        (vec!["--target-timeline", "1", "--backup", &c], "does not lie on the path"),
        (vec!["--target-timeline", "2", "--backup", &b], "does not lie on the path"),
        (vec!["--target-timeline", "4"], "no timeline 4"),
        (vec!["--target-timeline", "1", "--target-time", &b1.time_after], "no record in it reaches"),
    ] {
        let output = bed.try_restore("branch", &options).expect_status(1);
        assert!(output.stderr.contains(says), "{options:?}: {output:#?}");
        assert!(!bed.place("branch").exists(), "{options:?} touched something");
    }
    // The refusal says which branch has it.
    let output = bed.agent.restore(&["plan", "--target-timeline", "1", "--target-time", &b3.time_before]);
    assert!(output.expect_status(1).stdout.contains("--target-timeline 2"), "the other branch is not told");
}
