//! `restore-agent drill`: a copy beside production that is recovered, checked, measured and removed.

mod stream_bed;

use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use walpoint_tests::archived::Archived;
use walpoint_tests::cluster::Cluster;
use walpoint_tests::process::{self, Background, Output};
use walpoint_tests::store::Store;
use walpoint_tests::{testbed, user, wait};

/// A hostile name, as a table, a database and a check may have one.
const HOSTILE: &str = "<script>alert('x')</script>&\"";

/// A cluster whose configuration leads outside in every way, with a backup and rows behind it, and a directory for drills.
struct Bed {
    archived: Archived,
    place: PathBuf,
}

impl Bed {
    fn new(major: u32) -> Bed {
        Bed::with(major, &[])
    }

    /// One whose configuration has these lines in its table of the cluster.
    fn with(major: u32, lines: &[&str]) -> Bed {
        let builder = Cluster::builder().major(major).segment_size_mb(1).checksums(true);
        let builder = builder.conf("listen_addresses", "127.0.0.1").conf("primary_slot_name", "production");
        let builder = builder.conf("synchronous_standby_names", "").conf("external_pid_file", "");
        let archived = Archived::start_with(builder, Store::local(), |agent| {
            let line = format!("scratch_directory = \"{}\"", agent.place().join("scratch").display());
            lines.iter().fold(agent.cluster_line(&line), |agent, line| agent.cluster_line(line))
        });
        let place = archived.agent.place().join("scratch");
        fs::create_dir(&place).unwrap();
        user::give(&place);
        let cluster = &archived.cluster;
        cluster.create_tablespace("elsewhere");
        cluster.psql("create table moved (n int) tablespace elsewhere; insert into moved values (1), (2)");
        let quoted = HOSTILE.replace('"', "\"\"");
        cluster.psql(&format!("create table \"{quoted}\" as select generate_series(1, 1000) as n"));
        cluster.psql("create table rows as select generate_series(1, 10) as n");
        // What recovery of a copy must not start, and what its server would wait for or write to.
        cluster.psql("alter system set archive_timeout = '1h'");
        archived.backup();
        cluster.psql("insert into rows select generate_series(11, 20)");
        archived.settle();
        Bed { archived, place }
    }

    fn bindir(&self) -> String {
        let postgres = testbed::pg_program(self.archived.cluster.major(), "postgres");
        postgres.parent().unwrap().display().to_string()
    }

    fn arguments<'a>(&self, bindir: &'a str, more: &[&'a str]) -> Vec<&'a str> {
        [&["drill", "--pg-bindir", bindir], more].concat()
    }

    fn drill(&self, more: &[&str]) -> Output {
        self.archived.agent.restore(&self.arguments(&self.bindir(), more))
    }

    /// Starts a drill and waits until its check, which takes minutes, runs.
    fn start(&self, name: &str, more: &[&str]) -> Background {
        let bindir = self.bindir();
        let marker = self.place.with_file_name(format!("{name}.begun"));
        let file = self.place.with_file_name(format!("{name}.toml"));
        // It ends with the server.
        let wait = "while test -S \"$PGHOST/.s.PGSQL.$PGPORT\"; do sleep 0.1; done";
        let text = format!(
            "[[check]]\nname = 'long'\ncommand = 'touch {}; {wait}'\ntimeout = '10m'\n",
            marker.display()
        );
        fs::write(&file, text).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        let file = file.display().to_string();
        let arguments =
            self.arguments(&bindir, &[&["--skip", "amcheck", "--checks", file.as_str()], more].concat());
        let mut command = self.archived.agent.command("restore-agent", arguments);
        let drill = Background::start(&mut command, &self.place.with_file_name(format!("{name}.log")));
        wait::until_true(Duration::from_secs(90), "a drill at its check", || marker.exists());
        drill
    }

    /// The scratch directories.
    fn scratch(&self) -> Vec<PathBuf> {
        let mut found: Vec<PathBuf> =
            fs::read_dir(&self.place).unwrap().map(|entry| entry.unwrap().path()).collect();
        found.sort();
        found
    }

    /// What production would notice: timelines in the archive.
    fn histories(&self) -> usize {
        let keys = self.archived.back_door().list("clusters/main");
        keys.iter().filter(|key| key.ends_with(".history")).count()
    }
}

fn json(output: &Output) -> Value {
    serde_json::from_str(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:#?}"))
}

#[track_caller]
fn result<'a>(report: &'a Value, name: &str) -> &'a Value {
    let checks = report["checks"].as_array().unwrap();
    checks
        .iter()
        .find(|check| check["name"].as_str().unwrap().contains(name))
        .unwrap_or_else(|| panic!("{name}: {report:#}"))
}

