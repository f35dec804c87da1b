//! Valid WAL is never refused: refusing it would fill `pg_wal` and stop production.

mod archive_bed;

use std::time::Duration;

use archive_bed::Bed;
use walpoint_tests::agent::Agent;
use walpoint_tests::cluster::{Cluster, Shutdown};
use walpoint_tests::{process, wait};

const SOON: Duration = Duration::from_secs(120);

fn segments(cluster: &Cluster, count: usize) -> Vec<String> {
    cluster.psql("create table if not exists t (n int, at timestamptz)");
    let one = |_| {
        cluster.psql("insert into t select n, clock_timestamp() from generate_series(1, 100) n");
        cluster.switch_wal()
    };
    (0..count).map(one).collect()
}

/// Everything that PostgreSQL wants archived is, and nothing was refused.
#[track_caller]
fn all_archived(cluster: &Cluster, names: &[String], agent: &Agent) {
    let status = cluster.wal_dir().join("archive_status");
    wait::until_true(SOON, &format!("{names:?} are archived\n{}", cluster.log()), || {
        let done = |name: &String| status.join(format!("{name}.done")).exists();
        names.iter().all(|name| done(name) || !cluster.wal_dir().join(name).exists())
    });
    wait::until_true(SOON, &format!("no file waits\n{}", cluster.log()), || {
        let mut entries = std::fs::read_dir(&status).unwrap().flatten();
        !entries.any(|entry| entry.file_name().to_str().is_some_and(|name| name.ends_with(".ready")))
    });
    let told = agent.run(&["check"]);
    assert!(!format!("{}{}", told.stdout, told.stderr).contains("split brain"), "{told:?}");
    assert!(!cluster.log().contains("split brain"), "{}", cluster.log());
}

/// A former primary that was ahead is rewound, follows its heir, takes over again, and archives.
#[test]
fn a_former_primary_archives_again_after_pg_rewind() {
    let mut bed = Bed::local(Cluster::builder().segment_size_mb(1).conf("wal_log_hints", "on"));
    bed.cluster.set("wal_keep_size", "256MB");
    bed.cluster.start();
    let daemon = bed.agent.daemon();
    let mut heir = bed.cluster.standby();
    let agent = Agent::with(&heir, &bed.store);
    agent.archive_from(&heir);
    heir.start();
    let names = segments(&bed.cluster, 2);
    all_archived(&bed.cluster, &names, &bed.agent);
    heir.wait_replayed(&bed.cluster);
    heir.promote();
    let beside = agent.daemon();
    // The old primary goes on for a while; what it archives is behind the fork.
    let ahead = segments(&bed.cluster, 2);
    all_archived(&bed.cluster, &ahead, &bed.agent);
    let ours = segments(&heir, 3);
    all_archived(&heir, &ours, &agent);
    bed.cluster.stop(Shutdown::Fast);

    let mut rewind = heir.tool("pg_rewind");
    rewind.arg("-D").arg(bed.cluster.pgdata()).arg("--source-server").arg(heir.conninfo());
    process::run(&mut rewind, SOON).expect_success();
    bed.cluster.follow(&heir);
    bed.cluster.set_last("archive_command", bed.agent.archive_command());
    bed.cluster.start();
    let more = segments(&heir, 1);
    all_archived(&heir, &more, &agent);
    bed.cluster.wait_replayed(&heir);
    heir.stop(Shutdown::Fast);
    drop(beside);
    bed.cluster.promote();
    let last = segments(&bed.cluster, 3);
    all_archived(&bed.cluster, &last, &bed.agent);
    assert!(!daemon.log().contains("split brain"), "{}", daemon.log());
    bed.agent.run(&["backup"]).expect_success();
    bed.agent.run(&["verify"]).expect_success();
}

