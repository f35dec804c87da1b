//! Two repositories of which each lacks WAL that the other one has.

use serde_json::Value;
use walpoint_tests::archived::Archived;
use walpoint_tests::cluster::{Cluster, Shutdown};
use walpoint_tests::rows::{Ledger, Mark};
use walpoint_tests::store::{BackDoor, Store};
use walpoint_tests::wait;

use crate::forks;

/// Rows `a1` to `a5`, each in a segment of its own that both repositories have, behind a backup.
fn bed(second: &Store) -> (Archived, Ledger, Vec<Mark>) {
    let builder = Cluster::builder().major(17).segment_size_mb(1);
    let bed = Archived::start_with(builder, Store::local(), |agent| {
        agent.repository("second", second).cluster_line("fetch_timeout = \"2s\"")
    });
    let mut ledger = Ledger::create(&bed.cluster, "rows");
    bed.backup();
    let rows = ["a1", "a2", "a3", "a4", "a5"].map(|label| {
        let row = ledger.append_as(&bed.cluster, label);
        bed.settle();
        row
    });
    let objects = |door: &BackDoor| {
        let keys = door.list("clusters/main");
        keys.into_iter().filter(|key| key.contains("/wal/") || key.ends_with("/manifest")).count()
    };
    let (main, other) = (bed.back_door(), second.back_door());
    wait::until_true(wait::SOON, "both have everything", || objects(&main) == objects(&other));
    (bed, ledger, rows.into())
}

#[track_caller]
fn lose(door: &BackDoor, row: &Mark) {
    let mut keys = door.list("clusters/main");
    keys.retain(|key| key.ends_with(&format!("/{}", row.segment)));
    assert_eq!(keys.len(), 1, "{keys:?}");
    door.delete(&keys[0]);
}

