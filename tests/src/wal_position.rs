//! Asking a cluster about its WAL, and making it move on.

use std::time::Duration;

use crate::cluster::Cluster;
use crate::wait;

impl Cluster {
    /// `pg_current_wal_lsn()` on a primary, `pg_last_wal_replay_lsn()` on a standby; as PostgreSQL prints it.
    pub fn lsn(&self) -> String {
        self.psql(
            "select case when pg_is_in_recovery() then pg_last_wal_replay_lsn() else pg_current_wal_insert_lsn() end",
        )
    }

    /// The system identifier.
    pub fn system_id(&self) -> u64 {
        self.psql("select system_identifier from pg_control_system()").parse().expect("a number")
    }

    /// The timeline of the last checkpoint.
    pub fn timeline(&self) -> u32 {
        self.psql("select timeline_id from pg_control_checkpoint()").parse().expect("a number")
    }

    /// The name of the segment that is being written.
    pub fn current_segment(&self) -> String {
        self.psql("select pg_walfile_name(pg_current_wal_insert_lsn())")
    }

    /// Writes something, switches to a new segment and gives the name of the finished one.
    pub fn switch_wal(&self) -> String {
        let sql = "select pg_logical_emit_message(false, 'walpoint', 'switch'); \
                   select pg_walfile_name(pg_switch_wal())";
        self.psql(sql).lines().last().expect("a name").to_owned()
    }

    /// Fills about this many MiB of WAL, in transactions of at most 64 MiB.
    pub fn fill_wal_mb(&self, mb: u32) {
        let mut left = mb;
        while left > 0 {
            let now = left.min(64);
            self.psql(&format!(
                "select count(pg_logical_emit_message(false, 'walpoint', repeat('x', 1048576 - 8192))) \
                 from generate_series(1, {now})"
            ));
            left -= now;
        }
    }

    /// Waits until PostgreSQL's own statistics say that this file, or a later one, was archived.
    #[track_caller]
    pub fn wait_archived(&self, name: &str) {
        let sql = format!("select coalesce(last_archived_wal, '') >= '{name}' from pg_stat_archiver");
        self.wait_for(&sql, "t");
    }

    /// Waits until `archive_status` holds `<name>.done`.
    #[track_caller]
    pub fn wait_done(&self, name: &str) {
        let done = self.wal_dir().join("archive_status").join(format!("{name}.done"));
        wait::until_true(Duration::from_secs(60), &format!("{name} is archived\n{}", self.log()), || {
            done.exists()
        });
    }

    /// How often `archive_command` failed, and the file it failed on last.
    pub fn archive_failures(&self) -> (u64, String) {
        let row = self.psql("select failed_count, coalesce(last_failed_wal, '') from pg_stat_archiver");
        let (count, name) = row.split_once('|').expect("two columns");
        (count.parse().expect("a number"), name.to_owned())
    }

    /// The segment files in `pg_wal`, sorted: whole names only, recycled ones included.
    pub fn segments(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.wal_dir()).expect("read pg_wal").flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        let mut names: Vec<String> =
            names.filter(|n| n.len() == 24 && n.bytes().all(|b| b.is_ascii_hexdigit())).collect();
        names.sort();
        names
    }
}
