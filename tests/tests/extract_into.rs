//! `restore-agent extract --into`: tables and schemas of a moment straight into a running server, under another name. Production's own
//! objects are looked at before and after: nothing of them may change.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use walpoint_tests::archived::Archived;
use walpoint_tests::cluster::{Cluster, Shutdown};
use walpoint_tests::process::{Background, Output};
use walpoint_tests::store::Store;
use walpoint_tests::{testbed, user, wait};

/// What a shop has: tables that lead to each other and to others, a sequence beside them, a partition, and owners.
const SHOP: &str = "
    create role app;
    create role gone;
    create extension if not exists citext;
    create type mood as enum ('good', 'bad');
    create type shade as enum ('dark');
    create sequence numbers start 500;
    create table customers (id int primary key, name text);
    create table accounts (id bigserial primary key, customer int references customers, mood mood default 'good',
        number bigint default nextval('numbers'));
    create index accounts_customer on accounts (customer);
    create statistics accounts_mood on customer, mood from accounts;
    create table lines (id int generated always as identity primary key, account bigint not null references accounts);
    create table events (at int, account bigint references accounts) partition by range (at);
    create table events_old partition of events for values from (0) to (10);
    create index events_at on events (at);
    create table measures (n int);
    create table measures_old () inherits (measures);
    create table orphans as select 1 as n;
    create table paints (shade shade);
    create unlogged table drafts (n int);
    create view rich as select id from accounts where number > 500;
    create schema reports;
    create materialized view reports.totals as select count(*) as n from accounts;
    create view reports.wealthy as select id from accounts where number > 500;
    alter table accounts owner to app;
    alter table orphans owner to gone;
    grant select on lines to app;
    insert into customers select 7, 'seven';
    insert into accounts (customer) select 7 from generate_series(1, 100);
    insert into lines (account) select id from accounts;
    insert into measures_old select 1;
    insert into events select 3, id from accounts where id < 5;
    create schema \"Old Sales\";
    create table \"Old Sales\".mails (id serial primary key, mail public.citext unique, kind text);
    create table \"Old Sales\".audit (id int);
    create index accounts_customer on \"Old Sales\".audit (id);
    create materialized view \"Old Sales\".kinds as select count(*) as n from \"Old Sales\".mails;
    create function \"Old Sales\".latest() returns int language sql as 'select 1';
    insert into \"Old Sales\".mails (mail) select 'a' || n from generate_series(1, 20) n";

/// What happens to it after the moment that is wanted.
const DAMAGE: &str = "
    update accounts set mood = 'bad', number = 0;
    delete from lines where id > 3;
    drop table orphans, paints;
    drop type shade;
    drop role gone;
    update \"Old Sales\".mails set kind = 'lost'";

/// The rows of two tables of a schema, as one value.
fn digest(schema: &str) -> String {
    format!(
        "select (select count(*) || ' ' || md5(string_agg(a::text, ',' order by id)) from {schema}.accounts a) || ' ' ||
         (select count(*) || ' ' || md5(string_agg(l::text, ',' order by id)) from {schema}.lines l)"
    )
}

/// Everything that production's own schemas hold, by name and definition.
const OBJECTS: &str = "select string_agg(line, chr(10) order by line) from (
    select c.oid::regclass || ' ' || c.relkind::text || ' ' || c.relowner::regrole || ' ' || c.relhastriggers as line
      from pg_class c where c.relnamespace::regnamespace::text in ('public', '\"Old Sales\"')
    union all select conrelid::regclass || ' ' || conname || ' ' || pg_get_constraintdef(oid) from pg_constraint
      where contype = 'f' and connamespace::regnamespace::text in ('public', '\"Old Sales\"')
    union all select inhrelid::regclass || ' of ' || inhparent::regclass from pg_inherits join pg_class c on c.oid = inhparent
      where c.relnamespace::regnamespace::text in ('public', '\"Old Sales\"')) x";

struct Bed {
    archived: Archived,
    scratch: PathBuf,
    moment: String,
    /// The rows of accounts and lines at that moment.
    rows: String,
}

