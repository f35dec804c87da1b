//! What lies at the end of an archive: segments that are lost although the index names them, a dead primary's last segment,
//! which never was complete, and one that was stored although damaged.

use std::fs;
use std::path::PathBuf;

use serde_json::Value;
use walpoint_tests::archived::Archived;
use walpoint_tests::cluster::Cluster;
use walpoint_tests::rows::{Ledger, Mark};
use walpoint_tests::store::{BackDoor, Store};
use walpoint_tests::wait;

fn bed() -> (Archived, Ledger) {
    let builder = Cluster::builder().segment_size_mb(1);
    // Asked by hand, it does not wait long.
    let bed =
        Archived::start_with(builder, Store::local(), |agent| agent.cluster_line("fetch_timeout = \"5s\""));
    let ledger = Ledger::create(&bed.cluster, "rows");
    bed.backup();
    bed.settle();
    (bed, ledger)
}

#[track_caller]
fn plan(bed: &Archived, options: &[&str]) -> Value {
    let output = bed.agent.restore(&[&["--json", "plan"], options].concat());
    serde_json::from_str(&output.expect_success().stdout).unwrap()
}

#[track_caller]
fn refused(bed: &Archived, options: &[&str], reason: &str) -> Value {
    let output = bed.agent.restore(&[&["--json", "plan"], options].concat());
    let refusal: Value = serde_json::from_str(&output.expect_status(1).stdout).unwrap();
    assert_eq!(refusal["reason"], reason, "{options:?}: {refusal:#}");
    let restore = bed.try_restore("refused/data", options).expect_status(1);
    assert!(restore.stderr.contains("Nothing was touched"), "{restore:#?}");
    assert!(!bed.place("refused").exists(), "{options:?} touched something");
    refusal
}

/// Restored, started and promoted: the rows, and the timeline.
#[track_caller]
fn recovered(bed: &Archived, ledger: &Ledger, options: &[&str]) -> (String, u32) {
    let server = bed.restore_and_start("again", &[options, &["--target-action", "promote"]].concat());
    server.wait_promoted();
    let found = (ledger.labels(&server), server.timeline());
    drop(server);
    fs::remove_dir_all(bed.place("again")).unwrap();
    found
}

/// The keys of the timeline's segments, by position.
fn segments(bed: &Archived, timeline: u32) -> Vec<String> {
    let keys = bed.back_door().list("clusters/main");
    let directory = format!("/wal/{timeline:08X}/");
    let mut keys: Vec<String> = keys.into_iter().filter(|key| key.contains(&directory)).collect();
    keys.retain(|key| file_name(key).len() == 24);
    keys.sort();
    keys
}

fn file_name(key: &str) -> &str {
    key.rsplit('/').next().unwrap()
}

/// Promises 4 and 7: the newest segments are gone, as after a copy of the repository that was broken off, and the index still
/// names them: that is a gap, and no end.
#[test]
fn a_tail_that_the_index_names_and_the_store_has_lost_is_a_gap() {
    let (mut bed, mut ledger) = bed();
    let marks: Vec<Mark> = (0..40)
        .map(|n| {
            let mark = ledger.append_as(&bed.cluster, &n.to_string());
            bed.cluster.switch_wal();
            mark
        })
        .collect();
    bed.settle();
    wait::until_true(wait::SOON, "the index has an object", || {
        bed.back_door().list("clusters/main").iter().any(|key| key.contains("/index/00000001/"))
    });
    bed.stop_daemon();
    let lost = &marks[19].segment;
    let stored = segments(&bed, 1);
    stored.iter().filter(|key| file_name(key) >= lost.as_str()).for_each(|key| bed.back_door().delete(key));

    for options in
        [&[][..], &["--target-xid", &marks[22].xid.to_string()], &["--target-lsn", &marks[22].before]]
    {
        let output = bed.agent.restore(&[&["plan"], options].concat()).expect_status(1);
        assert!(output.stdout.contains(lost), "{options:?}: {output:#?}");
    }
    let refusal = refused(&bed, &[], "missing-wal");
    assert_eq!(refusal["missing_segments"][0]["first_segment"], lost.as_str(), "{refusal:#}");
    // What is left can be had, by the moment that the refusal offers.
    let options: Vec<&str> = refusal["nearest_targets"][0]["options"]
        .as_array()
        .unwrap()
        .iter()
        .map(|option| option.as_str().unwrap())
        .collect();
    let rows: Vec<String> = (0..19).map(|n: u32| n.to_string()).collect();
    assert_eq!(recovered(&bed, &ledger, &options).0, rows.join(" "), "{options:?}");

    let status: Value = serde_json::from_str(&bed.agent.run(&["status", "--json"]).stdout).unwrap();
    assert!(status.to_string().contains("\"gaps\":[{") && status.to_string().contains(lost), "{status:#}");
    let verified = bed.agent.run(&["verify", "--json", "--light"]).expect_status(3);
    let verified: Value = serde_json::from_str(&verified.stdout).unwrap();
    let findings = &verified["repositories"][0]["findings"];
    let gap = |finding: &Value| finding["kind"] == "gap" && finding["object"].to_string().contains(lost);
    assert!(findings.as_array().unwrap().iter().any(gap), "{findings:#}");

    // By hand, too, it is no end.
    let fetched = bed.agent.fetch(lost, bed.place("fetched"));
    assert_eq!(fetched.status, 255, "{fetched:#?}");
    assert!(fetched.stderr.contains("index"), "{fetched:#?}");
}