/// A cluster that is restored to a moment and goes on archiving, twice: each time it leaves a timeline that the archive goes on
/// to hold.
#[test]
fn a_cluster_archives_after_each_of_two_recoveries_to_an_earlier_moment() {
    let mut bed = Bed::local(Cluster::builder().segment_size_mb(1));
    bed.cluster.start();
    let mut daemon = bed.agent.daemon();
    bed.agent.run(&["backup"]).expect_success();
    let mut server = None::<Cluster>;
    for round in ["first", "second"] {
        let current = server.as_ref().unwrap_or(&bed.cluster);
        let kept = segments(current, 2);
        let target = current.lsn();
        let lost = segments(current, 2);
        all_archived(current, &[kept, lost].concat(), &bed.agent);
        match &mut server {
            Some(server) => server.stop(Shutdown::Fast),
            None => bed.cluster.stop(Shutdown::Fast),
        }
        assert_eq!(daemon.stop(), 0);
        let place = bed.cluster.pgdata().to_str().unwrap().to_owned();
        let arguments =
            ["restore", "--pgdata", &place, "--delta", "--resume-archiving", "--target-lsn", &target];
        bed.agent.restore(&[&arguments[..], &["--target-action", "promote"]].concat()).expect_success();
        drop(server.take());
        daemon = bed.agent.daemon();
        let restored = Cluster::start_restored(bed.cluster.dir(), bed.cluster.major(), &place);
        restored.wait_promoted();
        let names = segments(&restored, 3);
        let agent = Agent::at(bed.cluster.dir(), restored.pgdata(), &restored.conninfo())
            .repository("main", &bed.store);
        all_archived(&restored, &names, &agent);
        assert!(!daemon.log().contains("split brain"), "{round}: {}", daemon.log());
        server = Some(restored);
    }
    bed.agent.run(&["verify"]).expect_success();
    assert!(bed.archive().histories().0.len() == 2, "{:?}", bed.archive().histories());
}

/// Segments of every size: records that cross them, and switches.
#[test]
fn segments_of_every_size_are_archived() {
    for (mb, fill) in [(1, 5), (64, 70), (1024, 20)] {
        let mut bed = Bed::local(Cluster::builder().segment_size_mb(mb).conf("max_wal_size", "4GB"));
        bed.cluster.start();
        let daemon = bed.agent.daemon();
        bed.cluster.fill_wal_mb(fill);
        let mut names = vec![bed.cluster.switch_wal()];
        if mb < 1024 {
            names.extend(segments(&bed.cluster, 2));
        }
        all_archived(&bed.cluster, &names, &bed.agent);
        assert!(!daemon.log().contains("split brain"), "{mb} MB: {}", daemon.log());
    }
}

/// A server that crashes in the middle of records and comes back at once writes over what it had not flushed.
#[test]
fn a_server_archives_after_a_crash_in_the_middle_of_its_load() {
    let mut bed = Bed::local(Cluster::builder().segment_size_mb(1));
    bed.cluster.start();
    let daemon = bed.agent.daemon();
    segments(&bed.cluster, 1);
    for _ in 0..4 {
        let load = "insert into t select n, now() from generate_series(1, 300000) n";
        let mut command = bed.cluster.tool("psql");
        command.args(["-X", "-d", "postgres", "-c", load]);
        let mut running = command.spawn().unwrap();
        std::thread::sleep(Duration::from_millis(300));
        bed.cluster.crash();
        running.wait().unwrap();
        bed.cluster.start();
        let names = segments(&bed.cluster, 2);
        all_archived(&bed.cluster, &names, &bed.agent);
    }
    assert!(!daemon.log().contains("split brain"), "{}", daemon.log());
    bed.agent.run(&["backup"]).expect_success();
    bed.agent.run(&["verify"]).expect_success();
}

/// pg_resetwal jumps ahead on the same timeline: what follows is archived, and no plan passes the jump.
#[test]
fn what_follows_pg_resetwal_is_archived_and_no_plan_passes_the_jump() {
    let mut bed = Bed::local(Cluster::builder().segment_size_mb(1));
    bed.cluster.start();
    let daemon = bed.agent.daemon();
    bed.agent.run(&["backup"]).expect_success();
    let names = segments(&bed.cluster, 2);
    all_archived(&bed.cluster, &names, &bed.agent);
    bed.cluster.stop(Shutdown::Fast);
    let mut command = bed.cluster.tool("pg_resetwal");
    command.arg("-f").arg("-D").arg(bed.cluster.pgdata());
    process::run(&mut command, SOON).expect_success();
    bed.cluster.start();
    let after = segments(&bed.cluster, 3);
    all_archived(&bed.cluster, &after, &bed.agent);
    assert!(!daemon.log().contains("split brain"), "{}", daemon.log());
    let refused = bed.agent.restore(&["plan"]).expect_status(1);
    assert!(
        refused.stdout.contains("pg_resetwal") || refused.stdout.contains("missing"),
        "{}",
        refused.stdout
    );
    bed.agent.run(&["backup"]).expect_success();
    bed.agent.restore(&["plan"]).expect_success();
}