fn plan(bed: &Archived, options: &[&str]) -> Value {
    let output = bed.agent.restore(&[&["plan", "--json"], options].concat());
    serde_json::from_str(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:#?}"))
}

/// R2: what only both repositories together lead to is planned and recovered, whatever the target. What none of them has is named, and
/// nothing else.
#[test]
fn repositories_that_lack_different_segments_lead_to_the_target_together() {
    let second = Store::local();
    let (bed, ledger, rows) = bed(&second);
    let (main, other) = (bed.back_door(), second.back_door());
    lose(&main, &rows[1]);
    lose(&other, &rows[2]);
    let xid = rows[3].xid.to_string();
    for (name, options, expected) in [
        ("latest", &[][..], "a1 a2 a3 a4 a5"),
        ("xid", &["--target-xid", &xid], "a1 a2 a3 a4"),
        ("lsn", &["--target-lsn", &rows[2].after], "a1 a2 a3"),
    ] {
        let planned = plan(&bed, options);
        assert_eq!(planned["result"], "plan", "{options:?}: {planned:#}");
        assert!(planned["notes"].to_string().contains(&rows[1].segment), "{planned:#}");
        let action: &[&str] = if options.is_empty() { &[] } else { &["--target-action", "promote"] };
        let server = bed.restore_and_start(name, &[options, action].concat());
        server.wait_promoted();
        assert_eq!(ledger.labels(&server), expected, "{}", server.log());
    }
    lose(&other, &rows[1]);
    let refused = plan(&bed, &[]);
    assert_eq!(refused["reason"], "missing-wal", "{refused:#}");
    let missing = refused["missing_segments"].as_array().unwrap();
    assert_eq!(missing.len(), 1, "{refused:#}");
    assert_eq!(
        (&missing[0]["first_segment"], &missing[0]["last_segment"]),
        (&rows[1].segment.as_str().into(), &missing[0]["first_segment"])
    );
}

/// R2: what only the repository without a backup has, and has damaged, is where the latest moment lies, not behind the end of the
/// other one's WAL: recovery, which asks both, would stop there.
#[test]
fn wal_that_only_the_other_repository_has_and_has_damaged_ends_no_plan() {
    let second = Store::local();
    let (bed, ledger, rows) = bed(&second);
    let (main, other) = (bed.back_door(), second.back_door());
    for key in other.list("clusters/main").into_iter().filter(|key| key.contains("/backups/")) {
        other.delete(&key);
    }
    lose(&main, &rows[4]);
    assert_eq!(plan(&bed, &[])["result"], "plan");
    let mut keys = other.list("clusters/main");
    keys.retain(|key| key.ends_with(&format!("/{}", rows[4].segment)));
    let whole = other.get(&keys[0]).unwrap();
    other.flip_bit(&keys[0], whole.len() * 3 / 4);
    bed.agent.run(&["verify"]).expect_status(3);
    let refused = plan(&bed, &[]);
    assert_eq!(refused["reason"], "missing-wal", "{refused:#}");
    assert_eq!(refused["missing_segments"][0]["first_segment"], rows[4].segment.as_str(), "{refused:#}");
    // Before it, and once it is stored again, all is well.
    let before = rows[3].xid.to_string();
    assert_eq!(plan(&bed, &["--target-xid", &before])["result"], "plan");
    other.delete(&keys[0]);
    other.put(&keys[0], whole);
    let server = bed.restore_and_start("again", &[]);
    server.wait_promoted();
    assert_eq!(ledger.labels(&server), "a1 a2 a3 a4 a5", "{}", server.log());
}

/// R2: timeline 2 left timeline 1 inside a segment that is whole, and the backup's repository has only its history. What the other one
/// has of it is followed; an incomplete copy there is what recovery would ask for, whichever way the timeline is asked for.
#[test]
fn a_timeline_of_which_the_backups_repository_has_only_the_history_is_followed() {
    let second = Store::local();
    let (mut bed, mut ledger, rows) = bed(&second);
    let before = rows[3].xid.to_string();
    forks::lose_and_restore(&mut bed, "lost", &["--target-xid", &before], None);
    let first = ledger.append_as(&bed.cluster, "b1").segment;
    assert!(first.starts_with("00000002"), "{first}");
    let (main, other) = (bed.back_door(), second.back_door());
    let of_two = |door: &BackDoor| {
        let mut keys = door.list("clusters/main");
        keys.retain(|key| key.contains("/wal/00000002/"));
        keys
    };
    wait::until_true(wait::SOON, "both have the history", || {
        [&main, &other]
            .iter()
            .all(|door| door.list("clusters/main").iter().any(|key| key.ends_with("00000002.history")))
    });
    for key in other.list("clusters/main").into_iter().filter(|key| key.contains("/backups/")) {
        other.delete(&key);
    }
    // What there is of its first segment.
    bed.cluster.crash();
    assert!(of_two(&main).is_empty() && of_two(&other).is_empty());
    let path = bed.cluster.wal_dir().join(&first);
    bed.agent.run(&["push", &path.display().to_string()]).expect_success();
    of_two(&main).iter().for_each(|key| main.delete(key));
    for options in [&[][..], &["--target-timeline", "2"]] {
        let refused = plan(&bed, options);
        assert_eq!(refused["reason"], "ends-incomplete", "{options:?}: {refused:#}");
    }
    let server = bed.restore_and_start("partial", &["--use-partial"]);
    server.wait_promoted();
    assert_eq!(ledger.labels(&server), "a1 a2 a3 a4 b1", "{}", server.log());
    drop(server);

    bed.cluster.start();
    bed.settle();
    wait::until_true(wait::SOON, "both have the segment", || {
        [&main, &other].iter().all(|door| of_two(door).iter().any(|key| key.ends_with(&first)))
    });
    bed.stop_daemon();
    of_two(&main).iter().for_each(|key| main.delete(key));
    for (name, options) in [("latest", &[][..]), ("named", &["--target-timeline", "2"])] {
        let planned = plan(&bed, options);
        assert_eq!(planned["timeline"], 2, "{options:?}: {planned:#}");
        let server = bed.restore_and_start(name, options);
        server.wait_promoted();
        assert_eq!(ledger.labels(&server), "a1 a2 a3 a4 b1", "{options:?} {}", server.log());
    }
}

/// R2, R6: what recovery needs and creates in WAL that the backup's repository lacks is known all the same.
#[test]
fn what_only_another_repository_says_of_tablespaces_and_settings_counts() {
    let second = Store::local();
    let (mut bed, mut ledger, rows) = bed(&second);
    let location = bed.cluster.create_tablespace("late");
    let created = ledger.append_as(&bed.cluster, "b1");
    bed.settle();
    bed.cluster.stop(Shutdown::Fast);
    bed.cluster.set("max_connections", 150);
    bed.cluster.start();
    ledger.append_as(&bed.cluster, "b2");
    bed.settle();
    let (main, other) = (bed.back_door(), second.back_door());
    let newest =
        || other.list("clusters/main").into_iter().filter(|key| key.contains("/wal/00000001/")).count();
    wait::until_true(wait::SOON, "the other one has everything", || {
        main.list("clusters/main").into_iter().filter(|key| key.contains("/wal/00000001/")).count()
            == newest()
    });
    bed.stop_daemon();
    for key in main.list("clusters/main") {
        let name = key.rsplit('/').next().unwrap();
        if key.contains("/index/") || key.contains("/wal/00000001/") && name >= created.segment.as_str() {
            main.delete(&key);
        }
    }
    for key in other.list("clusters/main").into_iter().filter(|key| key.contains("/backups/")) {
        other.delete(&key);
    }
    lose(&other, &rows[1]);
    // Another machine.
    bed.cluster.crash();
    std::fs::remove_dir_all(&location).unwrap();
    let told = bed.try_restore("copy", &[]).expect_success();
    let both = format!("{}{}", told.stdout, told.stderr);
    assert!(both.contains("creates tablespace") && both.contains(&location.display().to_string()), "{both}");
    assert!(told.stdout.contains("max_connections = 150"), "{told:#?}");
    std::fs::create_dir_all(&location).unwrap();
    walpoint_tests::user::give(&location);
    let copy = Cluster::start_restored(bed.cluster.dir(), 17, bed.place("copy"));
    copy.wait_promoted();
    assert_eq!(ledger.labels(&copy), "a1 a2 a3 a4 a5 b1 b2", "{}", copy.log());
}

/// R2: the one that alone has a plan to the latest moment ends before what the other one has behind a gap.
#[test]
fn the_latest_moment_is_that_of_all_repositories_together() {
    let second = Store::local();
    let (bed, ledger, rows) = bed(&second);
    let (main, other) = (bed.back_door(), second.back_door());
    rows[2..].iter().for_each(|row| lose(&main, row));
    lose(&other, &rows[1]);
    let planned = plan(&bed, &[]);
    assert!(planned["notes"].to_string().contains(&rows[2].segment), "{planned:#}");
    let server = bed.restore_and_start("latest", &[]);
    server.wait_promoted();
    assert_eq!(ledger.labels(&server), "a1 a2 a3 a4 a5", "{}", server.log());
}
