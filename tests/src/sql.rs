//! Asking a cluster: by psql, and by any other of PostgreSQL's programs.

use std::process::Command;
use std::time::Duration;

use crate::cluster::Cluster;
use crate::process::{self, Output};
use crate::session::Session;
use crate::wait::SOON;
use crate::{testbed, user};

impl Cluster {
    /// Runs SQL as the superuser in `postgres`; rows as lines, columns separated by `|`. Statements commit one by one.
    #[track_caller]
    pub fn psql(&self, sql: &str) -> String {
        self.psql_in("postgres", sql)
    }

    /// [`psql`](Cluster::psql) in another database.
    #[track_caller]
    pub fn psql_in(&self, database: &str, sql: &str) -> String {
        let output = self.psql_output(database, sql);
        assert!(output.success(), "psql failed: {}\n{sql}\n--- server log:\n{}", output.stderr, self.log());
        output.stdout.trim_end_matches('\n').to_owned()
    }

    /// [`psql`](Cluster::psql) that may fail: what psql printed to standard error.
    pub fn try_psql(&self, sql: &str) -> Result<String, String> {
        let output = self.psql_output("postgres", sql);
        if output.success() {
            Ok(output.stdout.trim_end_matches('\n').to_owned())
        } else {
            Err(output.stderr)
        }
    }

    fn psql_output(&self, database: &str, sql: &str) -> Output {
        let mut command = self.tool("psql");
        command.args(["-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-d", database, "-f", "-"]);
        process::run_with_input(&mut command, sql.as_bytes(), Duration::from_secs(300))
    }

    /// A psql session that stays open: transactions in progress, advisory locks.
    #[track_caller]
    pub fn session(&self) -> Session {
        let mut command = self.tool("psql");
        command.args(["-X", "-A", "-t", "-q", "-d", "postgres"]);
        Session::start(&mut command)
    }

    /// A PostgreSQL program of this version as the servers' user, with the environment to reach this cluster.
    #[track_caller]
    pub fn tool(&self, name: &str) -> Command {
        let mut command = Command::new(testbed::pg_program(self.major(), name));
        command.env("PGHOST", self.socket_dir()).env("PGPORT", self.port().to_string());
        command.env("PGUSER", "postgres").env("PGDATABASE", "postgres").current_dir(self.dir().path());
        user::become_user(&mut command);
        command
    }

    /// Waits until a query gives `expected`; an error counts as "not yet".
    #[track_caller]
    pub fn wait_for(&self, sql: &str, expected: &str) {
        let mut last = String::new();
        let start = std::time::Instant::now();
        while start.elapsed() < 2 * SOON {
            match self.try_psql(sql) {
                Ok(answer) if answer == expected => return,
                Ok(answer) => last = answer,
                Err(error) => last = error,
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("{sql}\nexpected {expected}, last answer {last}\n--- server log:\n{}", self.log());
    }
}