/// The server of a scratch directory.
fn postmaster(scratch: &Path) -> u32 {
    let text = fs::read_to_string(scratch.join("data/postmaster.pid")).unwrap();
    text.lines().next().unwrap().parse().unwrap()
}

/// R10: everything in the archive is recovered, its tablespaces inside the copy, and checked; production notices nothing and nothing is
/// left.
fn a_drill_passes_and_leaves_nothing(major: u32) {
    let bed = Bed::new(major);
    let has_amcheck = major > 13;
    if has_amcheck {
        bed.archived.cluster.psql("create extension amcheck");
    }
    // What a DROP DATABASE leaves that was interrupted takes no sessions in production either.
    bed.archived.cluster.psql("create database half_dropped");
    bed.archived.cluster.psql("update pg_database set datconnlimit = -2 where datname = 'half_dropped'");
    // A server would follow it, and write there.
    let link = bed.archived.cluster.pgdata().join("global/link");
    std::os::unix::fs::symlink(bed.place.with_file_name("outside"), &link).unwrap();
    user::give(&link);
    bed.archived.backup();
    bed.archived.settle();
    let checks = bed.place.with_file_name("checks.toml");
    let text = "[[check]]\nname = 'all rows'\nquery = 'select count(*) from rows'\nexpect = 20\n\
                [[check]]\nname = 'apart'\nquery = \"select name from pg_settings where (name, setting) in (values \
                ('listen_addresses', '127.0.0.1'), ('primary_slot_name', 'production'), ('archive_mode', 'on'), \
                ('max_logical_replication_workers', '4'), ('archive_timeout', '3600'), ('autovacuum', 'on'))\"\nexpect_rows = 0\n\
                [[check]]\nname = 'inside'\nquery = \"select pg_tablespace_location(oid) like 'pg_tblspc/%' from pg_tablespace where \
                spcname = 'elsewhere'\"\n\
                [[check]]\nname = 'no link'\ncommand = 'cd \"$PGHOST/../data/global\" && test ! -L link'\n\
                [[check]]\nname = 'command'\ncommand = 'test -S \"$PGHOST/.s.PGSQL.$PGPORT\" && echo \"$PGDATABASE\"'\nexpect = 'postgres'\n";
    fs::write(&checks, text).unwrap();
    fs::set_permissions(&checks, fs::Permissions::from_mode(0o644)).unwrap();
    let more = ["--json", "--rto", "10m", "--rpo", "10m", "--checks", checks.to_str().unwrap()];
    let report = json(
        &bed.drill(&[&more[..], &["--check", "select count(*) = 2 from moved"]].concat()).expect_success(),
    );
    assert_eq!(report["result"], "passed", "{report:#}");
    assert_eq!(result(&report, "recovery reached")["result"], "passed");
    assert_eq!(
        result(&report, "amcheck")["result"],
        if has_amcheck { "passed" } else { "skipped" },
        "{report:#}"
    );
    assert_eq!(result(&report, "page checksums")["result"], "passed");
    for name in ["all rows", "apart", "inside", "no link", "command", "count(*) = 2"] {
        assert_eq!(result(&report, name)["result"], "passed", "{report:#}");
    }
    let rto = report["rto_seconds"].as_f64().unwrap();
    let parts = ["plan_seconds", "restore_seconds", "recovery_seconds", "check_seconds"];
    let parts: f64 = parts.iter().map(|part| report[part].as_f64().unwrap()).sum();
    assert!(rto > 0.0 && (rto - parts).abs() < 0.5, "{report:#}");
    assert!((0.0..600.0).contains(&report["rpo_seconds"].as_f64().unwrap()), "{report:#}");
    let tables = report["tables"].as_array().unwrap();
    let hostile =
        tables.iter().find(|table| table["table"] == HOSTILE).unwrap_or_else(|| panic!("{report:#}"));
    assert_eq!((&hostile["row_count"], &hostile["counted"]), (&1000.into(), &true.into()));
    assert_eq!(bed.scratch(), [] as [PathBuf; 0]);
    assert_eq!(bed.histories(), 0, "the copy archived a timeline");
    assert_eq!(bed.archived.cluster.psql("select count(*) from moved"), "2");
}

