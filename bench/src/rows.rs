//! What is measured: kinds of work on kinds of stores.

use crate::place::StoreKind;
use crate::tools::Tool;

/// A kind of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowKind {
    /// `archive_command` for a backlog of segments.
    Archive,
    /// `restore_command` for the same segments.
    Fetch {
        /// Milliseconds that PostgreSQL replays each.
        pace_ms: u64,
    },
    /// A full backup of the running cluster.
    Backup,
    /// A restore of that backup.
    Restore,
    /// Planning a restore from a long archive.
    Plan,
}

/// A row of the comparison.
#[derive(Debug, Clone, Copy)]
pub struct BenchRow {
    /// How it is called.
    pub name: &'static str,
    /// The work.
    pub kind: RowKind,
    /// The store.
    pub store: StoreKind,
    /// For people.
    pub title: &'static str,
}

/// All rows, in the order in which they are measured.
pub const ROWS: [BenchRow; 11] = [
    BenchRow {
        name: "archive-local",
        kind: RowKind::Archive,
        store: StoreKind::Local,
        title: "Archiving to a directory",
    },
    BenchRow {
        name: "fetch-local",
        kind: RowKind::Fetch { pace_ms: 0 },
        store: StoreKind::Local,
        title: "Fetching from a directory as fast as possible",
    },
    BenchRow {
        name: "archive-s3",
        kind: RowKind::Archive,
        store: StoreKind::S3,
        title: "Archiving to S3 over TLS",
    },
    BenchRow {
        name: "fetch-s3",
        kind: RowKind::Fetch { pace_ms: 0 },
        store: StoreKind::S3,
        title: "Fetching from S3 over TLS as fast as possible",
    },
    BenchRow {
        name: "fetch-paced-s3",
        kind: RowKind::Fetch { pace_ms: 30 },
        store: StoreKind::S3,
        title: "Fetching from S3 over TLS, 30 ms of replay for each segment",
    },
    BenchRow {
        name: "archive-sink",
        kind: RowKind::Archive,
        store: StoreKind::Sink,
        title: "Archiving to a server that keeps nothing",
    },
    BenchRow {
        name: "backup-local",
        kind: RowKind::Backup,
        store: StoreKind::Local,
        title: "Full backup to a directory",
    },
    BenchRow {
        name: "restore-local",
        kind: RowKind::Restore,
        store: StoreKind::Local,
        title: "Restore from a directory",
    },
    BenchRow {
        name: "backup-s3",
        kind: RowKind::Backup,
        store: StoreKind::S3,
        title: "Full backup to S3 over TLS",
    },
    BenchRow {
        name: "restore-s3",
        kind: RowKind::Restore,
        store: StoreKind::S3,
        title: "Restore from S3 over TLS",
    },
    BenchRow {
        name: "plan-s3",
        kind: RowKind::Plan,
        store: StoreKind::S3,
        title: "Planning a restore over 100,000 segments on S3, to a moment 900 segments after a backup",
    },
];

/// The rows behind a line with each of these round trips, in milliseconds.
macro_rules! far {
    ($($ms:literal),*) => {
        [$(
            BenchRow {
                name: concat!("archive-s3-", $ms, "ms"),
                kind: RowKind::Archive,
                store: StoreKind::Far { round_trip_ms: $ms },
                title: concat!("Archiving to S3 over TLS, ", $ms, " ms away"),
            },
            BenchRow {
                name: concat!("fetch-s3-", $ms, "ms"),
                kind: RowKind::Fetch { pace_ms: 0 },
                store: StoreKind::Far { round_trip_ms: $ms },
                title: concat!("Fetching from S3 over TLS as fast as possible, ", $ms, " ms away"),
            },
            BenchRow {
                name: concat!("backup-s3-", $ms, "ms"),
                kind: RowKind::Backup,
                store: StoreKind::Far { round_trip_ms: $ms },
                title: concat!("Full backup to S3 over TLS, ", $ms, " ms away"),
            },
            BenchRow {
                name: concat!("restore-s3-", $ms, "ms"),
                kind: RowKind::Restore,
                store: StoreKind::Far { round_trip_ms: $ms },
                title: concat!("Restore from S3 over TLS, ", $ms, " ms away"),
            },
            BenchRow {
                name: concat!("plan-s3-", $ms, "ms"),
                kind: RowKind::Plan,
                store: StoreKind::Far { round_trip_ms: $ms },
                title: concat!("Planning a restore over 100,000 segments on S3, ", $ms, " ms away"),
            },
        )*]
    };
}

/// The price of distance: measured when they are named, or all of them by the name [`FAR`].
pub const FAR_ROWS: [BenchRow; 20] = far!(0, 20, 80, 200);

/// A name for all of [`FAR_ROWS`].
pub const FAR: &str = "far";

/// The row of that name.
pub fn find(name: &str) -> Option<BenchRow> {
    ROWS.into_iter().chain(FAR_ROWS).find(|row| row.name == name)
}

/// The rows that are measured: those that are named, or without any name all but [`FAR_ROWS`].
pub fn chosen(names: &[String]) -> Vec<BenchRow> {
    let is_named = |row: &BenchRow| names.iter().any(|name| name == row.name);
    let near = ROWS.into_iter().filter(|row| names.is_empty() || is_named(row));
    let far = FAR_ROWS.into_iter().filter(|row| is_named(row) || names.iter().any(|name| name == FAR));
    near.chain(far).collect()
}

impl BenchRow {
    /// Whether a tool takes part.
    pub fn admits(&self, tool: &Tool) -> bool {
        let command = match self.kind {
            RowKind::Archive => &tool.archive,
            RowKind::Fetch { .. } => &tool.fetch,
            RowKind::Backup => &tool.backup,
            RowKind::Restore => &tool.restore,
            RowKind::Plan => &tool.plan,
        };
        command.is_some()
            && tool.store.contains_key(self.store.name())
            && (tool.rows.is_empty() || tool.rows.iter().any(|name| name == self.name))
    }

    /// Whether its work is on segments of WAL, and not on a cluster.
    pub fn is_about_wal(&self) -> bool {
        matches!(self.kind, RowKind::Archive | RowKind::Fetch { .. })
    }

    /// Whether it needs a running cluster.
    pub fn needs_cluster(&self) -> bool {
        matches!(self.kind, RowKind::Backup | RowKind::Restore)
    }
}
