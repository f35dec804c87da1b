//! R1: clocks that disagree, and clocks that are set back. What was committed after a target time is never in what is restored.

use serde_json::Value;
use walpoint_tests::agent::Agent;
use walpoint_tests::archived::Archived;
use walpoint_tests::clock::Clock;
use walpoint_tests::cluster::{Cluster, Shutdown};
use walpoint_tests::rows::Ledger;
use walpoint_tests::store::Store;

/// An archived server whose clock is so many seconds ahead of the programs'.
fn bed(seconds: i64) -> (Archived, Clock) {
    bed_with(seconds, |agent| agent)
}

/// The same, with more in the programs' configuration.
fn bed_with(seconds: i64, configure: impl FnOnce(Agent) -> Agent) -> (Archived, Clock) {
    let mut cluster =
        Cluster::builder().segment_size_mb(1).conf("wal_retrieve_retry_interval", "200ms").init();
    let clock = Clock::of(&mut cluster);
    clock.ahead(seconds);
    let store = Store::local();
    let agent = configure(Agent::with(&cluster, &store));
    agent.archive_from(&cluster);
    agent.init(&[]).expect_success();
    let daemon = agent.daemon();
    cluster.start();
    (Archived::of(daemon, cluster, agent, store), clock)
}

/// The moment by the server's clock.
fn moment(primary: &Cluster) -> String {
    let now = "select to_char(clock_timestamp() at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS.US') || 'Z'";
    primary.psql(now).trim().to_owned()
}

fn plan(bed: &Archived, options: &[&str]) -> Value {
    let output = bed.agent.restore(&[&["--json", "plan"], options].concat());
    serde_json::from_str(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:#?}"))
}

/// The highest row at a target.
#[track_caller]
fn row(bed: &Archived, ledger: &Ledger, options: &[&str]) -> u32 {
    let restored = bed.restore_and_start("target", options);
    restored.wait_paused();
    let highest = ledger.highest(&restored);
    let pgdata = restored.pgdata().to_owned();
    drop(restored);
    std::fs::remove_dir_all(pgdata).unwrap();
    highest
}

/// The server's clock is ahead of the machine that makes the backups: by that machine's clock each of them ended before a moment
/// that it lies behind.
#[test]
fn a_backup_ends_by_the_clock_of_its_server() {
    let (bed, _clock) = bed(90);
    let primary = &bed.cluster;
    let mut ledger = Ledger::create(primary, "rows");
    bed.backup();
    for mode in [&["--remote"][..], &[]] {
        ledger.append_many(primary, 2);
        let kept = ledger.append(primary).n;
        bed.settle();
        let time = moment(primary);
        ledger.append_many(primary, 3);
        bed.settle();
        let later = bed.backup_with(mode);
        ledger.append(primary);
        bed.settle();
        let target = ["--target-time", time.as_str()];
        assert_ne!(plan(&bed, &target)["backup"]["id"], later, "{mode:?}");
        assert_eq!(row(&bed, &ledger, &target), kept, "{mode:?}");
    }
    let check = bed.agent.run(&["check"]).expect_success();
    assert!(check.stdout.contains("the server's clock is 1m "), "{check:#?}");
    let backup = bed.agent.run(&["backup", "--remote"]).expect_success();
    assert!(backup.stderr.contains("the server's clock is"), "{backup:#?}");
}

/// The clock was ahead and is set back, and a backup follows: it ends before the target by the clock and holds what was committed
/// after it. An older one serves; a person who means the second time names the backup.
#[test]
fn a_clock_that_was_set_back_brings_no_later_rows() {
    let (bed, clock) = bed(600);
    let primary = &bed.cluster;
    let mut ledger = Ledger::create(primary, "rows");
    bed.backup();
    ledger.append(primary);
    let kept = ledger.append(primary).n;
    bed.settle();
    let time = moment(primary);
    ledger.append_many(primary, 3);
    bed.settle();
    clock.ahead(0);
    let second = bed.backup();
    let behind = ledger.append(primary).n;
    bed.settle();
    clock.ahead(1200);
    ledger.append(primary);
    bed.settle();
    let target = ["--target-time", time.as_str()];
    let planned = plan(&bed, &target);
    assert_eq!(row(&bed, &ledger, &target), kept, "{planned:#}");
    assert!(planned["notes"].to_string().contains(&second), "{planned:#}");
    let named = ["--target-time", time.as_str(), "--backup", second.as_str()];
    assert_eq!(row(&bed, &ledger, &named), behind);
    let notes = plan(&bed, &named)["notes"].to_string();
    assert!(notes.contains("clock was set back"), "{notes}");
}

/// A backup that holds what was committed after a time does not serve it either when retention has deleted the WAL in which those
/// transactions ended, when the next backup takes its place, and in a repository that was made anew and never had that WAL.
#[test]
fn no_expiry_brings_back_a_time_that_a_backup_has_passed() {
    let other = Store::local();
    let (bed, clock) = bed_with(600, |agent| {
        let mut agent = agent.repository("second", &other);
        agent.tables = "\n[cluster.main.retention]\ngrace = \"0s\"\ncount = 1\n".to_owned();
        agent
    });
    let primary = &bed.cluster;
    let mut ledger = Ledger::create(primary, "rows");
    let first = bed.backup();
    ledger.append_many(primary, 2);
    bed.settle();
    let time = moment(primary);
    ledger.append_many(primary, 3);
    bed.settle();
    for entry in std::fs::read_dir(other.root().unwrap()).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            std::fs::remove_dir_all(path).unwrap();
        } else {
            std::fs::remove_file(path).unwrap();
        }
    }
    bed.agent.init(&[]).expect_success();
    bed.agent.init(&[]).expect_success();
    clock.ahead(0);
    ledger.append(primary);
    let second = bed.backup();
    ledger.append(primary);
    bed.settle();
    clock.ahead(1200);
    ledger.append(primary);
    bed.settle();
    let target = ["--target-time", time.as_str()];
    assert_eq!(plan(&bed, &target)["backup"]["id"], first);
    clock.ahead(0);
    let mut kept = second;
    for round in 1..=2 {
        (0..2).for_each(|_| drop(bed.agent.run(&["expire"]).expect_success()));
        assert_eq!(bed.backups(), [kept.as_str()], "round {round}");
        for repository in [bed.store.url(), other.url()] {
            let refused = plan(&bed, &[&target[..], &["--repo", &repository]].concat());
            assert_eq!(refused["reason"], "clock-set-back", "round {round}, {repository}: {refused:#}");
            assert!(refused["message"].to_string().contains(&kept), "{refused:#}");
        }
        let named = ["--target-time", time.as_str(), "--backup", kept.as_str()];
        assert_eq!(plan(&bed, &named)["backup"]["id"], kept);
        if round == 1 {
            kept = bed.backup();
            ledger.append(primary);
            bed.settle();
            clock.ahead(1200);
            ledger.append(primary);
            bed.settle();
            clock.ahead(0);
        }
    }
}

