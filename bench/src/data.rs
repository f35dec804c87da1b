//! What everything is measured on: one cluster of PostgreSQL 15 with pgbench at two scales and an application's tables, and
//! the WAL of a load on each, in phases that follow one another.
//!
//! Made once and kept in the working directory if asked; its stamp is written last, so a killed run leaves nothing that
//! counts. The WAL lies in a data directory of its own that is no more than archiving needs: it is never changed, while
//! the cluster itself runs when it is backed up.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use walpoint_tests::cluster::{Cluster, Shutdown};
use walpoint_tests::dir::TestDir;
use walpoint_tests::{process, testbed, user};

use crate::place::bytes_below;
use crate::work::WorkDirectory;

/// The major version: the newest that all peers know.
pub const MAJOR: u32 = 15;

/// Raised when what is made changes.
const RECIPE: u32 = 3;

/// The length of a segment.
pub const SEGMENT: u64 = 16 << 20;

/// How large a data set is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Size {
    /// Segments of each of the three phases, at least.
    pub segments: usize,
    /// The scales of pgbench.
    pub scales: [u32; 2],
    /// Thousands of rows that the application begins with.
    pub rows: u32,
}

impl Size {
    /// For the comparison.
    pub const FULL: Size = Size { segments: 32, scales: [10, 50], rows: 300 };
    /// For a look.
    pub const QUICK: Size = Size { segments: 8, scales: [2, 10], rows: 30 };
}

/// A range of WAL of one kind of load.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Phase {
    /// The load.
    pub name: String,
    /// Its segments, oldest first.
    pub segments: Vec<String>,
}

/// A data set.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Data {
    recipe: u32,
    size: Size,
    /// The data directory of the cluster.
    pub cluster: PathBuf,
    /// The data directory with the WAL.
    pub wal: PathBuf,
    /// The WAL's phases.
    pub phases: Vec<Phase>,
    /// Bytes of the cluster's files.
    pub cluster_bytes: u64,
}

impl Data {
    /// The data set of that size; makes it if it is not there.
    pub fn get(work: &WorkDirectory, size: Size) -> Data {
        let dir = work.root().join("data").join(if size == Size::FULL { "full" } else { "quick" });
        let stamp = dir.join("data.json");
        let known = fs::read(&stamp).ok().and_then(|json| serde_json::from_slice::<Data>(&json).ok());
        if let Some(data) = known.filter(|data| data.recipe == RECIPE && data.size == size) {
            return data;
        }
        if dir.exists() {
            fs::remove_dir_all(&dir).expect("remove an unfinished data set");
        }
        work.dir("data");
        let data = make(&dir, size);
        fs::write(stamp, serde_json::to_vec_pretty(&data).expect("JSON")).expect("write the stamp");
        data
    }

    /// All segments, oldest first.
    pub fn segments(&self) -> Vec<String> {
        self.phases.iter().flat_map(|phase| phase.segments.clone()).collect()
    }

    /// The cluster, to be started. Its sockets lie in a directory of their own.
    pub fn cluster(&self) -> Cluster {
        Cluster::adopt(Arc::new(TestDir::new()), MAJOR, self.cluster.clone(), None)
    }

    /// Reads all WAL once, so that nobody has to wait for the disk.
    pub fn warm(&self) {
        for segment in self.segments() {
            drop(fs::read(self.wal.join("pg_wal").join(segment)).expect("read a segment"));
        }
    }
}

fn make(dir: &Path, size: Size) -> Data {
    let (cluster_dir, wal_dir) = (dir.join("cluster"), dir.join("wal"));
    fs::create_dir_all(dir).expect("a directory for the data set");
    user::give(dir);
    let mut cluster = create(&cluster_dir);
    fill(&cluster, size);
    let phases = load(&cluster, size);
    cluster.psql("alter system reset all");
    for setting in
        ["archive_mode = on", "archive_command = '/bin/true'", "wal_keep_size = 0", "max_wal_size = '1GB'"]
    {
        cluster.psql(&format!("alter system set {setting}"));
    }
    cluster.stop(Shutdown::Fast);

    move_wal(&cluster_dir, &wal_dir, &phases);
    // What the load left of WAL before its first segment is of no use.
    cluster.start();
    cluster.psql("checkpoint");
    cluster.switch_wal();
    cluster.psql("checkpoint");
    cluster.stop(Shutdown::Fast);
    let cluster_bytes = bytes_below(&cluster_dir) - bytes_below(&cluster_dir.join("pg_wal"));
    Data { recipe: RECIPE, size, cluster: cluster_dir, wal: wal_dir, phases, cluster_bytes }
}

/// A cluster that keeps all WAL and writes it as fast as it can; it runs.
fn create(place: &Path) -> Cluster {
    let empty = Cluster::builder()
        .major(MAJOR)
        .conf("shared_buffers", "256MB")
        .conf("synchronous_commit", "off")
        .conf("max_wal_size", "16GB")
        .conf("checkpoint_timeout", "1h")
        .conf("wal_keep_size", "16GB")
        .conf("autovacuum", "off")
        .init();
    let mut copy = Command::new("cp");
    copy.arg("-a").arg(empty.pgdata()).arg(place);
    process::run(&mut copy, Duration::from_secs(60)).expect_success();

    let mut cluster = Cluster::adopt(Arc::new(TestDir::new()), MAJOR, place.to_owned(), None);
    cluster.start();
    cluster
}

