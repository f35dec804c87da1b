//! R13: `restore --start` leaves a running server behind, says which moment it is at, and checks it.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use walpoint_tests::archived::Archived;
use walpoint_tests::cluster::Cluster;
use walpoint_tests::process::{self, Background, Output};
use walpoint_tests::store::Store;
use walpoint_tests::{needs_root, testbed, user, wait};

/// A moment with three rows, one with five, and where the socket of a restored server lies.
struct Bed {
    archived: Archived,
    sockets: PathBuf,
    three: String,
    five: String,
}

/// A restored server, which is stopped in the end.
struct Running<'a> {
    bed: &'a Bed,
    pgdata: PathBuf,
}

impl Bed {
    fn new(major: u32) -> Bed {
        Bed::with(major, |_| {})
    }

    fn with(major: u32, configure: impl FnOnce(&Cluster)) -> Bed {
        let builder =
            Cluster::builder().major(major).segment_size_mb(1).conf("wal_retrieve_retry_interval", "200ms");
        let archived = Archived::start(builder, Store::local());
        let sockets = archived.cluster.dir().mkdir("sockets");
        let cluster = &archived.cluster;
        // The test's own server has its own on the command line.
        cluster.set("unix_socket_directories", sockets.display());
        cluster.set("listen_addresses", "");
        configure(cluster);
        cluster.psql("create table rows as select generate_series(1, 3) as n");
        archived.backup();
        let three = cluster.psql("select clock_timestamp()");
        std::thread::sleep(Duration::from_millis(20));
        cluster.psql("insert into rows values (4), (5)");
        let five = cluster.psql("select clock_timestamp()");
        std::thread::sleep(Duration::from_millis(20));
        // Not a drop of the table: at the moment before it, checks would wait for its lock.
        cluster.psql("insert into rows values (6)");
        archived.settle();
        Bed { archived, sockets, three, five }
    }

    fn bindir(&self) -> String {
        let postgres = testbed::pg_program(self.archived.cluster.major(), "postgres");
        postgres.parent().unwrap().display().to_string()
    }

    fn place(&self, name: &str) -> PathBuf {
        self.archived.place(name)
    }

    fn command(&self, name: &str, more: &[&str]) -> Command {
        let (pgdata, bindir) = (self.place(name).display().to_string(), self.bindir());
        let options = ["restore", "--pgdata", &pgdata, "--start", "--pg-bindir", &bindir];
        self.archived.agent.command("restore-agent", [&options[..], more].concat())
    }

    fn restore(&self, name: &str, more: &[&str]) -> (Output, Running<'_>) {
        let output = process::run(&mut self.command(name, more), Duration::from_secs(120));
        (output, Running { bed: self, pgdata: self.place(name) })
    }

    /// A file with a check of how many rows there are.
    fn checks(&self, rows: u32) -> String {
        let file = self.place(&format!("{rows}.toml"));
        let text = format!(
            "[[check]]\nname = 'rows'\nquery = 'select count(*) from rows'\nexpect = {rows}\n\n[[check]]\nname = 'a command'\ncommand = \
             'test -S \"$PGHOST/.s.PGSQL.$PGPORT\"'\n"
        );
        fs::write(&file, text).unwrap();
        user::give(&file);
        file.display().to_string()
    }
}

impl Running<'_> {
    fn pid(&self) -> u32 {
        let text = fs::read_to_string(self.pgdata.join("postmaster.pid")).unwrap();
        text.lines().next().unwrap().parse().unwrap()
    }

    fn is_alive(&self) -> bool {
        self.pgdata.join("postmaster.pid").exists() && process::alive(self.pid())
    }

    fn psql(&self, sql: &str) -> String {
        let mut psql = self.bed.archived.cluster.tool("psql");
        psql.args(["-XAt", "-h"])
            .arg(&self.bed.sockets)
            .args(["-p", "5432", "-U", "postgres", "-d", "postgres", "-c", sql]);
        process::run(&mut psql, wait::SOON).stdout.trim().to_owned()
    }

    fn stop(&self) {
        let mut stop = Command::new(testbed::pg_program(self.bed.archived.cluster.major(), "pg_ctl"));
        stop.args(["-m", "immediate", "stop", "-D"]).arg(&self.pgdata).current_dir("/");
        process::run(user::become_user(&mut stop), wait::SOON);
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if self.is_alive() {
            self.stop();
        }
    }
}

