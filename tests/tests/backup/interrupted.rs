//! B4: a backup that is interrupted at any moment is never listed as one, leaves PostgreSQL out of backup mode, and is gone
//! on with by the next one.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use walpoint_repo::backup::ListedState;
use walpoint_tests::cluster::Cluster;
use walpoint_tests::oracle::Contents;
use walpoint_tests::process::{self, Background};
use walpoint_tests::{faults, wait};

use crate::bed::{Bed, noise};

fn bed() -> Bed {
    let bed = Bed::local(Cluster::builder());
    bed.cluster.psql(
        "create table t as select i, md5(random()::text) from generate_series(1, 400000) i; checkpoint",
    );
    bed
}

fn start(bed: &Bed, arguments: &[&str]) -> Background {
    let all = ["backup"].iter().chain(arguments);
    let mut command = bed.agent.command("archive-agent", all);
    Background::start(&mut command, &bed.agent.place().join("backup.log"))
}

/// Whether any session of the server is in backup mode: it ends with the session.
fn idle(bed: &Bed) {
    let sql = "select count(*) from pg_stat_activity where application_name = 'walpoint'";
    bed.cluster.wait_for(sql, "0");
}

/// B4: signals, at moments all over the backup; SIGTERM is answered within seconds and says what it means.
#[test]
fn a_signal_leaves_no_backup() {
    let bed = bed();
    let began = Instant::now();
    bed.backup(&[]);
    let whole = began.elapsed();
    let finished = bed.repository().finished();
    for (n, signal) in
        [Signal::TERM, Signal::INT, Signal::KILL, Signal::TERM, Signal::KILL].into_iter().enumerate()
    {
        let mut backup = start(&bed, &["--full"]);
        std::thread::sleep(whole.mul_f64(0.15 + 0.17 * n as f64));
        let ended_by_itself = backup.try_status().is_some();
        backup.signal(signal);
        let status = backup.wait(Duration::from_secs(20));
        if ended_by_itself || status == 0 {
            continue;
        }
        if signal != Signal::KILL {
            assert_eq!(status, 1, "{}", backup.log());
            assert!(backup.log().contains("no backup was taken"), "{}", backup.log());
        }
        idle(&bed);
        let now = bed.repository().finished();
        assert!(now.len() - finished.len() <= n, "{now:?}");
        for listed in bed.repository().list() {
            assert!(now.contains(&listed.id) || listed.state == ListedState::Unfinished, "{listed:?}");
        }
    }
    // And nothing of it stands in the way of the next one.
    let id = bed.backup(&[])["backup"].as_str().unwrap().to_owned();
    assert_eq!(bed.repository().finished().last().unwrap().to_string(), id);
}

/// B4: the connection that holds the backup dies; what was copied is no backup.
#[test]
fn a_lost_session_ends_the_backup() {
    let bed = bed();
    let mut backup = start(&bed, &[]);
    wait::until_true(wait::SOON, "the backup copies", || backup.log().contains("copying"));
    bed.cluster
        .psql("select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'walpoint'");
    let status = backup.wait(Duration::from_secs(120));
    assert_eq!(status, 1, "{}", backup.log());
    assert!(backup.log().contains("backup"), "{}", backup.log());
    assert_eq!(bed.repository().finished(), []);
}

/// B4: kill -9 exactly when an object becomes visible.
#[test]
fn killed_at_the_creation_of_an_object() {
    walpoint_tests::needs_root!();
    let bed = bed();
    let (mut finished, mut killed) = (0, 0);
    // Counted in each thread, so the later ones may never be reached.
    for when in [1, 2, 3, 5] {
        let command = bed.agent.command("archive-agent", ["backup"]);
        let injection = format!("linkat,link:signal=SIGKILL:when={when}");
        let mut command = faults::inject(&command, &[&injection], &[]);
        let mut backup = Background::start(&mut command, &bed.agent.place().join("killed.log"));
        let succeeded = backup.wait(Duration::from_secs(120)) == 0;
        idle(&bed);
        let now = bed.repository().finished().len();
        // One that was killed behind its manifest is a backup, and is verified below.
        assert!(now == finished + 1 || !succeeded && now == finished, "{when}: {now}");
        killed += usize::from(!succeeded);
        finished = now;
    }
    assert!(killed > 0);
    bed.backup(&[]);
    bed.agent.run(&["verify"]).expect_success();
}

/// Kills backups at random moments, then makes one: it restores, as does all that is listed, what the dead ones stored was not
/// stored again, and a verification of everything finds nothing.
fn kill_at_random(times: usize) {
    use rand::Rng;
    let mut random = faults::random();
    let bed = bed();
    noise(&bed.cluster.pgdata().join("noise"), 150);
    let mut killed = 0;
    for n in 0..times {
        let mut backup = start(&bed, &[]);
        wait::until_true(wait::SOON, "the backup copies or ended", || {
            backup.log().contains("copying") || backup.try_status().is_some()
        });
        // The first one at once: the others may all be fast enough.
        let patience = if n == 0 { 0 } else { random.random_range(0..2500) };
        std::thread::sleep(Duration::from_millis(patience));
        killed += usize::from(backup.try_status().is_none());
        backup.signal(Signal::KILL);
        backup.wait(Duration::from_secs(20));
        bed.cluster.psql("insert into t select i, 'later' from generate_series(1, 1000) i");
    }
    let last = bed.backup(&[]);
    println!("{killed} of {times} killed; the last one: {}", last["repositories"][0]);
    assert!(killed > 0);
    let source = Contents::of(&bed.cluster);
    let segment = bed.cluster.switch_wal();
    bed.cluster.wait_archived(&segment);
    let listed = bed.repository().list();
    assert!(listed.iter().all(|listed| listed.state != ListedState::Unfinished || listed.progress == 0));
    for id in bed.repository().finished() {
        let restored = bed.recover(&id.to_string());
        source.assert_equal(&Contents::of(&restored));
        let place = restored.pgdata().to_owned();
        drop(restored);
        std::fs::remove_dir_all(place).unwrap();
    }
    bed.agent.run(&["verify"]).expect_success();
}