#[test]
fn a_drill_passes_and_leaves_nothing_on_13() {
    a_drill_passes_and_leaves_nothing(13);
}

#[test]
fn a_drill_passes_and_leaves_nothing_on_19() {
    a_drill_passes_and_leaves_nothing(19);
}

/// R10: the recovery point is that of the start: a drill that takes hours does not make up for an archive that lags.
#[test]
fn what_is_archived_during_a_drill_is_not_in_its_recovery_point() {
    let bed = Bed::new(17);
    let path = |name: &str| bed.place.with_file_name(name);
    let (begun, go, file) = (path("rpo.begun"), path("rpo.go"), path("rpo.toml"));
    let wait = format!("touch {}; until test -e {}; do sleep 0.1; done", begun.display(), go.display());
    fs::write(&file, format!("[[check]]\nname = 'long'\ncommand = '{wait}'\ntimeout = '10m'\n")).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    let (file, bindir) = (file.display().to_string(), bed.bindir());
    let more = ["--target-immediate", "--skip", "amcheck", "--rpo", "1ms", "--checks", file.as_str()];
    let mut command = bed.archived.agent.command("restore-agent", bed.arguments(&bindir, &more));
    let log = path("rpo.log");
    let mut drill = Background::start(&mut command, &log);
    wait::until_true(Duration::from_secs(90), "a drill at its check", || begun.exists());
    bed.archived.cluster.psql("insert into rows values (21)");
    bed.archived.settle();
    fs::write(&go, "").unwrap();
    assert_eq!(drill.wait(Duration::from_secs(90)), 3, "{}", drill.log());
    assert!(drill.log().contains("1 target missed"), "{}", drill.log());
}

/// R10: what was streamed of the open segment is in the recovery point, whatever the target is.
#[test]
fn what_was_streamed_is_in_the_recovery_point_of_a_drill() {
    let builder = Cluster::builder().major(17).segment_size_mb(1);
    let archived = Archived::start_with(builder, Store::local(), |mut agent| {
        agent.tables = stream_bed::STREAM.to_owned();
        let line = format!("scratch_directory = \"{}\"", agent.place().join("scratch").display());
        agent.cluster_line(&line)
    });
    let place = archived.agent.place().join("scratch");
    fs::create_dir(&place).unwrap();
    user::give(&place);
    let bed = Bed { archived, place };
    let cluster = &bed.archived.cluster;
    cluster.psql("create table rows as select generate_series(1, 10) as n");
    bed.archived.backup();
    bed.archived.settle();
    std::thread::sleep(Duration::from_secs(20));
    let since = std::time::Instant::now();
    cluster.psql("insert into rows select generate_series(11, 20)");
    stream_bed::wait_durable(cluster);
    let before = since.elapsed().as_secs_f64();
    let skip =
        ["--json", "--target-immediate", "--skip", "amcheck", "--skip", "tables", "--skip", "page-checksums"];
    let report = json(&bed.drill(&skip).expect_success());
    let rpo = report["rpo_seconds"].as_f64().unwrap();
    // The start of the command takes a moment, too.
    assert!(rpo < before + 10.0, "{before}: {report:#}");
}

