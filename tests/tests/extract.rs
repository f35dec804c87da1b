//! `restore-agent extract`: a table, a schema, a database or the rows of a query as they were at a moment, through a copy beside
//! production.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use walpoint_tests::archived::Archived;
use walpoint_tests::cluster::Cluster;
use walpoint_tests::process::{self, Background, Output};
use walpoint_tests::store::Store;
use walpoint_tests::{needs_root, testbed, user, wait};

/// A hostile name of a table, and the pattern that matches it alone.
const HOSTILE: &str = "-t *.\"<b>$(x)'\n;";

/// A cluster whose table was dropped, with a backup from before and rows that came after the backup.
struct Bed {
    archived: Archived,
    /// Where scratch directories are made.
    place: PathBuf,
    /// Where outputs go.
    outputs: PathBuf,
    /// Right before the drop.
    moment: String,
    /// What the table held then.
    rows: String,
}

/// The rows of the table, as one value.
const DIGEST: &str = "select count(*) || ' ' || md5(string_agg(a::text, ',' order by id)) from accounts a";

impl Bed {
    fn new(major: u32) -> Bed {
        let builder = Cluster::builder().major(major).segment_size_mb(1);
        let archived = Archived::start_with(builder, Store::local(), |agent| {
            let line = format!("scratch_directory = \"{}\"", agent.place().join("scratch").display());
            agent.cluster_line(&line)
        });
        let place = archived.agent.place().join("scratch");
        let outputs = archived.agent.place().join("outputs");
        for directory in [&place, &outputs] {
            fs::create_dir(directory).unwrap();
            user::give(directory);
        }
        let cluster = &archived.cluster;
        cluster.psql("create database shop");
        let sql = format!(
            "create table accounts as select id, 'name of ' || id as name from generate_series(1, 1000) id;
             create table \"{}\" as select generate_series(1, 7) as n;
             create table events (at int) partition by range (at);
             create table events_old partition of events for values from (0) to (10);
             create table events_new partition of events for values from (10) to (20) partition by range (at);
             create table events_new_1 partition of events_new for values from (10) to (20);
             create unlogged table drafts (n int);
             create view ids as select id from accounts;
             insert into events select generate_series(0, 4)",
            HOSTILE.replace('"', "\"\"")
        );
        cluster.psql_in("shop", &sql);
        archived.backup();
        cluster.psql_in(
            "shop",
            "insert into accounts select id, null from generate_series(1001, 1100) id; analyze accounts",
        );
        // No transaction is serializable while recovery is paused.
        cluster.psql("alter database shop set default_transaction_isolation = 'serializable'");
        let rows = cluster.psql_in("shop", DIGEST);
        let moment = cluster.psql("select clock_timestamp()");
        std::thread::sleep(Duration::from_millis(20));
        cluster.psql_in("shop", "drop table accounts cascade");
        archived.settle();
        Bed { archived, place, outputs, moment, rows }
    }

    fn output(&self, name: &str) -> String {
        self.outputs.join(name).display().to_string()
    }

    /// The arguments of an extraction from before the drop.
    fn arguments(&self, more: &[&str]) -> Vec<String> {
        let major = self.archived.cluster.major();
        let bindir =
            |program: &str| testbed::pg_program(major, program).parent().unwrap().display().to_string();
        let (servers, clients) = (bindir("postgres"), bindir("pg_dump"));
        let mut all = vec!["extract", "--pg-bindir", servers.as_str(), "--target-time", self.moment.as_str()];
        if !more.contains(&"--client-bindir") {
            all.extend(["--client-bindir", clients.as_str()]);
        }
        all.extend(more);
        all.into_iter().map(str::to_owned).collect()
    }

