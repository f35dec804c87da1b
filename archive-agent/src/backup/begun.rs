//! A backup in progress on its server, which ends it with the session.

use jiff::Timestamp;
use walpoint_base::{BackupId, Lsn, TimelineId};

/// A backup that its server has begun.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Begun {
    /// Which backup.
    pub(crate) id: BackupId,
    /// When it began, by the server's clock.
    pub(crate) started: Timestamp,
    /// Bytes of a block of the cluster.
    pub(crate) block_size: u32,
    /// Bytes to be read, about.
    pub(crate) bytes: u64,
}

impl Begun {
    /// A new one, of which recovery begins at `lsn`.
    pub(crate) fn new(
        started: Timestamp,
        timeline: TimelineId,
        lsn: Lsn,
        block_size: u32,
        bytes: u64,
    ) -> Self {
        Self { id: BackupId::new(started, timeline, lsn, rand::random()), started, block_size, bytes }
    }
}
