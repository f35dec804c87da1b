//! What "the same" means: the contents of a database as comparable text, and PostgreSQL's own checkers.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::cluster::Cluster;
use crate::{process, testbed, user};

/// A database's schema, and for each table the number of its rows and a hash over all of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contents {
    /// `pg_dump --schema-only`, less what differs from run to run.
    pub schema: String,
    /// Rows and hash by table.
    pub tables: BTreeMap<String, String>,
}

impl Contents {
    /// Reads database `postgres`.
    #[track_caller]
    pub fn of(cluster: &Cluster) -> Contents {
        Contents::of_database(cluster, "postgres")
    }

    /// Reads one database. Order of rows on disk does not matter.
    #[track_caller]
    pub fn of_database(cluster: &Cluster, database: &str) -> Contents {
        let mut dump = cluster.tool("pg_dump");
        dump.args(["--schema-only", "-d", database]);
        let schema = process::run(&mut dump, Duration::from_secs(120)).expect_success().stdout;
        // The key in these lines is made anew for each dump.
        let kept = schema.lines().filter(|l| !l.starts_with("\\restrict") && !l.starts_with("\\unrestrict"));
        let schema = kept.fold(String::new(), |text, line| text + line + "\n");
        let names = cluster.psql_in(
            database,
            "select format('%I.%I', schemaname, tablename) from pg_tables
             where schemaname not in ('pg_catalog', 'information_schema') order by 1",
        );
        let hash = |name: &str| {
            let sql = format!(
                "select count(*), sum(('x' || left(md5(t::text), 15))::bit(60)::bigint::numeric),
                        sum(('x' || right(md5(t::text), 15))::bit(60)::bigint::numeric) from {name} t"
            );
            (name.to_owned(), cluster.psql_in(database, &sql))
        };
        Contents { schema, tables: names.lines().map(hash).collect() }
    }

    /// Panics with the tables that differ.
    #[track_caller]
    pub fn assert_equal(&self, other: &Contents) {
        let mut differences = Vec::new();
        for name in self.tables.keys().chain(other.tables.keys()) {
            let (one, two) = (self.tables.get(name), other.tables.get(name));
            if one != two {
                differences.push(format!("{name}: {one:?} and {two:?}"));
            }
        }
        differences.dedup();
        assert!(differences.is_empty(), "tables differ (rows|hash|hash): {differences:#?}");
        assert_eq!(self.schema, other.schema, "schemas differ");
    }
}

/// Checks tables and indexes of all databases with `pg_amcheck` (14 and later; for 13, indexes by `amcheck` itself).
#[track_caller]
pub fn amcheck(cluster: &Cluster) {
    if cluster.major() == 13 {
        cluster.psql(
            "create extension if not exists amcheck;
             select bt_index_parent_check(i.indexrelid, true) from pg_index i join pg_class c on c.oid = i.indexrelid
             join pg_am a on a.oid = c.relam
             where a.amname = 'btree' and c.relpersistence <> 't' and i.indisready and i.indisvalid",
        );
        return;
    }
    let mut command = cluster.tool("pg_amcheck");
    command.args(["--all", "--install-missing", "--heapallindexed", "--parent-check"]);
    process::run(&mut command, Duration::from_secs(300)).expect_success();
}

/// Checks all page checksums of a stopped cluster. (Version 13's package has no `pg_checksums`.)
#[track_caller]
pub fn checksums(major: u32, pgdata: &Path) {
    let mut command = Command::new(testbed::pg_program(major, "pg_checksums"));
    command.args(["--check", "-D"]).arg(pgdata);
    process::run(user::become_user(&mut command), Duration::from_secs(300)).expect_success();
}
