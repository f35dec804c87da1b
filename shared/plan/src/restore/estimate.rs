//! How much a restore reads and about how long it takes.

use std::time::Duration;

/// How fast this place restores. The defaults are what one modest server does; measured rates of drills replace them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rates {
    /// Bytes of the cluster's files written per second.
    pub files: u64,
    /// Bytes of WAL fetched and replayed per second.
    pub replay: u64,
}

impl Default for Rates {
    fn default() -> Self {
        // A network of 2.5 Gbit/s or one disk that takes as much; replay is one process of PostgreSQL.
        Self { files: 250 << 20, replay: 60 << 20 }
    }
}

/// What a restore will cost.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Estimate {
    /// Bytes of the cluster's files, as they will be on disk before recovery.
    pub file_bytes: u64,
    /// Bytes of blocks read from the repository, before compression.
    pub block_bytes: u64,
    /// Segments of WAL to replay.
    pub wal_segments: u64,
    /// Their bytes, as PostgreSQL reads them.
    pub wal_bytes: u64,
    /// Bytes of WAL read from the repository, about.
    pub wal_stored: u64,
    /// Time for all of it, about.
    pub duration: Duration,
}

impl Estimate {
    /// Fills in the time.
    pub fn at(mut self, rates: Rates) -> Self {
        let seconds = self.file_bytes / rates.files.max(1) + self.wal_bytes / rates.replay.max(1);
        self.duration = Duration::from_secs(seconds.max(1));
        self
    }
}
