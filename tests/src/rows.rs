//! Rows whose place in the WAL is known: what a restore to a target must contain, and what not.

use crate::cluster::Cluster;

/// A table of numbered rows, one transaction each.
#[derive(Debug)]
pub struct Ledger {
    table: String,
    next: u32,
}

/// One committed row, and where it lies in time and WAL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    /// The row's number.
    pub n: u32,
    /// Its transaction id, as recovery targets take it.
    pub xid: u32,
    /// The insert position before the transaction began.
    pub before: String,
    /// The insert position after its commit: restoring to this LSN contains the row.
    pub after: String,
    /// The server's clock before the transaction began (UTC, with offset).
    pub time_before: String,
    /// The server's clock after its commit.
    pub time_after: String,
    /// The segment that was being written after the commit.
    pub segment: String,
}

impl Ledger {
    /// Makes the table.
    #[track_caller]
    pub fn create(cluster: &Cluster, table: &str) -> Ledger {
        cluster.psql(&format!(
            "create table {table} (n int primary key, label text, at timestamptz default clock_timestamp())"
        ));
        Ledger { table: table.to_owned(), next: 1 }
    }

    /// Commits one more row.
    #[track_caller]
    pub fn append(&mut self, cluster: &Cluster) -> Mark {
        self.append_as(cluster, "")
    }

    /// Commits one more row that carries a label, to tell the branches of a fork apart.
    #[track_caller]
    pub fn append_as(&mut self, cluster: &Cluster, label: &str) -> Mark {
        let clock = "to_char(clock_timestamp() at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS.US') || '+00'";
        let n = self.next;
        self.next += 1;
        // The pauses keep the clock readings apart from the commit's own time.
        let rows = cluster.psql(&format!(
            "select pg_current_wal_insert_lsn(); select {clock}; select pg_sleep(0.01);
             begin; insert into {table} (n, label) values ({n}, '{label}'); select txid_current() % 4294967296; commit;
             select pg_sleep(0.01); select {clock}; select pg_current_wal_insert_lsn();
             select pg_walfile_name(pg_current_wal_insert_lsn())",
            table = self.table
        ));
        let rows: Vec<&str> = rows.lines().filter(|line| !line.is_empty()).collect();
        let [before, time_before, xid, time_after, after, segment] = rows[..] else { panic!("{rows:?}") };
        Mark {
            n,
            xid: xid.parse().expect("an xid"),
            before: before.to_owned(),
            after: after.to_owned(),
            time_before: time_before.to_owned(),
            time_after: time_after.to_owned(),
            segment: segment.to_owned(),
        }
    }

    /// Commits several rows.
    #[track_caller]
    pub fn append_many(&mut self, cluster: &Cluster, count: u32) -> Vec<Mark> {
        (0..count).map(|_| self.append(cluster)).collect()
    }

    /// The labels of all rows that a cluster has, in the order of their numbers.
    #[track_caller]
    pub fn labels(&self, cluster: &Cluster) -> String {
        cluster.psql(&format!("select coalesce(string_agg(label, ' ' order by n), '') from {}", self.table))
    }

    /// The highest row that a cluster has; panics when one below it is missing. 0: none.
    #[track_caller]
    pub fn highest(&self, cluster: &Cluster) -> u32 {
        let row = cluster.psql(&format!("select coalesce(max(n), 0), count(*) from {}", self.table));
        let (highest, count) = row.split_once('|').expect("two columns");
        assert_eq!(highest, count, "rows are missing in {}", self.table);
        highest.parse().expect("a number")
    }
}
