//! `max_rate` and `--max-rate`: a backup stores no faster, and a restore reads no faster.

use serde_json::Value;
use walpoint_tests::archived::Archived;
use walpoint_tests::cluster::Cluster;
use walpoint_tests::process::Output;
use walpoint_tests::store::Store;

/// What a command reports, and how many seconds it took.
#[track_caller]
fn report(output: Output) -> (Value, f64) {
    let document: Value = serde_json::from_str(&output.expect_success().stdout).unwrap();
    let seconds = document["seconds"].as_f64().unwrap();
    (document, seconds)
}

/// Only that it takes as long as it has to: how much longer, the machine decides.
#[test]
fn a_backup_and_a_restore_leave_room_on_the_line() {
    let bed = Archived::start(Cluster::builder().segment_size_mb(1), Store::local());
    let (backup, seconds) = report(bed.agent.run(&["--json", "backup", "--max-rate", "2MiB"]));
    let stored = backup["repositories"][0]["stored_bytes"].as_f64().unwrap();
    let needs = stored / f64::from(2 << 20);
    assert!(stored > 1e6 && seconds >= needs, "{stored} bytes in {seconds} s");
    let (_, seconds) = report(bed.try_restore("restored", &["--json", "--max-rate", "2MiB"]));
    assert!(seconds >= needs, "{stored} bytes in {seconds} s");
}
