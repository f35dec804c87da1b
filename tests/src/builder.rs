//! Making a cluster: `initdb` and the settings written into its `postgresql.conf`.

use std::fmt::Write as _;
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use crate::cluster::Cluster;
use crate::dir::TestDir;
use crate::ports::PortLease;
use crate::{process, testbed, user};

/// Settings under which a test server is small and fast. Durability is off: what dies in these tests is processes, not
/// the kernel, and our own programs keep their fsyncs.
const SETTINGS: &str = "
max_connections = 25
shared_buffers = 16MB
fsync = off
dynamic_shared_memory_type = mmap
log_line_prefix = '%m [%p] '
log_statement = none
log_min_messages = info
wal_level = replica
max_wal_senders = 10
max_replication_slots = 10
max_prepared_transactions = 10
hot_standby = on
restart_after_crash = off
timezone = 'UTC'
log_timezone = 'UTC'
";

/// Collects what a new cluster shall be; [`init`](ClusterBuilder::init) makes it.
#[derive(Debug, Clone)]
pub struct ClusterBuilder {
    major: u32,
    segment_size_mb: u32,
    checksums: bool,
    tcp: bool,
    settings: Vec<(String, String)>,
    initdb: Vec<String>,
    wal_dir: Option<PathBuf>,
    dir: Option<Arc<TestDir>>,
}

impl Default for ClusterBuilder {
    fn default() -> Self {
        ClusterBuilder {
            major: 17,
            segment_size_mb: 16,
            checksums: true,
            tcp: false,
            settings: Vec::new(),
            initdb: Vec::new(),
            wal_dir: None,
            dir: None,
        }
    }
}

impl ClusterBuilder {
    /// PostgreSQL's major version, 13 to 19; 17 unless said.
    pub fn major(mut self, major: u32) -> Self {
        self.major = major;
        self
    }

    /// WAL segment size in MiB: a power of two from 1 to 1024; 16 unless said.
    pub fn segment_size_mb(mut self, mb: u32) -> Self {
        self.segment_size_mb = mb;
        self
    }

    /// Page checksums; on unless said.
    pub fn checksums(mut self, on: bool) -> Self {
        self.checksums = on;
        self
    }

    /// Listen on 127.0.0.1 too; only a Unix socket unless said.
    pub fn tcp(mut self) -> Self {
        self.tcp = true;
        self
    }

    /// Adds a line to `postgresql.conf`; the value is quoted as needed.
    pub fn conf(mut self, name: &str, value: impl ToString) -> Self {
        self.settings.push((name.to_owned(), value.to_string()));
        self
    }

    /// `archive_mode = on` with this `archive_command`.
    pub fn archive_command(self, command: &str) -> Self {
        self.conf("archive_mode", "on").conf("archive_command", command)
    }

    /// An argument more for `initdb`.
    pub fn initdb(mut self, argument: &str) -> Self {
        self.initdb.push(argument.to_owned());
        self
    }

    /// Puts `pg_wal` elsewhere, behind a symbolic link. The directory must be empty or absent.
    pub fn wal_dir(mut self, path: impl Into<PathBuf>) -> Self {
        self.wal_dir = Some(path.into());
        self
    }

    /// Uses a directory that other parts of the test share.
    pub fn in_dir(mut self, dir: &Arc<TestDir>) -> Self {
        self.dir = Some(Arc::clone(dir));
        self
    }

    /// Runs `initdb`; the cluster is not started.
    #[track_caller]
    pub fn init(self) -> Cluster {
        let dir = self.dir.unwrap_or_else(|| Arc::new(TestDir::new()));
        let pgdata = free_name(&dir, "data");
        let mut command = Command::new(testbed::pg_program(self.major, "initdb"));
        command.arg("-D").arg(&pgdata).current_dir(dir.path());
        command.args(["-A", "trust", "-U", "postgres", "--no-locale", "-E", "UTF8", "--no-sync"]);
        command.arg(format!("--wal-segsize={}", self.segment_size_mb));
        match (self.checksums, self.major >= 18) {
            (true, _) => drop(command.arg("--data-checksums")),
            (false, true) => drop(command.arg("--no-data-checksums")),
            (false, false) => {}
        }
        if let Some(wal) = &self.wal_dir {
            command.arg("--waldir").arg(wal);
        }
        command.args(&self.initdb);
        process::run(user::become_user(&mut command), Duration::from_secs(120)).expect_success();

        let mut text = format!("\n# Written by the tests.{SETTINGS}");
        for (name, value) in &self.settings {
            text += &line(name, value);
        }
        let mut conf =
            OpenOptions::new().append(true).open(pgdata.join("postgresql.conf")).expect("postgresql.conf");
        conf.write_all(text.as_bytes()).expect("write postgresql.conf");
        fs::write(pgdata.join("pg_hba.conf"), HBA).expect("write pg_hba.conf");
        Cluster::adopt(dir, self.major, pgdata, self.tcp.then(PortLease::new))
    }

    /// [`init`](ClusterBuilder::init), then starts it.
    #[track_caller]
    pub fn start(self) -> Cluster {
        let mut cluster = self.init();
        cluster.start();
        cluster
    }
}

const HBA: &str = "local all all trust\nlocal replication all trust\n\
    host all all 127.0.0.1/32 trust\nhost replication all 127.0.0.1/32 trust\n";

/// One line of `postgresql.conf`.
pub(crate) fn line(name: &str, value: &str) -> String {
    let mut text = String::new();
    writeln!(text, "{name} = '{}'", value.replace('\'', "''")).expect("write to a string");
    text
}

/// A name in `dir` that nothing has yet: `stem`, `stem2`, `stem3` …
pub(crate) fn free_name(dir: &TestDir, stem: &str) -> PathBuf {
    let mut path = dir.join(stem);
    let mut n = 1;
    while path.symlink_metadata().is_ok() {
        n += 1;
        path = dir.join(format!("{stem}{n}"));
    }
    path
}