/// Starts a copy as its drill said, and stops it.
fn starts(bed: &Bed, start: &str, kept: &Path) {
    let (kept, mut shell) = (kept.display(), std::process::Command::new("sh"));
    let script = format!("{start} -l {kept}/log && {}/pg_ctl -D {kept}/data -m immediate stop", bed.bindir());
    shell.args(["-c", &script]);
    process::run(user::become_user(shell.current_dir("/")), Duration::from_secs(60)).expect_success();
}

/// The rights of a role that may not log in, and that the cluster has only since the backup.
fn checks_have_a_roles_rights(bed: &Bed) {
    let reader = [
        "--json",
        "--role",
        "a reader",
        "--check",
        "select current_user = 'a reader' and count(*) = 21 from rows",
        "--check",
        "select count(*) = 2 from moved",
    ];
    let report = json(&bed.drill(&reader).expect_status(3));
    assert_eq!(result(&report, "a reader")["result"], "passed", "{report:#}");
    let denied = result(&report, "from moved")["message"].as_str().unwrap();
    assert_eq!(denied, "permission denied for table moved");
}

/// R10: a drill whose checks fail, or that misses a target, ends with 3 and says which; a page about it shows names as text. The copy that is
/// kept can be started, and what cannot be reached or run ends with 1.
#[test]
fn what_fails_is_named_and_ends_with_3() {
    let bed = Bed::new(17);
    let page = bed.place.with_file_name("report.html");
    let (kept, page_path) = (bed.place.join("kept"), page.display().to_string());
    bed.archived.cluster.psql("create role \"a reader\"; grant select on rows to \"a reader\"");
    let lsn = bed.archived.cluster.psql("insert into rows values (21); select pg_current_wal_lsn()");
    let lsn = lsn.lines().last().unwrap().to_owned();
    bed.archived.settle();
    let failing = [
        "--json",
        "--target-lsn",
        lsn.as_str(),
        "--keep",
        "--directory",
        kept.to_str().unwrap(),
        "--report",
        page_path.as_str(),
        "--rto",
        "1ms",
        "--check",
        "select count(*) = 21 from rows",
        "--check",
        "select false",
        "--check",
        "delete from rows",
        "--check",
        "commit; begin; select true",
        "--check",
        "select '<b>' from nothing_here",
        "--check",
        "select 1/(n - 1) > 0 from rows",
    ];
    let report = json(&bed.drill(&failing).expect_status(3));
    assert_eq!(report["result"], "failed");
    let message = |name: &str| result(&report, name)["message"].as_str().unwrap_or_default().to_owned();
    assert_eq!(result(&report, "= 21")["result"], "passed", "{report:#}");
    assert!(message("recovery reached").contains("paused"), "{report:#}");
    assert_eq!(message("select false"), "expected true, got \"f\"");
    assert!(
        message("delete from rows").starts_with("the check writes, and checks are read-only"),
        "{report:#}"
    );
    assert!(message("commit; begin").contains("ends its transaction"), "{report:#}");
    assert!(
        message("nothing_here").contains("does not exist") && message("1/(n").contains("division by zero"),
        "{report:#}"
    );
    assert!(report.get("rto_seconds").is_none(), "a check failed: {report:#}");
    assert_eq!(result(&report, "page checksums")["result"], "skipped", "{report:#}");
    assert!(message("page checksums").contains("--keep"), "{report:#}");
    let text = fs::read_to_string(&page).unwrap();
    assert!(text.contains("&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;&amp;&quot;"), "{text}");
    assert!(text.contains("&lt;b&gt;") && !text.contains("<script") && !text.contains("<b>"), "{text}");
    // What was kept starts as it is, and the next drill leaves it alone.
    starts(&bed, report["start_command"].as_str().unwrap(), &kept);
    checks_have_a_roles_rights(&bed);
    let missed = bed.drill(&["--skip", "amcheck", "--rto", "1ms"]).expect_status(3);
    assert!(missed.stderr.contains("the drill failed: 1 target missed"), "{missed:#?}");
    assert_eq!(bed.scratch(), [kept]);
    let unreachable = ["--json", "--target-time", "2199-01-01 00:00:00Z", "--report", page_path.as_str()];
    let unreachable = bed.drill(&unreachable).expect_status(1);
    assert_eq!(json(&unreachable)["result"], "unreachable", "{unreachable:#?}");
    let text = fs::read_to_string(&page).unwrap();
    assert!(text.contains("Could not run") && !text.contains("Largest tables"), "{text}");
    let other = testbed::pg_program(16, "postgres").parent().unwrap().display().to_string();
    let wrong = bed.archived.agent.restore(&["drill", "--pg-bindir", &other]).expect_status(1);
    assert!(wrong.stderr.contains("has PostgreSQL 16, and the backup is of PostgreSQL 17"), "{wrong:#?}");
}

