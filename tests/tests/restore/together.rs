//! Two repositories of which each lacks WAL that the other one has.

use serde_json::Value;
use walpoint_tests::archived::Archived;
use walpoint_tests::cluster::Cluster;
use walpoint_tests::rows::{Ledger, Mark};
use walpoint_tests::store::{BackDoor, Store};
use walpoint_tests::wait;

/// Rows `a1` to `a5`, each in a segment of its own that both repositories have, behind a backup.
fn bed(second: &Store) -> (Archived, Ledger, Vec<Mark>) {
    let builder = Cluster::builder().major(17).segment_size_mb(1);
    let bed = Archived::start_with(builder, Store::local(), |agent| {
        agent.repository("second", second).cluster_line("fetch_budget = \"2s\"")
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
    let missing = refused["missing"].as_array().unwrap();
    assert_eq!(missing.len(), 1, "{refused:#}");
    assert_eq!(
        (&missing[0]["first"], &missing[0]["last"]),
        (&rows[1].segment.as_str().into(), &missing[0]["first"])
    );
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