/// A primary is killed with rows in its open segment; the file of that segment, a row in the segment before, one in it.
fn killed(bed: &mut Archived, ledger: &mut Ledger) -> (PathBuf, Mark, Mark) {
    let first = ledger.append_as(&bed.cluster, "a1");
    bed.settle();
    let second = ledger.append_as(&bed.cluster, "a2");
    let last = ledger.append_as(&bed.cluster, "a3");
    assert_eq!(second.segment, last.segment);
    bed.cluster.crash();
    bed.stop_daemon();
    (bed.cluster.wal_dir().join(&last.segment), first, second)
}

/// Promise 4: what a dead primary left in its open segment is recovered on request, whichever way it came into the archive.
#[test]
fn a_dead_primarys_last_segment_is_recovered_on_request() {
    for name in ["ended", "partial"] {
        let (mut bed, mut ledger) = bed();
        let (file, first, second) = killed(&mut bed, &mut ledger);
        let segment = file.file_name().unwrap().to_str().unwrap().to_owned();
        let before = recovered(&bed, &ledger, &[]);
        assert_eq!(before, ("a1".to_owned(), 2), "{name}: without it the archive ends before");
        if name == "partial" {
            let partial = bed.cluster.dir().write(format!("{segment}.partial"), fs::read(&file).unwrap());
            bed.agent.run(&["push", partial.to_str().unwrap()]).expect_success();
        } else {
            let pushed = bed.agent.run(&["push", file.to_str().unwrap()]).expect_success();
            assert!(
                pushed.stderr.contains(&segment) && pushed.stderr.contains("records end at"),
                "{pushed:#?}"
            );
            assert!(pushed.stderr.contains("--use-partial"), "{pushed:#?}");
        }
        let refusal = refused(&bed, &[], "ends-incomplete");
        assert!(refusal["hint"].to_string().contains("--use-partial"), "{name}: {refusal:#}");
        assert!(refusal["message"].to_string().contains(&segment), "{name}: {refusal:#}");
        // What is offered works, and so do targets in it.
        let options: Vec<&str> = refusal["nearest_targets"][0]["options"]
            .as_array()
            .unwrap()
            .iter()
            .map(|option| option.as_str().unwrap())
            .collect();
        plan(&bed, &options);
        let found = recovered(&bed, &ledger, &["--target-xid", &second.xid.to_string()]);
        assert_eq!(found, ("a1 a2".to_owned(), 2), "{name}");
        // Just before it PostgreSQL must not read ahead into it.
        let found = recovered(&bed, &ledger, &["--target-xid", &first.xid.to_string()]);
        assert_eq!(found, ("a1".to_owned(), 2), "{name}");
        let text = bed.agent.restore(&["plan", "--use-partial"]).expect_success().stdout;
        let again = text.lines().find(|line| line.contains("--target-timeline")).unwrap_or_default();
        assert!(again.contains("--use-partial"), "{name}: what is planned is asked for again: {text}");
        let found = recovered(&bed, &ledger, &["--use-partial"]);
        assert_eq!(found, ("a1 a2 a3".to_owned(), 2), "{name}");
    }
}