/// R10: a page that is torn in the backup and that replay repairs is no damage, where recovery is paused too; one that nothing repairs fails
/// the drill, and so does its table.
#[test]
fn a_page_that_replay_repairs_is_no_damage() {
    let bed = Bed::new(17);
    let cluster = &bed.archived.cluster;
    // The server has the pages in its memory, so it never misses what is damaged in the files.
    let damage = |table: &str| {
        let sql = format!(
            "create table {table} as select generate_series(1, 100) as n; vacuum {table}; checkpoint;
             select count(*) from {table}; select pg_relation_filepath('{table}')"
        );
        let path = cluster.pgdata().join(cluster.psql(&sql).lines().last().unwrap());
        let file = fs::OpenOptions::new().write(true).open(path).unwrap();
        file.write_all_at(b"torn", 8000).unwrap();
    };
    damage("torn");
    let backup = bed.archived.backup();
    let lsn = cluster.psql("update torn set n = 0 where n = 1; select pg_current_wal_lsn()");
    let lsn = lsn.lines().last().unwrap().to_owned();
    bed.archived.settle();
    // An earlier backup would be chosen, as it has no bad page.
    fn of(backup: &str) -> [&str; 5] {
        ["--json", "--skip", "amcheck", "--backup", backup]
    }
    let paused = ["--target-lsn", lsn.as_str(), "--check", "select sum(n) = 5049 from torn"];
    let report = json(&bed.drill(&[&of(&backup)[..], &paused].concat()).expect_success());
    assert_eq!(report["backup"], backup.as_str());
    assert_eq!(result(&report, "recovery reached")["message"], "paused there", "{report:#}");
    assert_eq!(result(&report, "page checksums")["result"], "passed", "{report:#}");
    damage("lost");
    let backup = bed.archived.backup();
    bed.archived.settle();
    let report = json(&bed.drill(&of(&backup)).expect_status(3));
    let message = |name: &str| result(&report, name)["message"].as_str().unwrap_or_default().to_owned();
    assert!(message("largest tables").contains("public.lost could not be read"), "{report:#}");
    assert!(message("page checksums").starts_with("1 of "), "{report:#}");
    assert_eq!(bed.scratch(), [] as [PathBuf; 0]);
}

/// R10: a drill that is killed leaves its copy and its server to the next one, which touches no drill that runs; one that is asked to stop
/// removes its own.
#[test]
fn what_a_killed_drill_left_the_next_one_removes() {
    let bed = Bed::new(17);
    let mut killed = bed.start("killed", &[]);
    let [left] = <[PathBuf; 1]>::try_from(bed.scratch()).expect("one scratch directory");
    let server = postmaster(&left);
    let mut running = bed.start("running", &[]);
    let other = bed.scratch().into_iter().find(|scratch| *scratch != left).unwrap();
    killed.kill();
    assert!(process::alive(server) && process::alive(postmaster(&other)));
    bed.drill(&["--skip", "amcheck", "--skip", "page-checksums", "--skip", "tables"]).expect_success();
    assert!(!process::alive(server), "its server still runs");
    assert_eq!(bed.scratch(), std::slice::from_ref(&other));
    let server = postmaster(&other);
    assert!(process::alive(server), "a drill that runs was touched");
    running.signal(Signal::TERM);
    assert_eq!(running.wait(Duration::from_secs(60)), 1, "{}", running.log());
    assert!(!process::alive(server) && bed.scratch().is_empty(), "{}", running.log());
}

