//! What is measured: kinds of work on kinds of stores.

use crate::contestants::Contestant;
use crate::place::StoreKind;

/// A kind of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
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
pub struct Row {
    /// How it is called.
    pub name: &'static str,
    /// The work.
    pub kind: Kind,
    /// The store.
    pub store: StoreKind,
    /// For people.
    pub title: &'static str,
}

/// All rows, in the order in which they are measured.
pub const ROWS: [Row; 11] = [
    Row {
        name: "archive-local",
        kind: Kind::Archive,
        store: StoreKind::Local,
        title: "Archiving to a directory",
    },
    Row {
        name: "fetch-local",
        kind: Kind::Fetch { pace_ms: 0 },
        store: StoreKind::Local,
        title: "Fetching from a directory as fast as possible",
    },
    Row { name: "archive-s3", kind: Kind::Archive, store: StoreKind::S3, title: "Archiving to S3 over TLS" },
    Row {
        name: "fetch-s3",
        kind: Kind::Fetch { pace_ms: 0 },
        store: StoreKind::S3,
        title: "Fetching from S3 over TLS as fast as possible",
    },
    Row {
        name: "fetch-paced-s3",
        kind: Kind::Fetch { pace_ms: 30 },
        store: StoreKind::S3,
        title: "Fetching from S3 over TLS, 30 ms of replay for each segment",
    },
    Row {
        name: "archive-sink",
        kind: Kind::Archive,
        store: StoreKind::Sink,
        title: "Archiving to a server that keeps nothing",
    },
    Row {
        name: "backup-local",
        kind: Kind::Backup,
        store: StoreKind::Local,
        title: "Full backup to a directory",
    },
    Row {
        name: "restore-local",
        kind: Kind::Restore,
        store: StoreKind::Local,
        title: "Restore from a directory",
    },
    Row { name: "backup-s3", kind: Kind::Backup, store: StoreKind::S3, title: "Full backup to S3 over TLS" },
    Row { name: "restore-s3", kind: Kind::Restore, store: StoreKind::S3, title: "Restore from S3 over TLS" },
    Row {
        name: "plan-s3",
        kind: Kind::Plan,
        store: StoreKind::S3,
        title: "Planning a restore over 100,000 segments on S3, to a moment 900 segments after a backup",
    },
];

/// The rows behind a line with each of these round trips, in milliseconds.
macro_rules! far {
    ($($ms:literal),*) => {
        [$(
            Row {
                name: concat!("archive-s3-", $ms, "ms"),
                kind: Kind::Archive,
                store: StoreKind::Far { round_trip_ms: $ms },
                title: concat!("Archiving to S3 over TLS, ", $ms, " ms away"),
            },
            Row {
                name: concat!("fetch-s3-", $ms, "ms"),
                kind: Kind::Fetch { pace_ms: 0 },
                store: StoreKind::Far { round_trip_ms: $ms },
                title: concat!("Fetching from S3 over TLS as fast as possible, ", $ms, " ms away"),
            },
            Row {
                name: concat!("backup-s3-", $ms, "ms"),
                kind: Kind::Backup,
                store: StoreKind::Far { round_trip_ms: $ms },
                title: concat!("Full backup to S3 over TLS, ", $ms, " ms away"),
            },
            Row {
                name: concat!("restore-s3-", $ms, "ms"),
                kind: Kind::Restore,
                store: StoreKind::Far { round_trip_ms: $ms },
                title: concat!("Restore from S3 over TLS, ", $ms, " ms away"),
            },
            Row {
                name: concat!("plan-s3-", $ms, "ms"),
                kind: Kind::Plan,
                store: StoreKind::Far { round_trip_ms: $ms },
                title: concat!("Planning a restore over 100,000 segments on S3, ", $ms, " ms away"),
            },
        )*]
    };
}

/// The price of distance: measured when they are named, or all of them by the name [`FAR`].
pub const FAR_ROWS: [Row; 20] = far!(0, 20, 80, 200);

/// A name for all of [`FAR_ROWS`].
pub const FAR: &str = "far";

/// The row of that name.
pub fn find(name: &str) -> Option<Row> {
    ROWS.into_iter().chain(FAR_ROWS).find(|row| row.name == name)
}

/// The rows that are measured: those that are named, or without any name all but [`FAR_ROWS`].
pub fn chosen(names: &[String]) -> Vec<Row> {
    let is_named = |row: &Row| names.iter().any(|name| name == row.name);
    let near = ROWS.into_iter().filter(|row| names.is_empty() || is_named(row));
    let far = FAR_ROWS.into_iter().filter(|row| is_named(row) || names.iter().any(|name| name == FAR));
    near.chain(far).collect()
}

impl Row {
    /// Whether a contestant takes part.
    pub fn admits(&self, contestant: &Contestant) -> bool {
        let command = match self.kind {
            Kind::Archive => &contestant.archive,
            Kind::Fetch { .. } => &contestant.fetch,
            Kind::Backup => &contestant.backup,
            Kind::Restore => &contestant.restore,
            Kind::Plan => &contestant.plan,
        };
        command.is_some()
            && contestant.store.contains_key(self.store.name())
            && (contestant.rows.is_empty() || contestant.rows.iter().any(|name| name == self.name))
    }

    /// Whether its work is on segments of WAL, and not on a cluster.
    pub fn is_about_wal(&self) -> bool {
        matches!(self.kind, Kind::Archive | Kind::Fetch { .. })
    }

    /// Whether it needs a running cluster.
    pub fn needs_cluster(&self) -> bool {
        matches!(self.kind, Kind::Backup | Kind::Restore)
    }
}