    fn extract(&self, more: &[&str]) -> Output {
        let arguments = self.arguments(more);
        self.archived.agent.restore(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// Fails if anything is left of a scratch directory or of an output that was not finished.
    #[track_caller]
    fn require_tidy(&self, outputs: &[&str]) {
        assert_eq!(names(&self.place), [""; 0]);
        assert_eq!(names(&self.outputs), outputs);
    }

    /// Loads a dump into a database of its own, as PostgreSQL's user.
    #[track_caller]
    fn load(&self, database: &str, script: &str) {
        let cluster = &self.archived.cluster;
        cluster.psql(&format!("create database {database}"));
        let mut psql = cluster.tool("psql");
        psql.args(["-X", "-q", "-1", "-v", "ON_ERROR_STOP=1", "-d", database]);
        // The newer pg_dump that stands in for 13's sets what only newer servers know.
        let is_older = cluster.major() < 17;
        let script =
            if is_older { script.replace("SET transaction_timeout = 0;\n", "") } else { script.to_owned() };
        process::run_with_input(&mut psql, script.as_bytes(), Duration::from_secs(60)).expect_success();
    }
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// R12: every row of a dropped table is there again, from right before the drop, where its lock is held; standard output has the dump and
/// nothing else, and production notices nothing.
fn a_dropped_table_comes_back(major: u32) {
    let bed = Bed::new(major);
    let file = bed.output("accounts.sql");
    let table = ["--database", "shop", "--table", "accounts"];
    let report = bed.extract(&[&table[..], &["--output", &file, "--json"]].concat()).expect_success();
    let report: Value = serde_json::from_str(&report.stdout).unwrap();
    assert_eq!(report["result"], "extracted", "{report:#}");
    assert_eq!((&report["timeline"], &report["database"]), (&1.into(), &"shop".into()));
    let script = fs::read_to_string(&file).unwrap();
    assert_eq!(report["output_bytes"], script.len(), "{report:#}");
    bed.load("back", &script);
    assert_eq!(bed.archived.cluster.psql_in("back", DIGEST), bed.rows);
    // The same on standard output, only the data, with the moment beside it.
    let printed = bed.extract(&[&table[..], &["--", "--data-only", "--no-owner"]].concat()).expect_success();
    let lines: Vec<&str> = printed.stdout.lines().filter(|line| !line.is_empty()).collect();
    assert_eq!((lines[0], lines[1]), ("--", "-- PostgreSQL database dump"), "{}", printed.stdout);
    let end = lines.iter().position(|line| *line == "-- PostgreSQL database dump complete").unwrap();
    assert!(lines[end..].iter().all(|line| line.starts_with("--") || line.starts_with("\\unrestrict")));
    assert!(lines.iter().all(|line| !line.starts_with("CREATE")), "{}", printed.stdout);
    let lsn = report["replayed_lsn"].as_str().unwrap();
    assert!(
        printed.stderr.contains(&format!("{lsn} on timeline 1, last transaction at 20")),
        "{}",
        printed.stderr
    );
    bed.require_tidy(&["accounts.sql"]);
    let keys = bed.archived.back_door().list("clusters/main");
    assert!(!keys.iter().any(|key| key.ends_with(".history")), "the copy archived a timeline");
}

#[test]
fn a_dropped_table_comes_back_on_13() {
    a_dropped_table_comes_back(13);
}

#[test]
fn a_dropped_table_comes_back_on_17() {
    a_dropped_table_comes_back(17);
}

#[test]
fn a_dropped_table_comes_back_on_19() {
    a_dropped_table_comes_back(19);
}

/// R12: what can be refused is refused before anything is restored, and changes nothing.
#[test]
fn what_cannot_be_extracted_is_refused_first() {
    let bed = Bed::new(17);
    let file = bed.output("rows.sql");
    fs::write(&file, "precious").unwrap();
    let (new, nowhere) = (bed.output("new"), bed.output("none/rows.sql"));
    let empty = bed.place.display().to_string();
    let shop = ["--database", "shop"];
    for (more, status, expected) in [
        (&["--output", file.as_str()][..], 1, "exists: nothing was changed"),
        (&["--output", &empty, "--force"], 1, "Only a file is ever replaced"),
        (&["--output", &nowhere], 1, "No such file or directory"),
        (&["--output", &new, "--client-bindir", &empty], 1, "has no pg_dump"),
        (&["--output", &new, "--", "--host=x"], 2, "--host cannot be passed on to pg_dump"),
        (&["--output", &new, "--", "-sfx"], 2, "-f cannot be passed on"),
        (&["--output", &new, "--", "--shema-only"], 2, "unrecognized option '--shema-only'"),
        (&["--output", &new, "--", "--jobs=2"], 2, "parallel backup only supported by the directory format"),
        (&["--", "--format=directory"], 2, "needs --output"),
        (&["--json"], 2, "Name a file for the rows"),
        (&["--query", " ; "], 2, "the query is empty"),
    ] {
        let refused = bed.extract(&[&shop[..], more].concat()).expect_status(status);
        assert!(refused.stderr.contains(expected) && refused.stdout.is_empty(), "{more:?}: {refused:#?}");
        assert!(!refused.stderr.contains("reached cluster"), "{more:?}: {refused:#?}");
    }
    let unreachable = ["extract", "--database", "shop", "--target-time", "2199-01-01 00:00:00Z"];
    let refused = bed.archived.agent.restore(&unreachable).expect_status(1);
    assert!(refused.stdout.is_empty() && refused.stderr.contains("2199"), "{refused:#?}");
    // What only the moment itself shows.
    let missing =
        bed.extract(&[&shop[..], &["--output", &new, "--table", "acounts"]].concat()).expect_status(1);
    let expected = "no table of database \"shop\" matches \"acounts\" at that moment";
    assert!(missing.stderr.contains(expected), "{}", missing.stderr);
    assert!(missing.stderr.contains("Similar names: public.accounts."), "{}", missing.stderr);
    let missing = bed.extract(&["--database", "shopp"]).expect_status(1);
    assert!(missing.stderr.contains("The databases are \"postgres\", \"shop\""), "{}", missing.stderr);
    bed.require_tidy(&["rows.sql"]);
    assert_eq!(fs::read(&file).unwrap(), b"precious");
}

/// R12: tables of any name and partitions, in every format of pg_dump, the rows of a query, and what a moment holds.
#[test]
fn tables_of_any_name_partitions_and_queries() {
    let bed = Bed::new(17);
    let cluster = &bed.archived.cluster;
    let pattern = format!("\"{}\"", HOSTILE.replace('"', "\"\""));
    let directory = bed.output("dump");
    let three =
        ["--table", pattern.as_str(), "--table", "events", "--table", "events_old", "--output", &directory];
    bed.extract(&[&["--database", "shop"], &three[..], &["--", "-Fd", "-j2"]].concat()).expect_success();
    cluster.psql("create database back");
    let mut pg_restore = cluster.tool("pg_restore");
    pg_restore.args(["--exit-on-error", "-d", "back", directory.as_str()]);
    process::run(&mut pg_restore, Duration::from_secs(60)).expect_success();
    assert_eq!(cluster.psql_in("back", &format!("select sum(n) from {pattern}")), "28");
    assert_eq!(cluster.psql_in("back", "select sum(at) from events"), "10");
    // A query, over what is there.
    let csv = bed.output("rows.csv");
    fs::write(&csv, "old").unwrap();
    let query = |sql: &str| bed.extract(&["--database", "shop", "--output", &csv, "--force", "--query", sql]);
    query("select id, name from accounts where id in (7, 1007) order by id; -- two").expect_status(1);
    query("select id, name from accounts where id in (7, 1007) order by id -- two").expect_success();
    assert_eq!(fs::read_to_string(&csv).unwrap(), "id,name\n7,name of 7\n1007,\n");
    let program = "select 1) to program 'touch walpoint-was-here'; --";
    for (sql, expected) in
        [(program, "syntax error"), ("delete from accounts returning id", "read-only transaction")]
    {
        let refused = query(sql).expect_status(1);
        assert!(refused.stderr.contains(expected), "{sql}: {refused:#?}");
    }
    let list = bed.extract(&["--list", "--database", "shop", "--json"]).expect_success();
    let list: Value = serde_json::from_str(&list.stdout).unwrap();
    let databases = list["databases"].as_array().unwrap();
    assert!(databases.iter().any(|one| one["database"] == "shop"), "{list:#}");
    let tables = list["tables"].as_array().unwrap();
    let table =
        |name: &str| tables.iter().find(|one| one["table"] == name).unwrap_or_else(|| panic!("{list:#}"));
    assert_eq!(table("accounts")["estimated_row_count"], 1100, "{list:#}");
    assert!(table("accounts")["total_bytes"].as_u64() > Some(8192), "{list:#}");
    assert_eq!(table(HOSTILE)["quoted_name"], format!("public.{pattern}"));
    assert_eq!(table("events_old")["partition_of"], "public.events");
    assert_eq!(table("events")["kind"], "partitioned-table");
    bed.require_tidy(&["dump", "rows.csv"]);
}

/// R12: a table whose rows are all in partitions that no pattern matches is refused, and what else comes without rows is a warning.
#[test]
fn what_would_come_without_its_rows_is_refused_or_warned_about() {
    let bed = Bed::new(17);
    let output = bed.output("x.sql");
    let extract = |more: &[&str]| {
        bed.extract(&[&["--database", "shop", "--output", &output, "--force", "--table"], more].concat())
    };
    let refused = extract(&["events"]).expect_status(1).stderr;
    for expected in [
        "none of which is extracted: public.events: nothing was extracted",
        "--table public.events_new --table public.events_new_1 --table public.events_old.",
        "-- --table-and-children=public.events.",
    ] {
        assert!(refused.contains(expected), "{expected}: {refused}");
    }
    // A leaf alone is no part of the copy of its table.
    extract(&["events", "--table", "events_new_1"]).expect_status(1);
    bed.require_tidy(&[]);
    let left_out = "extracted without them: public.events_new, public.events_new_1";
    let some = extract(&["events", "--table", "events_old", "--json"]).expect_success();
    let report: Value = serde_json::from_str(&some.stdout).unwrap();
    assert!(some.stderr.contains(left_out) && report["notes"].to_string().contains(left_out), "{some:#?}");
    for all in [&["events", "--", "--table-and-children=events"][..], &["accounts"]] {
        let all = extract(all).expect_success().stderr;
        assert!(!all.contains("left out") && !all.contains("extracted without"), "{all}");
    }
    // Definitions alone are asked for.
    extract(&["events", "--", "--schema-only"]).expect_success();
    let others = extract(&["drafts", "--table", "ids", "--table", "pg_am"]).expect_success().stderr;
    for expected in [
        "because a recovery empties them: public.drafts",
        "views are extracted without rows",
        "filled with it: public.ids",
        "which no server lets the output create: pg_am",
    ] {
        assert!(others.contains(expected), "{expected}: {others}");
    }
}

/// R12: an extraction that is killed leaves no output under its name; the next one removes what it left, and ends its server.
#[test]
fn what_a_killed_extraction_left_the_next_one_removes() {
    let bed = Bed::new(17);
    let csv = bed.output("rows.csv");
    let rows = ["--database", "shop", "--output", csv.as_str(), "--query"];
    let waiting = "select id, pg_sleep(600) from accounts";
    let mut command =
        bed.archived.agent.command("restore-agent", bed.arguments(&[&rows[..], &[waiting]].concat()));
    let mut killed = Background::start(&mut command, &bed.place.with_file_name("killed.log"));
    let pid_file = || {
        let [scratch] = <[String; 1]>::try_from(names(&bed.place)).ok()?;
        let text = fs::read_to_string(bed.place.join(scratch).join("data/postmaster.pid")).ok()?;
        text.lines().next()?.parse::<u32>().ok()
    };
    wait::until_true(Duration::from_secs(90), "the query of an extraction", || {
        pid_file().is_some() && killed.log().contains("reached cluster")
    });
    let server = pid_file().unwrap();
    killed.kill();
    let left = names(&bed.outputs);
    assert!(left.len() == 1 && left[0].starts_with(".walpoint-tmp-rows.csv-"), "{left:?}");
    // What it started still writes there, and ends with its server.
    let next = bed.extract(&[&rows[..], &["select count(*) as n from accounts"]].concat()).expect_success();
    assert!(!process::alive(server), "its server still runs: {next:#?}");
    assert_eq!(fs::read_to_string(&csv).unwrap(), "n\n1100\n");
    bed.require_tidy(&["rows.csv"]);
}

/// R12: root extracts for itself, where PostgreSQL's user, who runs the programs, cannot enter.
#[test]
fn root_extracts_where_postgresqls_user_cannot_enter() {
    needs_root!();
    let bed = Bed::new(17);
    // Root's own, with a sticky bit above it: no other user can rename what lies there.
    let place = tempfile::Builder::new().prefix("wp").tempdir_in("/var/tmp").unwrap();
    let closed = place.path().join("closed");
    fs::create_dir(&closed).unwrap();
    fs::set_permissions(place.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).unwrap();
    let path = |name: &str| place.path().join(name).display().to_string();
    for (output, more) in [("closed/dump", &["--", "-Fd", "-j2"][..]), ("closed/script", &[])] {
        let (scratch, output) = (path("scratch"), path(output));
        let all = ["--database", "shop", "--directory", &scratch, "--table", "accounts", "--output", &output];
        let mut command =
            bed.archived.agent.command("restore-agent", bed.arguments(&[&all[..], more].concat()));
        process::run(command.uid(0).gid(0), Duration::from_secs(60)).expect_success();
        assert_eq!(fs::metadata(&output).unwrap().uid(), 0);
    }
    for file in fs::read_dir(closed.join("dump")).unwrap() {
        assert_eq!(file.unwrap().metadata().unwrap().uid(), 0);
    }
    bed.load("back", &fs::read_to_string(closed.join("script")).unwrap());
    assert_eq!(bed.archived.cluster.psql_in("back", DIGEST), bed.rows);
    let mut pg_restore = std::process::Command::new(testbed::pg_program(17, "pg_restore"));
    pg_restore.arg("--list").arg(closed.join("dump"));
    assert!(
        process::run(&mut pg_restore, Duration::from_secs(60)).expect_success().stdout.contains("accounts")
    );
    assert_eq!(names(place.path()), ["closed"]);
}