/// R10: drills of the configuration run by name and all in turn, each with what it asks for; one that fails or cannot run fails them all and
/// does not keep the others from running. What the command line says wins, and the last run of each is known by its record.
#[test]
fn scenarios_run_by_name_and_in_turn() {
    let quick = "skip = [\"amcheck\", \"page-checksums\", \"tables\"]";
    let latest = format!("drill.a-latest = {{ kind = \"pitr\", rpo = \"10m\", {quick} }}");
    let future = "drill.b-future = { kind = \"pitr\", target_time = \"2199-01-01 00:00:00Z\" }";
    let backup = format!("drill.c-backup = {{ kind = \"backup\", rto = \"10m\", rpo = \"10m\", {quick} }}");
    let extract = "drill.d-extract = { kind = \"extract\", database = \"postgres\", tables = [\"rows\"], output_min = \"200B\" }";
    let large = "drill.e-large = { kind = \"extract\", database = \"postgres\", query = \"table rows\", output_min = \"1GiB\" }";
    let none = "drill.e-none = { kind = \"extract\", database = \"postgres\", query = \"select n from rows where false\" }";
    let gone = "drill.f-gone = { kind = \"backup\", checks = \"/nowhere/checks.toml\" }";
    let parent = "drill.g-parent = { kind = \"extract\", database = \"postgres\", tables = [\"parts\"] }";
    let bed = Bed::with(17, &[&latest, future, &backup, extract, large, none, gone, parent]);
    bed.archived.cluster.psql("create table parts (n int) partition by range (n); create table parts_all partition of parts default");
    bed.archived.settle();
    let printed = bed.drill(&["--all-scenarios", "--json"]).expect_status(1);
    assert!(
        printed.stderr.contains("5 of 8 scenarios failed: b-future, e-large, e-none, f-gone, g-parent"),
        "{printed:#?}"
    );
    let report = json(&printed);
    let run = |name: &str| {
        let runs = report["scenarios"].as_array().unwrap();
        runs.iter().find(|run| run["scenario"] == name).unwrap_or_else(|| panic!("{name}: {report:#}"))
    };
    assert_eq!(report["result"], "failed", "{report:#}");
    let (latest, future) = (run("a-latest"), run("b-future"));
    assert_eq!(
        (&latest["result"], &latest["drill"]["target"]),
        (&"passed".into(), &"the latest moment".into())
    );
    assert_eq!((&future["result"], &run("f-gone")["result"]), (&"not-run".into(), &"not-run".into()));
    assert!(future.get("drill").is_none() && future["error"]["message"].is_string(), "{report:#}");
    let backup = run("c-backup");
    assert_eq!((&backup["result"], &backup["drill"]["scenario"]), (&"passed".into(), &"c-backup".into()));
    assert_eq!(backup["drill"]["target"], "the end of the backup", "{report:#}");
    let kinds = |name: &str| {
        let checks = run(name)["drill"]["checks"].as_array().unwrap();
        checks.iter().map(|check| format!("{} {}", check["kind"], check["result"])).collect::<Vec<_>>()
    };
    assert_eq!(kinds("c-backup"), ["\"recovery\" \"passed\""], "{report:#}");
    assert_eq!(kinds("d-extract"), ["\"recovery\" \"passed\"", "\"extraction\" \"passed\""], "{report:#}");
    assert!(run("d-extract")["drill"]["output_bytes"].as_u64().unwrap() >= 200, "{report:#}");
    assert_eq!(kinds("e-large"), ["\"recovery\" \"passed\"", "\"extraction\" \"failed\""], "{report:#}");
    assert_eq!(run("e-large")["drill"]["output_bytes"], 9 * 2 + 11 * 3, "{report:#}");
    assert_eq!(run("e-none")["drill"]["checks"][1]["message"], "it is empty", "{report:#}");
    // A table comes out, and none of the rows of its partitions.
    assert_eq!(kinds("g-parent"), ["\"recovery\" \"passed\"", "\"extraction\" \"failed\""], "{report:#}");
    assert_eq!(bed.scratch(), [] as [PathBuf; 0], "what was extracted is left");
    let missed = bed.drill(&["--scenario", "d-extract", "--rto", "1ms", "--json"]).expect_status(3);
    assert_eq!(
        (&json(&missed)["scenario"], &json(&missed)["rto_target_seconds"]),
        (&"d-extract".into(), &0.001.into())
    );
    assert!(json(&missed)["notes"].to_string().contains("changed by --rto"), "{missed:#?}");
    let unknown = bed.drill(&["--scenario", "d-extrat"]).expect_status(2);
    assert!(unknown.stderr.contains("HINT: Perhaps you meant \"d-extract\"."), "{unknown:#?}");
    scenarios_are_on_record(&bed);
}