/// The databases as the load finds them.
fn fill(cluster: &Cluster, size: Size) {
    let [small, large] = size.scales;
    for (name, scale) in [("small", small), ("large", large)] {
        cluster.psql(&format!("create database {name}"));
        pgbench(cluster, name, &["-i", "-q", "-s", &scale.to_string()]);
    }
    cluster.psql("create database application");
    cluster.psql_in("application", APPLICATION);
    cluster.psql_in("application", &application_rows(size.rows));
    for database in ["small", "large", "application"] {
        cluster.psql_in(database, "vacuum analyze");
    }
}

/// The load of each phase, until it has written enough segments.
fn load(cluster: &Cluster, size: Size) -> Vec<Phase> {
    let [small, large] = size.scales;
    let mut phases: Vec<Phase> = Vec::new();
    for (name, database) in [
        (format!("pgbench, scale {small}"), "small"),
        (format!("pgbench, scale {large}"), "large"),
        ("application".to_owned(), "application"),
    ] {
        // Each phase begins in a new segment, with pages whose first change is written whole; no segment lies between.
        if phases.is_empty() {
            cluster.switch_wal();
        }
        let first = cluster.current_segment();
        cluster.psql("checkpoint");
        let mut chunk = 0;
        while segments_from(cluster, &first).len() < size.segments {
            chunk += 1;
            assert!(chunk < 10_000, "the load {name} writes no WAL");
            if database == "application" {
                cluster.psql_in(database, &application_load(chunk, size.rows));
            } else {
                pgbench(cluster, database, &["-n", "-c", "4", "-j", "2", "-t", "2000"]);
            }
        }
        cluster.switch_wal();
        let segments = segments_from(cluster, &first);
        phases.push(Phase { name, segments });
    }
    phases
}

/// Makes a data directory with the WAL of the phases, and with what else archiving looks at: the control file.
fn move_wal(cluster_dir: &Path, wal_dir: &Path, phases: &[Phase]) {
    for name in ["", "global", "pg_wal", "pg_wal/archive_status"] {
        fs::create_dir_all(wal_dir.join(name)).expect("the data directory with the WAL");
    }
    for name in ["global/pg_control", "PG_VERSION", "postgresql.conf"] {
        fs::copy(cluster_dir.join(name), wal_dir.join(name)).expect("copy");
    }
    for segment in phases.iter().flat_map(|phase| &phase.segments) {
        let name = Path::new("pg_wal").join(segment);
        fs::rename(cluster_dir.join(&name), wal_dir.join(&name)).expect("move a segment");
    }
    user::give_tree(wal_dir);
    fs::set_permissions(wal_dir, std::os::unix::fs::PermissionsExt::from_mode(0o700)).expect("chmod");
}

/// The finished segments from one on.
fn segments_from(cluster: &Cluster, first: &str) -> Vec<String> {
    let current = cluster.current_segment();
    let mut names = cluster.segments();
    names.retain(|name| name.as_str() >= first && *name < current);
    names
}

/// Runs pgbench in a database.
pub(crate) fn pgbench(cluster: &Cluster, database: &str, arguments: &[&str]) {
    let mut command = cluster.tool("pgbench");
    command.args(arguments).arg(database).env("PGDATABASE", database);
    process::run(&mut command, Duration::from_secs(600)).expect_success();
}

/// Tables as an application has them: random keys, documents, indexes on what is asked for.
const APPLICATION: &str = "
create table account (
    id uuid primary key default gen_random_uuid(), created timestamptz not null default now(),
    email text not null, profile jsonb not null);
create index on account (email);
create table event (
    id uuid primary key default gen_random_uuid(), account uuid not null, at timestamptz not null default clock_timestamp(),
    kind text not null, payload jsonb not null);
create index on event (account, at);
create index on event using gin (payload jsonb_path_ops);
create table import (
    batch int not null, line int not null, price numeric(12, 2), description text, primary key (batch, line));
";

/// The rows that the application begins with.
fn application_rows(thousands: u32) -> String {
    format!("{}{}", accounts(thousands * 400), events(thousands * 600))
}

/// A spell of work: people come, things happen, a file is loaded, profiles change, old things go.
pub(crate) fn application_load(chunk: u32, thousands: u32) -> String {
    let imported = thousands * 30;
    format!(
        "{}{}insert into import select {chunk}, n, n * 1.17, 'article ' || md5(n::text) || ' ' || repeat('text ', n % 20)
           from generate_series(1, {imported}) n;
         update account set profile = jsonb_set(profile, '{{visits}}', to_jsonb({chunk}))
           where id in (select id from account tablesample system (2));
         delete from event where id in (select id from event tablesample system (1));",
        accounts(thousands * 4),
        events(thousands * 20),
    )
}

fn accounts(count: u32) -> String {
    format!(
        "insert into account (email, profile)
           select md5(random()::text) || '@example.com', jsonb_build_object('name', 'Person ' || n, 'language',
             (array['en', 'de', 'fr', 'ja'])[1 + n % 4], 'visits', 0, 'settings',
             jsonb_build_object('theme', 'dark', 'mail', n % 3 = 0, 'limit', n % 1000))
           from generate_series(1, {count}) n;"
    )
}

fn events(count: u32) -> String {
    format!(
        "insert into event (account, kind, payload)
           select gen_random_uuid(), (array['view', 'order', 'login'])[1 + n % 3], jsonb_build_object('ip',
             '10.0.' || n % 256 || '.' || n % 251, 'agent', 'Mozilla/5.0 (X11; Linux x86_64)', 'amount', random() * 1000,
             'session', md5((n / 10)::text))
           from generate_series(1, {count}) n;"
    )
}

/// The program of the data set's PostgreSQL.
pub fn programs() -> PathBuf {
    testbed::pg_program(MAJOR, "postgres").parent().expect("a directory").to_owned()
}