fn json(output: &Output) -> Value {
    serde_json::from_str(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:#?}"))
}

/// Types a command line that a restore printed.
fn types(bed: &Bed, line: &str) -> Output {
    let mut shell = Command::new("sh");
    shell.args(["-c", line]).current_dir("/").env("WALPOINT_CONFIG", bed.archived.agent.config());
    process::run(user::become_user(&mut shell), Duration::from_secs(120))
}

/// The server pauses at the target, in a session of its own, and the checks of the moment pass.
fn pauses_at_the_moment(bed: &Bed) -> (Running<'_>, Value) {
    let check = bed.checks(5);
    let (output, running) = bed.restore("back", &["--json", "--target-time", &bed.five, "--check", &check]);
    let report = json(&output.expect_success());
    let started = report["started"].clone();
    assert_eq!((&started["state"], &started["verdict"]), (&"paused".into(), &"right".into()), "{report:#}");
    assert_eq!(started["checks"].as_array().unwrap().len(), 2, "{report:#}");
    assert_eq!(started["problems"], Value::Array(Vec::new()));
    assert_eq!(started["pid"], running.pid(), "{report:#}");
    assert_eq!((started["host"].as_str(), &started["port"]), (bed.sockets.to_str(), &5432.into()));
    let is_replayed =
        format!("select pg_last_wal_replay_lsn() = '{}'", started["replayed_lsn"].as_str().unwrap());
    assert_eq!(running.psql(&is_replayed), "t", "{report:#}");
    assert_eq!(started["timeline"], 1);
    let last = running.psql(
        "select to_char(pg_last_xact_replay_timestamp() at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS')",
    );
    assert!(started["last_commit_time"].as_str().unwrap().starts_with(&last), "{last}: {report:#}");
    let log = fs::read_to_string(started["log"].as_str().unwrap()).unwrap();
    assert!(log.contains("pausing at the end of recovery"), "{log}");
    // Neither the group nor the session of this process, and none of its streams.
    let pid = running.pid();
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
    assert_eq!((fields[2], fields[3]), (pid.to_string().as_str(), pid.to_string().as_str()), "{stat}");
    let stream = |n: u32| fs::read_link(format!("/proc/{pid}/fd/{n}")).unwrap();
    assert_eq!(
        (stream(0), stream(1)),
        (PathBuf::from("/dev/null"), running.pgdata.join("walpoint-start.log"))
    );
    (running, started)
}

#[test]
fn a_started_server_pauses_at_its_moment_on_13() {
    pauses_at_the_moment(&Bed::new(13));
}

#[test]
fn a_started_server_pauses_at_its_moment_on_19() {
    pauses_at_the_moment(&Bed::new(19));
}

/// The commands that a restore prints accept the moment, and restore another one in its place.
#[test]
fn a_moment_that_is_not_right_is_exchanged_for_another_and_accepted() {
    let bed = Bed::new(17);
    let (running, _) = pauses_at_the_moment(&bed);
    running.stop();
    drop(running);

    let check = bed.checks(3);
    let (output, running) = bed.restore("other", &["--target-time", &bed.five, "--check", &check]);
    let output = output.expect_status(1);
    for expected in
        ["recovery is paused at ", "FAILED   rows: expected 3, got \"5\"", "the moment is not right"]
    {
        assert!(output.stdout.contains(expected), "{expected}: {output:#?}");
    }
    assert!(output.stderr.contains("1 check failed") && running.is_alive(), "{output:#?}");
    assert_eq!(running.psql("select pg_is_wal_replay_paused()"), "t");
    let command = |text: &str, begins: &str| {
        let line = text.lines().find_map(|line| line.trim().strip_prefix(begins));
        line.unwrap_or_else(|| panic!("{begins}: {text}")).to_owned()
    };
    types(&bed, &command(&output.stdout, "to try another moment: ")).expect_success();
    assert!(!running.is_alive());
    let retry = command(&output.stdout, "and then: ");
    assert!(retry.contains(" --delta"), "{retry}");
    let again = types(&bed, &retry.replace("--target-time TIME", &format!("--target-time '{}'", bed.three)));
    let again = again.expect_success();
    assert!(again.stdout.contains("the moment is right: every check passed"), "{again:#?}");
    types(&bed, &command(&again.stdout, "to accept this moment: ")).expect_success();
    wait::until_true(wait::SOON, "a promoted server", || running.psql("select pg_is_in_recovery()") == "f");
    assert_eq!(running.psql("select count(*) from rows"), "3");

    // On record: what was restored, and what was checked.
    let listed = bed.archived.agent.run(&["evidence", "list", "--json"]).expect_success().stdout;
    let records: Value = serde_json::from_str(&listed).unwrap();
    let text = records.to_string();
    assert!(text.contains("started: paused at ") && text.contains("1 check passed, 1 failed"), "{records:#}");
}

/// What a server that does not pause is: promoted, or a standby; with hot_standby off it pauses all the same where it is to.
#[test]
fn a_started_server_is_promoted_or_a_standby_also_without_hot_standby() {
    let bed = Bed::with(17, |cluster| {
        cluster.set_last("hot_standby", "off");
    });
    for (name, options, state) in [
        ("promoted", &["--target-time", &bed.five, "--target-action", "promote"][..], "promoted"),
        ("paused", &["--target-time", &bed.five], "paused"),
        ("standby", &["--standby"], "standby"),
    ] {
        let (output, running) = bed.restore(name, &[&["--json"], options].concat());
        let report = json(&output.expect_success());
        assert_eq!(report["started"]["state"], state, "{report:#}");
        assert_eq!(report["started"].get("resume_command").is_some(), state == "paused", "{report:#}");
        assert!(running.is_alive());
        if state == "promoted" {
            assert_eq!(
                (&report["started"]["timeline"], running.psql("select count(*) from rows")),
                (&2.into(), "5".into())
            );
        }
    }
}

/// A recovery that ends before its target is reported with the server's reason.
#[test]
fn a_server_that_ends_is_reported_with_its_log() {
    let bed = Bed::new(17);
    // The plan leads there, and then PostgreSQL is to go further than the archive does.
    let further = "sed -i \"s/^recovery_target_lsn = .*/recovery_target_lsn = '7\\/0'/\" \"$WALPOINT_PGDATA/postgresql.auto.conf\"";
    let lsn = bed.archived.cluster.psql("select pg_current_wal_lsn()");
    bed.archived.cluster.psql("create table later ()");
    bed.archived.settle();
    let (output, running) = bed.restore("back", &["--json", "--target-lsn", &lsn, "--post-command", further]);
    let output = output.expect_status(1);
    let reason = "recovery ended before configured recovery target was reached";
    assert!(output.stderr.contains(reason) && output.stderr.contains("restore-agent plan"), "{output:#?}");
    let report = json(&output);
    assert_eq!(
        (&report["result"], &report["started"]["state"]),
        (&"restored".into(), &"ended".into()),
        "{report:#}"
    );
    assert!(report["started"]["problems"].to_string().contains(reason), "{report:#}");
    assert!(!running.is_alive());
    drop(running);

    // One that lets in none of the usual superusers cannot be watched, and is left as it is.
    let closed = "echo 'local all all reject' > \"$WALPOINT_PGDATA/pg_hba.conf\"";
    let (output, running) = bed.restore("closed", &["--target-time", &bed.five, "--post-command", closed]);
    let output = output.expect_status(1);
    assert!(output.stderr.contains("takes no session") && output.stderr.contains("PGUSER"), "{output:#?}");
    assert!(output.stdout.contains("to stop it: ") && running.is_alive(), "{output:#?}");
}

/// A server that ends while it is checked is not called paused, and its moment not right.
#[test]
fn a_server_that_ends_during_its_checks_has_ended() {
    let bed = Bed::new(17);
    let (file, pid) = (bed.place("end.toml"), bed.place("back").join("postmaster.pid"));
    let pid = pid.display();
    let end = format!("kill -QUIT $(head -n 1 {pid}); while test -e {pid}; do sleep 0.1; done; sleep 1");
    fs::write(&file, format!("[[check]]\nname = 'the end'\ncommand = '{end}'\n")).unwrap();
    user::give(&file);
    let options = ["--json", "--target-time", &bed.five, "--check", file.to_str().unwrap()];
    let (output, running) = bed.restore("back", &options);
    let report = json(&output.expect_status(1));
    let started = &report["started"];
    assert_eq!((&started["state"], &started["pid"]), (&"ended".into(), &Value::Null), "{report:#}");
    assert_eq!((&started["verdict"], &started["resume_command"]), (&Value::Null, &Value::Null), "{report:#}");
    assert_eq!(started["checks"][0]["result"], "passed", "{report:#}");
    let problems = started["problems"].to_string();
    assert!(problems.contains("its server ended after recovery had stopped"), "{report:#}");
    assert!(!running.is_alive());
}

/// Whatever ends restore-agent, the server recovers.
#[test]
fn the_server_outlives_a_restore_that_is_interrupted_or_killed() {
    let bed = Bed::new(17);
    let slow = "sed -i \"s/^restore_command = '/&sleep 1; /\" \"$WALPOINT_PGDATA/postgresql.auto.conf\"";
    let options = ["--target-time", &bed.five, "--post-command", slow];
    for signal in [Signal::INT, Signal::KILL] {
        let name = format!("{signal:?}").to_lowercase().replace(|c: char| !c.is_ascii_alphanumeric(), "");
        let mut restore =
            Background::start(&mut bed.command(&name, &options), &bed.place(&format!("{name}.log")));
        let running = Running { bed: &bed, pgdata: bed.place(&name) };
        wait::until_true(wait::SOON, "a started server", || {
            restore.log().contains("started PostgreSQL") && running.pgdata.join("postmaster.pid").exists()
        });
        let pid = running.pid();
        // The restore is complete: that is on record, whatever ends the waiting.
        let listed = bed.archived.agent.run(&["evidence", "list", "--kind", "restore", "--json"]);
        assert!(listed.expect_success().stdout.contains(&format!("/{name},")), "not on record: {name}");
        restore.signal(signal);
        let status = restore.wait(wait::SOON);
        assert!(process::alive(pid), "{signal:?}: the server has ended");
        if signal == Signal::INT {
            let log = restore.log();
            assert_eq!(status, 1, "{log}");
            assert!(log.contains("it continues to recover") && log.contains("HINT: To stop it: "), "{log}");
        }
        wait::until_true(wait::SOON, "a paused server", || {
            running.psql("select pg_is_wal_replay_paused()") == "t"
        });
        assert_eq!((running.psql("select count(*) from rows"), running.pid()), ("5".into(), pid));
    }

    let (output, running) = bed.restore("late", &[&options[..], &["--start-timeout", "1s"]].concat());
    let output = output.expect_status(1);
    assert!(output.stderr.contains("within 1s (--start-timeout): it continues"), "{output:#?}");
    assert!(running.is_alive());
}

/// Root's restore runs the server as the owner of the files, and gets in where the server lets in only that user.
#[test]
fn roots_restore_starts_the_server_as_the_owner() {
    use std::os::unix::process::CommandExt;
    needs_root!();
    let bed = Bed::with(17, |cluster| {
        fs::write(cluster.pgdata().join("pg_hba.conf"), "local all all peer map=owner\n").unwrap();
        fs::write(cluster.pgdata().join("pg_ident.conf"), format!("owner {} postgres\n", user::name()))
            .unwrap();
        cluster.reload();
    });
    let check = bed.checks(5);
    let mut command = bed.command("back", &["--json", "--target-time", &bed.five, "--check", &check]);
    let output = process::run(command.uid(0).gid(0), Duration::from_secs(120));
    let running = Running { bed: &bed, pgdata: bed.place("back") };
    let report = json(&output.expect_success());
    assert_eq!(report["started"]["verdict"], "right", "{report:#}");
    assert_eq!(fs::metadata(format!("/proc/{}", running.pid())).unwrap().uid(), user::ids().uid);
    assert_eq!(fs::metadata(running.pgdata.join("walpoint-start.log")).unwrap().uid(), user::ids().uid);
    let stop = report["started"]["stop_command"].as_str().unwrap();
    assert!(stop.starts_with(&format!("runuser -u {} -- ", user::name())), "{stop}");
}

/// What makes no sense, or lacks a program, is refused before anything is restored.
#[test]
fn a_start_that_cannot_be_is_refused_before_anything_is_restored() {
    let bed = Bed::new(17);
    let other = testbed::pg_program(16, "postgres").parent().unwrap().display().to_string();
    let broken = bed.place("broken.toml");
    fs::write(&broken, "[[check]]\nname = 'x'\n").unwrap();
    user::give(&broken);
    let pgdata = bed.place("back").display().to_string();
    let base = ["restore", "--pgdata", &pgdata];
    for (options, status, says) in [
        (&["--start", "--dry-run"][..], 2, "cannot be used with"),
        (&["--start", "--if-empty"], 2, "cannot be used with"),
        (&["--check", "x"], 2, "--start"),
        (
            &["--start", "--target-immediate", "--target-action", "shutdown"],
            2,
            "--start cannot be used with --target-action shutdown",
        ),
        (&["--start", "--check", broken.to_str().unwrap()], 2, "it needs either query or command"),
        (&["--start", "--pg-bindir", &other], 1, "has PostgreSQL 16, and the backup is of PostgreSQL 17"),
    ] {
        let output = bed.archived.agent.restore(&[&base[..], options].concat()).expect_status(status);
        assert!(output.stderr.contains(says), "{options:?}: {output:#?}");
        assert!(!Path::new(&pgdata).exists(), "{options:?}: something was restored");
    }
}
