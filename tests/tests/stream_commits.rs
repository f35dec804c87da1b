//! Synchronous commit: what PostgreSQL confirmed because Walpoint stored it is there after a disaster, and `check` says which commits
//! that holds for.

mod stream_bed;

use std::collections::BTreeSet;
use std::sync::mpsc;
use std::time::{Duration, Instant};
use std::{fs, thread};

use rustix::process::Signal;
use serde_json::Value;
use stream_bed::{major, streaming};
use walpoint_tests::archived::Archived;
use walpoint_tests::process;
use walpoint_tests::wait;

const SOON: Duration = Duration::from_secs(60);

/// Clients that commit at the same time.
const CLIENTS: usize = 8;

/// What clients wrote, by identity: a row that was written, and whether its commit was confirmed.
#[derive(Default)]
struct Written {
    sent: BTreeSet<String>,
    confirmed: BTreeSet<String>,
}

/// A cluster whose commits wait for the stream.
fn synchronous(version: u32) -> Archived {
    let builder = major(version).conf("synchronous_standby_names", "walpoint");
    let bed = streaming(builder, "synchronous = true\n");
    wait_synchronous(&bed);
    bed
}

#[track_caller]
fn wait_synchronous(bed: &Archived) {
    bed.cluster.wait_for("select count(*) from pg_stat_replication where sync_state = 'sync'", "1");
}

/// Commits from several clients until the server dies. In every other round the daemon dies before it, at the moment at which a commit
/// was confirmed: what it reported then is all that it ever stores.
fn commit_until_killed(bed: &Archived, round: usize, after: Duration) -> Written {
    let (begun, daemon) = (Instant::now(), bed.daemon().process.pid());
    let (killed, is_killed) = mpsc::channel();
    let mut written = Written::default();
    let client = |client: usize, killed: mpsc::Sender<()>| {
        let mut session = bed.cluster.session();
        let mut mine = Written::default();
        let mut kills = client == 0 && round.is_multiple_of(2);
        for n in 0.. {
            let row = format!("{round}:{client}:{n}");
            mine.sent.insert(row.clone());
            session.send(&format!("insert into t values ('{row}') returning row"));
            // A row is printed when its commit was confirmed.
            match session.try_answer() {
                Some(answer) if answer == row => {}
                _ => return mine,
            }
            if kills && begun.elapsed() > after {
                process::kill_pid(daemon, Signal::KILL);
                killed.send(()).unwrap();
                kills = false;
            }
            mine.confirmed.insert(row);
        }
        mine
    };
    thread::scope(|scope| {
        let client = &client;
        let clients: Vec<_> = (0..CLIENTS)
            .map(|n| {
                let killed = killed.clone();
                scope.spawn(move || client(n, killed))
            })
            .collect();
        if round.is_multiple_of(2) {
            is_killed.recv_timeout(SOON).expect("a commit is confirmed");
        } else {
            bed.cluster.wait_for(&format!("select count(*) > 0 from t where row like '{round}:%'"), "t");
            thread::sleep(after);
        }
        bed.cluster.kill();
        for client in clients {
            let mine = client.join().unwrap();
            written.sent.extend(mine.sent);
            written.confirmed.extend(mine.confirmed);
        }
    });
    written
}

/// Kills the server under load, loses it, the daemon and the data directory, and restores over and over: the restored server is the
/// next one that is lost, on a timeline of its own. Each time every row that was ever confirmed is there, and none that was not written.
fn lose_and_restore(rounds: usize) {
    let mut bed = synchronous(17);
    bed.cluster.psql("create table t (row text primary key)");
    bed.backup();
    let mut all = Written::default();
    let begun = Instant::now();
    for round in 0..rounds {
        // The server dies at another moment each time, between two flushes or in one.
        let after = Duration::from_millis(50 + (round as u64 * 37) % 200);
        let Written { sent, confirmed } = commit_until_killed(&bed, round, after);
        assert!(!confirmed.is_empty(), "round {round}: nothing was confirmed");
        all.sent.extend(sent);
        all.confirmed.extend(confirmed);
        bed.cluster.crash();
        bed.kill_daemon();
        fs::remove_dir_all(bed.cluster.pgdata()).unwrap();
        let name = bed.cluster.pgdata().file_name().unwrap().to_str().unwrap().to_owned();
        bed.restore(&name, &["--resume-archiving"]);
        bed.cluster.start();
        bed.cluster.wait_promoted();
        let there = bed.cluster.psql("select row from t");
        let there: BTreeSet<String> = there.lines().map(str::to_owned).collect();
        let lost: Vec<&String> = all.confirmed.difference(&there).collect();
        assert!(lost.is_empty(), "round {round}: confirmed and lost: {lost:?}");
        let invented: Vec<&String> = there.difference(&all.sent).collect();
        assert!(invented.is_empty(), "round {round}: no client wrote {invented:?}");
        bed.start_daemon();
        wait_synchronous(&bed);
    }
    eprintln!(
        "{} rows confirmed in {rounds} disasters, {:.1?} each",
        all.confirmed.len(),
        begun.elapsed() / rounds as u32
    );
    bed.agent.run(&["verify"]).expect_success();
}