/// B4: ten of them.
#[test]
fn after_kills_at_random_the_next_backup_goes_on_and_restores() {
    kill_at_random(10);
}

/// B4: a hundred (`make soak`).
#[test]
#[ignore = "takes long: make soak"]
fn after_a_hundred_kills_at_random_the_next_backup_goes_on_and_restores() {
    kill_at_random(100);
}

/// B4: what a dead backup stored is not stored again: the next one puts what remained, and a pack for each reader.
#[test]
fn an_interrupted_backup_is_gone_on_with() {
    const PACK: u64 = 32 << 20;
    let bed = bed();
    (0..3).for_each(|n| noise(&bed.cluster.pgdata().join(format!("noise{n}")), 100));
    let mut backup = start(&bed, &[]);
    let stored = || {
        let data = bed.store.root().unwrap().join("clusters/main/data");
        let backups = std::fs::read_dir(data).into_iter().flatten().flatten();
        let packs = backups.filter_map(|b| std::fs::read_dir(b.path()).ok()).flatten().flatten();
        let packs = packs.filter(|pack| pack.file_name().to_string_lossy().ends_with(".pack"));
        packs.filter_map(|pack| pack.metadata().ok()).map(|pack| pack.len()).sum::<u64>()
    };
    wait::until_true(Duration::from_secs(120), "some packs are stored and noted", || {
        let noted = bed.repository().list().iter().any(|listed| listed.progress > 0);
        noted && stored() > 3 * PACK || backup.try_status().is_some()
    });
    backup.signal(Signal::KILL);
    assert_ne!(backup.wait(Duration::from_secs(20)), 0, "it was faster: {}", backup.log());
    let before = stored();
    // Nobody else is believed to be at it: the dead one's process is gone.
    let next = bed.backup(&[]);
    let copy = &next["repositories"][0];
    let (bytes, new) = (next["file_bytes"].as_u64().unwrap(), copy["new_bytes"].as_u64().unwrap());
    println!("{bytes} bytes; {before} stored by the dead one; {copy}");
    assert!(copy["reused_bytes"].as_u64().unwrap() > 0, "{copy}");
    let readers = u64::try_from(std::thread::available_parallelism().unwrap().get()).unwrap();
    assert!(new <= bytes - before + (readers + 1) * PACK, "{copy}");
    let listed = bed.repository().list();
    assert!(matches!(listed[0].state, ListedState::Aborted(_)), "{listed:?}");
    bed.cluster.psql("insert into t values (7, 'seven')");
    let source = Contents::of(&bed.cluster);
    let segment = bed.cluster.switch_wal();
    bed.cluster.wait_archived(&segment);
    source.assert_equal(&Contents::of(&bed.recover(next["backup"].as_str().unwrap())));
}

/// Two backups at once: the second says who is at it and since when. With the lease stolen both are made, and both restore.
#[test]
fn two_backups_at_once() {
    let bed = bed();
    noise(&bed.cluster.pgdata().join("noise"), 300);
    let mut first = start(&bed, &[]);
    wait::until_true(wait::SOON, "the backup copies", || first.log().contains("copying"));
    let second = bed.agent.run(&["backup"]);
    if first.try_status().is_none() {
        assert_eq!(second.status, 1, "{}", second.stderr);
        let process = format!("process {} on", first.pid());
        assert!(
            second.stderr.contains(&process) && second.stderr.contains("--steal-lease"),
            "{}",
            second.stderr
        );
    }
    let forced = bed.backup(&["--steal-lease"]);
    assert_eq!(first.wait(Duration::from_secs(120)), 0, "{}", first.log());
    assert!(bed.repository().finished().len() >= 2);
    let source = Contents::of(&bed.cluster);
    let segment = bed.cluster.switch_wal();
    bed.cluster.wait_archived(&segment);
    source.assert_equal(&Contents::of(&bed.recover(forced["backup"].as_str().unwrap())));
}

/// B4: a backup that runs in another PID namespace of the machine, as in a container that has its name, is not taken for dead.
#[test]
fn a_backup_in_another_pid_namespace_is_not_taken_over() {
    walpoint_tests::needs_root!();
    let bed = bed();
    let log = bed.agent.place().join("contained.log");
    let command = bed.agent.command("archive-agent", ["backup"]);
    let mut contained = Background::start(&mut faults::in_pid_namespace(&command), &log);
    wait::until_true(wait::SOON, "the backup copies", || contained.log().contains("copying"));
    let stopped = process::descendants(contained.pid());
    let agent = *stopped.last().unwrap();
    process::kill_pid(agent, Signal::STOP);
    let refused = bed.agent.run(&["backup"]).expect_status(1);
    assert!(refused.stderr.contains("no backup was started: process "), "{}", refused.stderr);
    process::kill_pid(agent, Signal::CONT);
    assert_eq!(contained.wait(Duration::from_secs(120)), 0, "{}", contained.log());
    assert_eq!(bed.repository().finished().len(), 1);
    bed.backup(&[]);
}