/// Promises 4 and 7: archiving stopped before a primary died, and only what there is of its last segment is archived by hand. The segment
/// before it was finished: `push` names it, and no plan goes to the end without it.
#[test]
fn a_last_segment_behind_one_that_was_never_archived_is_no_end() {
    let (mut bed, mut ledger) = bed();
    ledger.append_as(&bed.cluster, "a1");
    bed.settle();
    bed.stop_daemon();
    bed.cluster.set("archive_command", "false");
    bed.cluster.reload();
    bed.cluster.wait_for("show archive_command", "false");
    ledger.append_as(&bed.cluster, "a2");
    let missing = bed.cluster.switch_wal();
    let last = ledger.append_as(&bed.cluster, "a3").segment;
    assert!(missing < last);
    bed.cluster.crash();
    let content = fs::read(bed.cluster.wal_dir().join(&last)).unwrap();
    let partial = bed.cluster.dir().write(format!("{last}.partial"), content);
    for path in [partial, bed.cluster.wal_dir().join(&last)] {
        let pushed = bed.agent.run(&["push", path.to_str().unwrap()]).expect_success();
        assert!(pushed.stderr.contains(&format!("\"{missing}\" is not in the archive")), "{pushed:#?}");
        let refusal = refused(&bed, &[], "missing-wal");
        assert_eq!(refusal["missing_segments"][0]["first_segment"], missing.as_str(), "{refusal:#}");
        refused(&bed, &["--use-partial"], "missing-wal");
        let options = refusal["nearest_targets"][0]["options"].as_array().unwrap();
        let options: Vec<&str> = options.iter().map(|option| option.as_str().unwrap()).collect();
        assert!(options.contains(&"--target-lsn"), "{refusal:#}");
        assert_eq!(recovered(&bed, &ledger, &options).0, "a1");
    }
    let status: Value = serde_json::from_str(&bed.agent.run(&["status", "--json"]).stdout).unwrap();
    assert!(
        status.to_string().contains("\"gaps\":[{") && status.to_string().contains(&missing),
        "{status:#}"
    );
    let verified = bed.agent.run(&["verify", "--json", "--light"]).expect_status(3);
    assert!(verified.stdout.contains(&missing), "{verified:#?}");

    let path = bed.cluster.wal_dir().join(&missing);
    bed.agent.run(&["push", path.to_str().unwrap()]).expect_success();
    assert_eq!(recovered(&bed, &ledger, &["--use-partial"]), ("a1 a2 a3".to_owned(), 2));
}

/// Promise 7: recovery asks every repository, so one that has nothing of the last segment does not answer for the other.
#[test]
fn a_repository_without_a_last_segment_does_not_answer_for_the_other() {
    let second = Store::local();
    let builder = Cluster::builder().segment_size_mb(1);
    let mut bed = Archived::start_with(builder, Store::local(), |agent| agent.repository("second", &second));
    let mut ledger = Ledger::create(&bed.cluster, "rows");
    bed.backup();
    bed.settle();
    let (file, ..) = killed(&mut bed, &mut ledger);
    bed.agent.run(&["push", file.to_str().unwrap()]).expect_success();
    let ended = |door: &BackDoor| door.list("clusters/main").into_iter().find(|key| key.contains(".ended/"));
    let (main, other) = (bed.back_door(), second.back_door());
    assert!(ended(&other).is_some());
    main.delete(&ended(&main).unwrap());
    refused(&bed, &[], "ends-incomplete");
    assert_eq!(recovered(&bed, &ledger, &["--use-partial"]), ("a1 a2 a3".to_owned(), 2));
}

/// Promise 4a: a tablespace that only such a segment creates is seen by a restore, too.
#[test]
fn a_tablespace_created_in_an_incomplete_segment_is_looked_for() {
    let (mut bed, mut ledger) = bed();
    ledger.append_as(&bed.cluster, "a1");
    bed.settle();
    let space = bed.cluster.create_tablespace("late");
    let last = ledger.append_as(&bed.cluster, "a2");
    bed.cluster.crash();
    bed.stop_daemon();
    let content = fs::read(bed.cluster.wal_dir().join(&last.segment)).unwrap();
    let partial = bed.cluster.dir().write(format!("{}.partial", last.segment), content);
    bed.agent.run(&["push", partial.to_str().unwrap()]).expect_success();
    for options in [&["--use-partial"][..], &["--target-xid", &last.xid.to_string()]] {
        plan(&bed, options);
        let output = bed.try_restore("refused/data", options).expect_status(1);
        assert!(output.stderr.contains(space.to_str().unwrap()), "{options:?}: {output:#?}");
        assert!(!bed.place("refused").exists(), "{options:?} touched something");
    }
}