impl Bed {
    fn new(major: u32) -> Bed {
        let builder = Cluster::builder().major(major).segment_size_mb(1);
        let archived = Archived::start_with(builder, Store::local(), |agent| {
            let line = format!("scratch_directory = \"{}\"", agent.place().join("scratch").display());
            agent.cluster_line(&line)
        });
        let scratch = archived.agent.place().join("scratch");
        fs::create_dir(&scratch).unwrap();
        user::give(&scratch);
        let cluster = &archived.cluster;
        cluster.psql("create database shop");
        cluster.psql_in("shop", SHOP);
        if major >= 15 {
            cluster.psql_in("shop", "create publication sales for tables in schema \"Old Sales\"");
        }
        archived.backup();
        let rows = cluster.psql_in("shop", &digest("public"));
        let moment = cluster.psql("select clock_timestamp()");
        std::thread::sleep(Duration::from_millis(20));
        cluster.psql_in("shop", DAMAGE);
        archived.settle();
        Bed { archived, scratch, moment, rows }
    }

    fn shop(&self, sql: &str) -> String {
        self.archived.cluster.psql_in("shop", sql)
    }

    fn server(&self) -> String {
        format!("{} dbname=shop", self.archived.cluster.conninfo())
    }

    /// Extracts from before the damage, with programs that the server understands.
    fn extract(&self, more: &[&str]) -> Output {
        let arguments = self.arguments(more);
        self.archived.agent.restore(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
    }

    fn arguments(&self, more: &[&str]) -> Vec<String> {
        let major = self.archived.cluster.major();
        let bindir =
            |major, program| testbed::pg_program(major, program).parent().unwrap().display().to_string();
        let (servers, clients) = (bindir(major, "postgres"), bindir(major.max(14), "pg_dump"));
        let mut all = vec!["extract", "--pg-bindir", &servers, "--target-time", &self.moment];
        if !more.contains(&"--client-bindir") {
            all.extend(["--client-bindir", clients.as_str()]);
        }
        all.extend(["--database", "shop"]);
        all.extend(more);
        all.into_iter().map(str::to_owned).collect()
    }

    /// A directory of client programs of which the one that loads does more than that. `before` and `after`: what its script does.
    fn clients(&self, name: &str, before: &str, after: &str) -> String {
        let directory = self.scratch.with_file_name(name);
        fs::create_dir(&directory).unwrap();
        user::give(&directory);
        let real =
            |program| testbed::pg_program(self.archived.cluster.major(), program).display().to_string();
        let when = |what: &str| format!("case \"$*\" in *--single-transaction*) {what};; esac");
        let load = format!("{}\n'{}' \"$@\" || exit\n{}", when(before), real("pg_restore"), when(after));
        for (program, script) in
            [("pg_dump", format!("exec '{}' \"$@\"", real("pg_dump"))), ("pg_restore", load)]
        {
            let path = directory.join(program);
            fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        directory.display().to_string()
    }

    /// The outcome and the issues of the last record of the evidence.
    fn last_record(&self) -> (String, String) {
        let records = self.archived.agent.run(&["evidence", "list", "--json"]).expect_success();
        let records: Value = serde_json::from_str(&records.stdout).unwrap();
        let record = records["repositories"][0]["records"].as_array().unwrap().last().unwrap();
        (record["outcome"].as_str().unwrap().to_owned(), record["issues"].to_string())
    }

    fn loaded(&self, more: &[&str]) -> Value {
        let output = self.extract(&[&["--json", "--into", &self.server()], more].concat()).expect_success();
        serde_json::from_str(&output.stdout).unwrap()
    }

    /// What is printed beside the output of an extraction that is refused, which has these texts.
    #[track_caller]
    fn refuse(&self, more: &[&str], expected: &[&str]) -> String {
        let refused = self.extract(more).expect_status(1).stderr;
        for text in expected {
            assert!(refused.contains(text), "{text}: {refused}");
        }
        refused
    }

    /// Fails if anything is left of a scratch directory, or a schema that does not belong there.
    #[track_caller]
    fn require_tidy(&self, schemas: &[&str]) {
        assert_eq!(fs::read_dir(&self.scratch).unwrap().count(), 0);
        let sql = "select string_agg(nspname, ',' order by nspname) from pg_namespace \
                   where nspname !~ '^pg_' and nspname <> 'information_schema'";
        assert_eq!(self.shop(sql), schemas.join(","));
    }
}

/// Whether a note about something is among those of a document.
#[track_caller]
fn require_note(report: &Value, text: &str) {
    let notes = report["notes"].as_array().unwrap();
    let has = |note: &Value| note.to_string().contains(text);
    assert!(notes.iter().any(has), "no note about {text}: {report:#}");
}

/// R14: tables of the past stand beside production's, with their index, sequences, statistics and the foreign keys among them, and nothing
/// of production has changed or is led to.
fn tables_stand_beside_production(major: u32) {
    let bed = Bed::new(major);
    let (before, damaged) = (bed.shop(OBJECTS), bed.shop(&digest("public")));
    let tables = ["accounts", "lines", "events_old"].map(|table| ["--table", table]).concat();
    let report = bed.loaded(&[&tables[..], &["--into-schema", "Before"]].concat());
    assert_eq!((bed.shop(OBJECTS), bed.shop(&digest("public"))), (before, damaged), "production changed");
    assert_eq!(bed.shop(&digest("\"Before\"")), bed.rows);
    assert_eq!((&report["result"], &report["table_count"]), (&"loaded".into(), &3.into()), "{report:#}");
    assert_eq!((&report["into_schema"], &report["into_database"]), (&"Before".into(), &"shop".into()));
    let server = report["into_server"].as_str().unwrap();
    assert!(server.starts_with("postgres@") && server.ends_with("/shop"), "{server}");
    for (sql, expected) in [
        (
            "select string_agg(indexname, ' ' order by indexname) from pg_indexes where schemaname = 'Before'",
            "accounts_customer accounts_pkey events_old_at_idx lines_pkey",
        ),
        (
            "select string_agg(conrelid::regclass || ' to ' || confrelid::regclass, ', ' order by conrelid::regclass::text) from pg_constraint \
             where contype = 'f' and (conrelid::regclass::text ~ 'Before' or confrelid::regclass::text ~ 'Before')",
            "\"Before\".events_old to \"Before\".accounts, \"Before\".lines to \"Before\".accounts",
        ),
        (
            "select stxnamespace::regnamespace from pg_statistic_ext where stxrelid = '\"Before\".accounts'::regclass",
            "\"Before\"",
        ),
        (
            "insert into \"Before\".accounts default values returning id || ' ' || number || ' ' || mood",
            "101 600 good",
        ),
        ("insert into \"Before\".lines (account) values (1) returning id", "101"),
        ("select last_value from public.numbers", "599"),
        ("select count(*) from \"Before\".events_old", "4"),
        ("select relowner::regrole from pg_class where oid = '\"Before\".accounts'::regclass", "app"),
        ("select nspowner::regrole from pg_namespace where nspname = 'Before'", "postgres"),
        ("select has_table_privilege('app', '\"Before\".lines', 'select')", "t"),
    ] {
        assert_eq!(bed.shop(sql).lines().next().unwrap_or_default(), expected, "{sql}");
    }
    let comment = bed.shop("select obj_description('\"Before\"'::regnamespace, 'pg_namespace')");
    let lsn = report["replayed_lsn"].as_str().unwrap();
    assert!(
        comment.starts_with("restored by restore-agent extract: cluster main at ") && comment.contains(lsn)
    );
    require_note(&report, "accounts_customer_fkey of public.accounts");
    require_note(&report, "its parent is not extracted: public.events_old");
    require_note(&report, "objects of the server itself: type public.mood");
    // On record, without what would open the server.
    let records = bed.archived.agent.run(&["evidence", "list", "--json"]).expect_success();
    let records: Value = serde_json::from_str(&records.stdout).unwrap();
    let record = records["repositories"][0]["records"].as_array().unwrap().last().unwrap();
    let note = record["note"].as_str().unwrap();
    assert!(note.ends_with(&format!("table events_old, into schema Before at {server}")), "{note}");
    bed.require_tidy(&["Before", "Old Sales", "public", "reports"]);
}

#[test]
fn tables_stand_beside_production_on_13() {
    tables_stand_beside_production(13);
}

#[test]
fn tables_stand_beside_production_on_17() {
    tables_stand_beside_production(17);
}

#[test]
fn tables_stand_beside_production_on_19() {
    tables_stand_beside_production(19);
}

/// R14: a schema comes under another name with all that is in it, but for what is left out; extensions stay the server's own, also in the
/// schema `public`.
#[test]
fn a_schema_comes_under_another_name() {
    let bed = Bed::new(17);
    let before = bed.shop(OBJECTS);
    let report = bed.loaded(&["--schema", "\"Old Sales\"", "--", "--exclude-table=*.audit"]);
    let schema = report["into_schema"].as_str().unwrap().to_owned();
    assert!(
        schema.starts_with("walpoint_20") && schema.len() == "walpoint_20261121_101459".len(),
        "{schema}"
    );
    let sql =
        format!("select count(*) || ' ' || count(kind) || ' ' || max({schema}.latest()) from {schema}.mails");
    assert_eq!((bed.shop(&sql), &report["table_count"]), ("20 0 1".to_owned(), &2.into()), "{report:#}");
    require_note(&report, "filled anew from what is loaded, and may have had other rows at that moment");
    require_note(&report, "right before: kinds");
    assert_eq!(
        bed.shop(&format!("insert into {schema}.mails default values returning id")).lines().next(),
        Some("21")
    );
    // A schema that keeps its name, in another database.
    bed.archived.cluster.psql("create database other");
    bed.archived.cluster.psql_in("other", "create extension citext");
    let other = bed.server().replace("dbname=shop", "dbname=other");
    let same =
        ["--schema", "\"Old Sales\"", "--into", &other, "--into-schema", "Old Sales", "--", "-T", "*.audit"];
    bed.extract(&same).expect_success();
    let sql = "select to_regclass('\"Old Sales\".audit') is null, count(*) from \"Old Sales\".mails";
    assert_eq!(bed.archived.cluster.psql_in("other", sql), "t|20");
    let passed = ["--no-owner", "--no-privileges", "--exclude-table=orphans"];
    let report = bed.loaded(&[&["--schema", "public", "--into-schema", "pub", "--"], &passed[..]].concat());
    assert_eq!(bed.shop(&digest("pub")), bed.rows);
    assert_eq!(bed.shop("select count(*) from pub.rich"), "99");
    assert_eq!(bed.shop("select pg_typeof(mood) from pub.accounts limit 1"), "pub.mood");
    assert_eq!(report["table_count"], 9, "{report:#}");
    require_note(&report, "because a recovery empties them: public.drafts");
    assert_eq!(bed.shop("select count(*) from pub.measures"), "1");
    assert_eq!(bed.shop(OBJECTS), before, "production changed");
    let passed = ["--", "--no-owner", "--exclude-table=*.totals"];
    let report = bed.loaded(&[&["--schema", "reports", "--into-schema", "rep"], &passed[..]].concat());
    assert_eq!(bed.shop("select count(*) from rep.wealthy"), "0");
    require_note(&report, "views show the rows that these have today");
    require_note(&report, "until it commits, so");
    require_note(&report, "view rep.wealthy uses table public.accounts");
    bed.require_tidy(&["Old Sales", "pub", "public", "rep", "reports", &schema]);
}

/// Names that would be taken twice, what is PostgreSQL's own, and an extension that would have to be in a schema that only the load creates.
fn what_cannot_be_moved_is_refused(bed: &Bed, server: &str) {
    bed.refuse(
        &["--table", "accounts", "--table", "\"Old Sales\".audit", "--into", server],
        &[
            "loaded into one schema: \"Old Sales\".accounts_customer, public.accounts_customer",
            "one at a time",
        ],
    );
    bed.refuse(
        &["--table", "pg_stat_activity", "--into", server],
        &["of PostgreSQL itself, which cannot be loaded: pg_stat_activity: nothing was loaded", "--query"],
    );
    bed.archived.cluster.psql("create database bare");
    bed.archived.cluster.psql_in("bare", "drop schema public");
    let bare = server.replace("dbname=shop", "dbname=bare");
    bed.refuse(
        &["--table", "\"Old Sales\".mails", "--into", &bare, "--into-schema", "public"],
        &[
            "Extension \"citext\" is in schema \"public\" in the backup, and that name is the one of the schema that is loaded.",
            "Choose another name with --into-schema",
        ],
    );
}

/// A load by a role that may create a schema, and no more: owners are refused, with a warning before the restore, and left out they load.
fn without_a_superusers_rights(bed: &Bed, weak: &str) {
    let accounts = ["--table", "accounts", "--into", weak];
    bed.shop("grant create on database shop to weak; create publication everything for all tables");
    let refused = bed.refuse(&accounts, &["cannot make others the owners in its new schema: app, postgres."]);
    bed.shop("drop publication everything");
    let warned = refused.find("role \"weak\" is no superuser: unless").unwrap();
    let published = refused.find("a subscriber that lacks them stops: everything").unwrap();
    assert!(warned.max(published) < refused.find("reached cluster").unwrap(), "{refused}");
    let own = ["--into-schema", "own", "--", "--no-owner", "--no-privileges"];
    bed.extract(&[&accounts[..], &own].concat()).expect_success();
    let sql = "select count(*), min(c.relowner::regrole::text) from own.accounts, pg_class c where c.oid = 'own.accounts'::regclass";
    assert_eq!(bed.shop(sql), "100|weak");
    bed.shop("drop schema own cascade");
}

/// R14: what would fail is refused, before anything is restored where that can be known, and by name; what fails after all leaves nothing.
#[test]
fn what_cannot_be_loaded_is_refused_by_name_and_a_failure_leaves_nothing() {
    let bed = Bed::new(17);
    let (server, before) = (bed.server(), bed.shop(OBJECTS));
    let mut standby = Cluster::builder().major(17).start();
    standby.stop(Shutdown::Fast);
    fs::write(standby.pgdata().join("standby.signal"), "").unwrap();
    user::give(&standby.pgdata().join("standby.signal"));
    standby.start();
    let (standby, nowhere) = (standby, "host=/nonexistent user=postgres dbname=shop");
    let in_recovery = standby.conninfo();
    bed.shop("create role weak login; create schema taken");
    let weak = server.replace("user=postgres", "user=weak");
    let accounts = ["--table", "accounts"];
    for (more, status, expected) in [
        (&["--into", nowhere][..], 1, "there is no such socket"),
        (&["--into", &in_recovery], 1, "is in recovery: nothing can be loaded into a standby"),
        (&["--into", &server, "--into-schema", "taken"], 1, "has a schema \"taken\" already"),
        (&["--into", &weak], 1, "role \"weak\" may not create a schema"),
        (&["--into", "host=db1 password=geheim"], 2, "PGPASSWORD"),
        (&["--into", &server, "--schema", "public"], 2, "--table or --schema, not both"),
        (&["--into", &server, "--into-schema", "pg_x"], 2, "PostgreSQL's own"),
        (&["--into", &server, "--", "--clean"], 2, "cannot be passed on to pg_dump with --into"),
        (&["--into", &server, "--output", "x"], 2, "cannot be used with"),
    ] {
        let refused = bed.extract(&[&accounts[..], more].concat()).expect_status(status);
        assert!(refused.stderr.contains(expected) && refused.stdout.is_empty(), "{more:?}: {refused:#?}");
        assert!(
            !refused.stderr.contains("reached cluster") && !refused.stderr.contains("geheim"),
            "{refused:#?}"
        );
    }
    // What only the moment shows, all of it at once.
    bed.shop("create schema elsewhere; alter extension citext set schema elsewhere");
    let all = ["orphans", "paints", "\"Old Sales\".mails"].map(|table| ["--table", table]).concat();
    bed.refuse(
        &[&all[..], &["--into", &server]].concat(),
        &[
            "lacks what the load needs: nothing was loaded",
            "do not exist there: gone.",
            "CREATE ROLE \"gone\"",
            "--no-owner",
            "Objects that it uses do not exist there: type public.shade.",
            "Extension \"citext\" is in schema \"elsewhere\" there, and in \"public\" in the backup.",
        ],
    );
    bed.refuse(
        &["--table", "measures", "--table", "events", "--into", &server],
        &[
            "none of which is extracted: public.events, public.measures: nothing was extracted",
            "--table public.events_old --table public.measures_old",
        ],
    );
    what_cannot_be_moved_is_refused(&bed, &server);
    bed.refuse(
        &["--schema", "reports", "--into", &server],
        &[
            "rows that the server has today: totals: nothing was loaded",
            "totals uses table public.accounts.",
            "-- '--exclude-table=*.totals'",
        ],
    );
    without_a_superusers_rights(&bed, &weak);
    // A failure after the rows were loaded.
    bed.shop(
        "create function refuse() returns event_trigger language plpgsql as $$begin raise 'no index today'; end$$;
         create event trigger refuse on ddl_command_start when tag in ('CREATE INDEX') execute function refuse()",
    );
    let failed = bed.extract(&[&accounts[..], &["--into", &server]].concat()).expect_status(1);
    assert!(
        failed.stderr.contains("no index today") && failed.stderr.contains("rolled back"),
        "{}",
        failed.stderr
    );
    bed.shop("drop event trigger refuse; drop function refuse(); alter extension citext set schema public");
    bed.require_tidy(&["Old Sales", "elsewhere", "public", "reports", "taken"]);
    assert_eq!(bed.shop(OBJECTS), before, "production changed");
}

/// R14: what the server has committed is reported and recorded as loaded, whatever became of the programs, of this process and of its report;
/// an interruption before that leaves nothing, and says so.
#[test]
fn a_load_is_reported_by_what_the_server_has_of_it() {
    let bed = Bed::new(17);
    let server = bed.server();
    let load = |clients: &str, schema: &str| {
        let more =
            ["--table", "accounts", "--into", &server, "--into-schema", schema, "--client-bindir", clients];
        bed.arguments(&more)
    };
    // The answer to the commit is lost, and the report, too.
    let lost = bed.clients("lost", ":", "echo 'pg_restore: error: connection lost' >&2; exit 1");
    let arguments =
        [load(&lost, "lost"), ["--json", "--log-format", "text"].map(str::to_owned).to_vec()].concat();
    let mut command = bed.archived.agent.command("restore-agent", &arguments);
    let full = File::options().write(true).open("/dev/full").unwrap();
    let ended = command.stdin(Stdio::null()).stdout(full).output().unwrap();
    let log = String::from_utf8_lossy(&ended.stderr);
    assert!(ended.status.success(), "{log}");
    for expected in [
        "connection lost",
        "was committed: everything was loaded",
        "loaded 1 table into schema \"lost\"",
        "its report could not be printed",
    ] {
        assert!(log.contains(expected), "{expected}: {log}");
    }
    assert_eq!(bed.last_record(), ("success".to_owned(), "null".to_owned()));
    assert_eq!(bed.shop("select count(*) from lost.accounts"), "100");
    // An interruption, after the commit and before anything.
    for (name, is_committed) in [("after", true), ("before", false)] {
        let begun = bed.scratch.with_file_name(format!("{name}.begun"));
        let hang = format!("touch '{}'; sleep 600", begun.display());
        let (before, after) = if is_committed { (":", hang.as_str()) } else { (hang.as_str(), ":") };
        let arguments = load(&bed.clients(name, before, after), name);
        let mut command = bed.archived.agent.command("restore-agent", &arguments);
        let mut running = Background::start(&mut command, &bed.scratch.with_file_name(format!("{name}.log")));
        wait::until_true(Duration::from_secs(90), "a load", || begun.exists());
        running.signal(Signal::TERM);
        let status = running.wait(Duration::from_secs(60));
        let (log, (outcome, issues)) = (running.log(), bed.last_record());
        assert!(log.contains("the extraction was interrupted"), "{log}");
        if is_committed {
            assert!(status == 0 && log.contains("loaded 1 table into schema \"after\""), "{status}: {log}");
            assert_eq!((outcome.as_str(), issues.as_str()), ("success", "null"));
            assert_eq!(bed.shop("select count(*) from after.accounts"), "100");
        } else {
            assert!(status == 1 && log.contains("rolled back: nothing was loaded"), "{status}: {log}");
            assert!(outcome == "failed" && issues.contains("nothing was loaded"), "{outcome}: {issues}");
        }
    }
    bed.require_tidy(&["Old Sales", "after", "lost", "public", "reports"]);
}
