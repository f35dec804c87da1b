//! Right before and right after a failover: what the old timeline still has, and its `.partial` on request.

use std::fs;

use walpoint_tests::archived::Archived;
use walpoint_tests::rows::Ledger;
use walpoint_tests::wait;

use super::{Pair, fail_over, pair, plan, recovered, refused};

/// Promise 4, 7: right after a failover, with nothing of the new timeline archived but its history.
#[track_caller]
fn right_after_a_failover(major: u32) {
    let failover = fail_over(major);
    let bed = &failover.bed;
    for options in [&[][..], &["--target-timeline", "1"]] {
        let refusal = refused(bed, options);
        assert_eq!(refusal["reason"], "ends-in-fork", "{options:?}: {refusal:#}");
        let hints = refusal["hint"].to_string();
        assert!(hints.contains("--use-partial"), "{hints}");
        // What the refusal advises works.
        let moment = refusal["nearest_targets"][0]["options"].as_array().unwrap();
        let moment: Vec<&str> = moment.iter().map(|option| option.as_str().unwrap()).collect();
        plan(bed, &moment);
        let rows = recovered(bed, &failover.ledger, &[options, &["--use-partial"]].concat());
        assert_eq!(rows, (vec![1], "a1 a2 a3".to_owned()), "{options:?}");
    }
    failover.targets_before_the_fork(".partial");
}

#[test]
fn right_after_a_failover_the_partial_brings_back_every_row_on_request() {
    right_after_a_failover(17);
}

#[test]
fn right_after_failovers_of_other_versions_the_partial_brings_back_every_row() {
    for major in [14, 16, 18, 19] {
        right_after_a_failover(major);
    }
}

/// Promise 7: what a primary wrote behind the fork, after its standby was promoted, is reached by the old timeline's own number: by
/// a target in the fork's segment, of which there is only a `.partial`.
#[test]
fn a_target_behind_the_fork_is_found_in_a_partial_of_the_old_timeline() {
    let Pair { mut bed, standby, agent, mut ledger } = pair(17);
    ledger.append_as(&bed.cluster, "a2");
    standby.wait_replayed(&bed.cluster);
    let _daemon = agent.daemon();
    standby.promote();
    let has = |part: &str| bed.back_door().list("clusters/main").iter().any(|key| key.contains(part));
    wait::until_true(wait::SOON, "the fork is archived", || has(".partial") && has("00000002.history"));
    let third = ledger.append_as(&bed.cluster, "a3");
    let fourth = ledger.append_as(&bed.cluster, "a4");
    assert_eq!(third.segment, fourth.segment);
    bed.cluster.crash();
    let content = fs::read(bed.cluster.wal_dir().join(&third.segment)).unwrap();
    let partial = bed.cluster.dir().write(format!("{}.partial", third.segment), content);
    bed.agent.run(&["push", partial.to_str().unwrap()]).expect_success();
    let xid = third.xid.to_string();
    for target in [["--target-xid", &xid], ["--target-time", &third.time_after]] {
        let options = [&target[..], &["--target-timeline", "1"]].concat();
        let planned = plan(&bed, &options);
        assert_eq!(planned["timeline"], 1, "{planned:#}");
        assert!(
            planned["built_segment"]["source_file"].as_str().unwrap().ends_with(".partial"),
            "{planned:#}"
        );
        let server =
            bed.restore_and_start("again", &[&options[..], &["--target-action", "promote"]].concat());
        server.wait_promoted();
        assert_eq!(ledger.labels(&server), "a1 a2 a3", "{options:?}");
        drop(server);
        fs::remove_dir_all(bed.place("again")).unwrap();
    }
    // It is no part of what follows the fork.
    let refusal = refused(&bed, &["--target-xid", &xid]);
    assert_eq!(refusal["reason"], "xid-not-found", "{refusal:#}");
}

/// Promise 3, 4: the new timeline's first segment is archived, the old one's last is not: moments before the fork are
/// recovered on the old timeline, and restore points in that segment are found.
#[track_caller]
fn before_a_failover(major: u32) {
    let mut failover = fail_over(major);
    failover.ledger.append_as(&failover.standby, "b1");
    let segment = failover.standby.switch_wal();
    failover.standby.wait_archived(&segment);
    failover.targets_before_the_fork("00000002");
    let (bed, ledger) = (&failover.bed, &failover.ledger);
    assert_eq!(recovered(bed, ledger, &[]), (vec![1, 2], "a1 a2 a3 b1".to_owned()));
    // The old timeline's end is younger by the fork's segment, on request.
    let end = recovered(bed, ledger, &["--target-timeline", "1", "--use-partial"]);
    assert_eq!(end, (vec![1], "a1 a2 a3".to_owned()));
    assert_eq!(recovered_without(bed, ledger), "a1");
}

/// What `--target-timeline 1` alone brings back, which the plan notes.
#[track_caller]
fn recovered_without(bed: &Archived, ledger: &Ledger) -> String {
    let notes = plan(bed, &["--target-timeline", "1"])["notes"].to_string();
    assert!(notes.contains("--use-partial"), "{notes}");
    let server = bed.restore_and_start("again", &["--target-timeline", "1"]);
    server.wait_promoted();
    let rows = ledger.labels(&server);
    drop(server);
    fs::remove_dir_all(bed.place("again")).unwrap();
    rows
}

#[test]
fn moments_before_a_failover_are_recovered_on_the_old_timeline() {
    before_a_failover(17);
}

#[test]
fn moments_before_failovers_of_other_versions_are_recovered_on_the_old_timeline() {
    for major in [15, 16, 18, 19] {
        before_a_failover(major);
    }
}