/// What is known of the runs of [`scenarios_run_by_name_and_in_turn`].
fn scenarios_are_on_record(bed: &Bed) {
    let listed = bed.archived.agent.restore(&["drill", "--list-scenarios", "--json"]).expect_success();
    let listed = json(&listed);
    let last: Vec<String> = listed["scenarios"]
        .as_array()
        .unwrap()
        .iter()
        .map(|scenario| {
            format!("{} {} {}", scenario["scenario"], scenario["kind"], scenario["last_drill"]["outcome"])
        })
        .collect();
    let expected = [
        "\"a-latest\" \"pitr\" \"success\"",
        "\"b-future\" \"pitr\" \"failed\"",
        "\"c-backup\" \"backup\" \"success\"",
        "\"d-extract\" \"extract\" \"success\"",
        "\"e-large\" \"extract\" \"failed\"",
        "\"e-none\" \"extract\" \"failed\"",
        "\"f-gone\" \"backup\" \"failed\"",
        "\"g-parent\" \"extract\" \"failed\"",
    ];
    assert_eq!(last, expected, "{listed:#}");
    assert_eq!(listed["scenarios"][2]["last_drill"]["rto"]["met"], true, "{listed:#}");
    assert_eq!(listed["scenarios"][0]["last_drill"]["rpo"]["target_seconds"], 600.0, "{listed:#}");
    assert!(listed["scenarios"][3]["last_drill"]["rto"]["target_seconds"].is_null(), "{listed:#}");
    // Behind the backup. What could not run is on record with its reason.
    let listed = json(&bed.archived.agent.run(&["evidence", "list", "--json"]).expect_success());
    let (unreachable, gone) =
        (&listed["repositories"][0]["records"][2], &listed["repositories"][0]["records"][7]);
    assert_eq!(unreachable["target"], "time 2199-01-01 00:00:00.000000+00", "{listed:#}");
    assert!(unreachable["issues"][0].is_string() && unreachable["backups"].is_null(), "{listed:#}");
    assert!(gone["issues"][0].as_str().unwrap().contains("/nowhere/checks.toml"), "{listed:#}");
    // What the command line changed is no run of the scenario.
    let changed = &listed["repositories"][0]["records"][9];
    assert_eq!((&changed["outcome"], &changed["rto"]["met"]), (&"partial".into(), &false.into()));
    assert!(changed["scenario"].as_str().unwrap().ends_with("; scenario d-extract, changed by --rto"));
    assert!(changed["scenario_name"].is_null(), "{changed:#}");
    // A repository that is away leaves the list, and says so.
    let store = bed.place.with_file_name("nothing");
    let away = bed.place.with_file_name("away.toml");
    let text = fs::read_to_string(bed.archived.agent.config()).unwrap();
    let url = text.lines().find(|line| line.starts_with("url")).unwrap();
    fs::write(&away, text.replace(url, &format!("url = \"{}\"", store.display()))).unwrap();
    fs::set_permissions(&away, fs::Permissions::from_mode(0o644)).unwrap();
    let config = away.display().to_string();
    let listed =
        bed.archived.agent.restore(&["drill", "--list-scenarios", "--config", &config]).expect_success();
    assert!(listed.stdout.contains("c-backup: backup, the end of the backup"), "{listed:#?}");
    assert!(
        listed.stdout.contains("note: the evidence in repository \"main\" could not be read"),
        "{listed:#?}"
    );
}