/// The first backup of a repository, from a standby whose clock is behind that of the server which stamps commits, in an archive that
/// begins behind them: that it holds what was committed after a time is known by the standby alone.
#[test]
fn a_standby_with_a_slow_clock_notes_what_it_replayed() {
    for mode in [&["--remote"][..], &[]] {
        let mut primary =
            Cluster::builder().segment_size_mb(1).conf("wal_retrieve_retry_interval", "200ms").init();
        let clock = Clock::of(&mut primary);
        clock.ahead(240);
        primary.start();
        let mut ledger = Ledger::create(&primary, "rows");
        let standby = primary.streaming_standby();
        ledger.append(&primary);
        let time = moment(&primary);
        ledger.append_many(&primary, 3);
        primary.psql("select pg_switch_wal()");
        standby.wait_replayed(&primary);
        primary.stop(Shutdown::Fast);
        let store = Store::local();
        let agent = Agent::with(&primary, &store);
        agent.archive_from(&primary);
        agent.init(&[]).expect_success();
        let daemon = agent.daemon();
        primary.start();
        // Nothing that is archived before the backup begins has a commit in it.
        primary.psql("checkpoint");
        primary.psql("select pg_switch_wal()");
        primary.psql("checkpoint");
        standby.wait_replayed(&primary);
        standby.psql("checkpoint");
        let on_standby = Agent::with(&standby, &store);
        let mut backup = on_standby.command("archive-agent", [&["backup"], mode].concat());
        let mut backup = backup.spawn().unwrap();
        let bed = Archived::of(daemon, primary, agent, store);
        // A standby ends no segment.
        while backup.try_wait().unwrap().is_none() {
            bed.settle();
        }
        assert!(backup.wait().unwrap().success());
        ledger.append(&bed.cluster);
        bed.settle();
        let refused = plan(&bed, &["--target-time", &time]);
        assert_eq!(refused["reason"], "clock-set-back", "{mode:?}: {refused:#}");
    }
}