#[test]
fn no_confirmed_commit_is_lost_in_a_row_of_disasters() {
    lose_and_restore(10);
}

#[test]
#[ignore = "three hundred disasters: make soak"]
fn no_confirmed_commit_is_lost_in_three_hundred_disasters() {
    lose_and_restore(300);
}

/// The lines about synchronous commit, and the exit status.
fn lines(bed: &Archived) -> (i32, Vec<(String, String)>) {
    let output = bed.agent.run(&["check", "--json", "--no-switch"]);
    let report: Value = serde_json::from_str(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:#?}"));
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let lines = report["checks"].as_array().unwrap().iter();
    let lines = lines.filter(|line| line["check"] == "synchronous commit");
    (output.status, lines.map(|line| (text(&line["result"]), text(&line["message"]))).collect())
}

/// Asks until the server has read its settings.
#[track_caller]
fn wait_for_line(bed: &Archived, status: i32, result: &str, message: &str) {
    let mut last = (0, Vec::new());
    wait::until_true(SOON, &format!("{result}: {message}"), || {
        last = lines(bed);
        let found = last.1.iter().any(|(is, text)| is == result && text.contains(message));
        found && last.0 == status
    });
}

fn set(bed: &Archived, setting: &str, value: &str) {
    bed.cluster.psql(&format!("alter system set {setting} = '{value}'"));
    bed.cluster.psql("select pg_reload_conf()");
}

/// What `check` says of the settings in force is what the server does.
#[test]
fn check_says_which_commits_wait_for_the_stream() {
    for version in [13, 17, 19] {
        let mut bed = synchronous(version);
        bed.cluster.psql("create table t (row text)");
        wait_for_line(&bed, 0, "ok", "every commit waits until its WAL is stored");
        bed.cluster.psql("create role app; alter role app set synchronous_commit = remote_apply");
        bed.cluster.psql("alter database template1 set synchronous_commit = local");
        bed.cluster.psql("alter role app in database postgres set synchronous_commit = remote_write");
        wait_for_line(
            &bed,
            3,
            "failed",
            "synchronous_commit = remote_apply for role \"app\" waits for Walpoint forever",
        );
        wait_for_line(
            &bed,
            3,
            "warning",
            "synchronous_commit = local in database \"template1\" does not wait",
        );
        wait_for_line(
            &bed,
            3,
            "ok",
            "synchronous_commit = remote_write for role \"app\" in database \"postgres\" waits",
        );

        // It does wait forever, and other commits do not.
        let mut session = bed.cluster.session();
        session.run("set synchronous_commit = remote_apply");
        session.send("insert into t values ('applied')");
        bed.cluster.wait_for("select count(*) from pg_stat_activity where wait_event = 'SyncRep'", "1");
        bed.cluster.psql("insert into t values ('flushed')");
        bed.cluster.psql("set synchronous_commit = remote_write; insert into t values ('written')");
        thread::sleep(Duration::from_secs(1));
        assert_eq!(
            bed.cluster.psql("select count(*) from pg_stat_activity where wait_event = 'SyncRep'"),
            "1"
        );

        set(&bed, "synchronous_standby_names", "ANY 1 (\"walpoint\", replica1)");
        wait_for_line(&bed, 0, "warning", "waits for other standbys only");
        wait_for_line(&bed, 0, "ok", "a commit may be confirmed without Walpoint");
        set(&bed, "synchronous_standby_names", "2 (walpoint)");
        wait_for_line(&bed, 3, "failed", "no commit is confirmed");
        set(&bed, "synchronous_standby_names", "*");
        wait_for_line(&bed, 3, "ok", "a commit may be confirmed without Walpoint");

        // The daemon stops: commits hang, check says so, and its way out releases them.
        set(&bed, "synchronous_standby_names", "walpoint");
        bed.cluster.wait_for("show synchronous_standby_names", "walpoint");
        bed.stop_daemon();
        let mut other = bed.cluster.session();
        other.send("insert into t values ('stopped')");
        bed.cluster.wait_for("select count(*) from pg_stat_activity where wait_event = 'SyncRep'", "2");
        wait_for_line(&bed, 3, "failed", "receives WAL from this server: commits hang");
        set(&bed, "synchronous_standby_names", "");
        assert_eq!((session.answer(), other.answer()), (String::new(), String::new()));
        wait_for_line(
            &bed,
            0,
            "warning",
            "no commit waits for Walpoint (synchronous_standby_names = ''), though",
        );
    }
}