/// The cluster dies, and what takes its place is restored to a target.
fn lose_and_restore(bed: &mut Archived, lost: &str, target: &[&str]) {
    bed.settle();
    bed.cluster.crash();
    let pgdata = bed.cluster.pgdata().to_owned();
    fs::rename(&pgdata, bed.place(lost)).unwrap();
    let options = [target, &["--target-action", "promote", "--resume-archiving"]].concat();
    bed.restore(pgdata.file_name().unwrap().to_str().unwrap(), &options);
    bed.cluster.start();
    bed.cluster.wait_promoted();
}

/// Promise 7: a child proves that its parent had WAL up to the fork, though the missing segment lies before that of the fork.
#[test]
fn a_parent_whose_child_left_it_later_has_a_gap() {
    let (mut bed, mut ledger) = bed();
    ledger.append_as(&bed.cluster, "a1");
    bed.settle();
    let second = ledger.append_as(&bed.cluster, "a2");
    bed.settle();
    let third = ledger.append_as(&bed.cluster, "a3");
    lose_and_restore(&mut bed, "lost", &["--target-xid", &third.xid.to_string()]);
    ledger.append_as(&bed.cluster, "b1");
    bed.settle();
    bed.stop_daemon();
    let gone = segments(&bed, 1);
    gone.iter()
        .filter(|key| file_name(key) >= second.segment.as_str())
        .for_each(|key| bed.back_door().delete(key));
    let refusal = refused(&bed, &["--target-timeline", "1"], "missing-wal");
    assert_eq!(refusal["missing_segments"][0]["first_segment"], second.segment.as_str(), "{refusal:#}");
}

/// Promise 4: the history of a timeline in between is gone, and a younger one's begins with the same lines.
#[test]
fn a_history_that_is_gone_is_read_from_a_younger_timelines() {
    let (mut bed, mut ledger) = bed();
    let first = ledger.append_as(&bed.cluster, "a1").xid.to_string();
    lose_and_restore(&mut bed, "lost1", &["--target-xid", &first]);
    let second = ledger.append_as(&bed.cluster, "b1").xid.to_string();
    lose_and_restore(&mut bed, "lost2", &["--target-xid", &second]);
    ledger.append_as(&bed.cluster, "c1");
    bed.settle();
    bed.stop_daemon();
    let keys = bed.back_door().list("clusters/main");
    let history = keys.iter().find(|key| key.ends_with("00000002.history")).unwrap();
    let whole = bed.place("whole.history");
    bed.agent.fetch("00000002.history", &whole).expect_success();
    bed.back_door().delete(history);
    assert_eq!(recovered(&bed, &ledger, &["--target-timeline", "1"]), ("a1".to_owned(), 4));
    let again = bed.place("again.history");
    bed.agent.fetch("00000002.history", &again).expect_success();
    let trimmed = |path| fs::read_to_string(path).unwrap().trim_end().to_owned();
    assert_eq!(trimmed(again), trimmed(whole));
}

/// Promise 7: recovery ends in a segment that was stored although damaged, also if it is the last one.
#[test]
fn a_damaged_last_segment_is_not_counted_on() {
    let (mut bed, mut ledger) = bed();
    let first = ledger.append_as(&bed.cluster, "a1");
    bed.settle();
    bed.stop_daemon();
    bed.cluster.set("archive_command", "false");
    bed.cluster.reload();
    let second = ledger.append_as(&bed.cluster, "a2");
    let segment = bed.cluster.switch_wal();
    assert_eq!(segment, second.segment);
    let mut bytes = fs::read(bed.cluster.wal_dir().join(&segment)).unwrap();
    // In the first record.
    bytes[60] ^= 0x40;
    bed.cluster.dir().mkdir("damaged");
    let path = bed.cluster.dir().write(format!("damaged/{segment}"), &bytes);
    bed.agent.run(&["push", "--accept-damaged", path.to_str().unwrap()]).expect_success();
    let refusal = refused(&bed, &[], "missing-wal");
    assert_eq!(refusal["missing_segments"][0]["first_segment"], segment.as_str(), "{refusal:#}");
    plan(&bed, &["--target-xid", &first.xid.to_string()]);
    let status: Value = serde_json::from_str(&bed.agent.run(&["status", "--json"]).stdout).unwrap();
    assert!(status.to_string().contains(&format!("\"damaged_segments\":[\"{segment}\"]")), "{status:#}");
}
