//! Whether the server that sends a backup is the one whose WAL is stored, found out as early as that can be known.
//!
//! `BASE_BACKUP` begins with a checkpoint. Where the WAL at its position is in a repository, it has to be there: a server that lags
//! behind production, a copy of it, is refused before anything is copied. Where it is not stored yet, that is looked at again while
//! the server sends: of production it comes soon, of a copy that has gone further when production gets there. What nothing is stored
//! of until the end, the backup's end proves ([`crate::backup::own_wal`]).

use std::time::Duration;

use walpoint_base::{SegmentName, SegmentNo};
use walpoint_pg::server::LastCheckpoint;
use walpoint_pg::wal::checkpoint_window;
use walpoint_repo::wal::WalArchive;

use crate::backup::own_wal::{refusal, stored_checkpoint};
use crate::check::repository::Destination;

/// How often WAL that was not there is looked for.
const PAUSE: Duration = Duration::from_secs(10);

/// The checkpoint with which a backup began, and the repositories in which it was not looked at.
pub(super) struct EarlyProof {
    checkpoint: LastCheckpoint,
    open: Vec<WalArchive>,
}

impl EarlyProof {
    /// With this checkpoint, for copies in these repositories.
    pub(super) fn new(checkpoint: LastCheckpoint, copies: &[Destination]) -> Self {
        Self { checkpoint, open: copies.iter().map(Destination::archive).collect() }
    }

    /// An error says that another server's WAL is stored there.
    pub(super) async fn look(&mut self) -> anyhow::Result<()> {
        let mut open = Vec::new();
        for archive in std::mem::take(&mut self.open) {
            match proven(&archive, &self.checkpoint).await {
                Ok(true) => {}
                Ok(false) => open.push(archive),
                Err(Unproven::Other(what)) => {
                    return Err(refusal(&archive, self.checkpoint.timeline, what));
                }
                // The end of the backup reads it again.
                Err(Unproven::Unread(error)) => {
                    tracing::debug!(
                        "the WAL of the backup's checkpoint cannot be read yet: {}",
                        walpoint_words::format_chain(&error)
                    );
                    open.push(archive);
                }
            }
        }
        self.open = open;
        Ok(())
    }

    /// Looks again and again; ends only with an error.
    pub(super) async fn watch(&mut self) -> anyhow::Error {
        loop {
            if self.open.is_empty() {
                std::future::pending::<()>().await;
            }
            tokio::time::sleep(PAUSE).await;
            if let Err(error) = self.look().await {
                return error;
            }
        }
    }
}

/// Why a checkpoint is not proven to be stored.
enum Unproven {
    /// Something else is stored there.
    Other(String),
    /// It could not be read.
    Unread(anyhow::Error),
}

/// Whether the checkpoint is in the stored WAL; `false` while nothing is stored there.
async fn proven(archive: &WalArchive, checkpoint: &LastCheckpoint) -> Result<bool, Unproven> {
    let LastCheckpoint { lsn, redo, timeline, time } = *checkpoint;
    let size = archive.lineage().segment_size;
    let names = |segment: SegmentNo| -> Vec<SegmentName> { vec![segment.name(timeline, size)] };
    // The record may end in the next segment.
    let window = checkpoint_window(archive.lineage().wal_block_size);
    let (first, last) = (SegmentNo::of(lsn, size), SegmentNo::of(lsn + window, size));
    for segment in first.0..=last.0 {
        let header = archive.header(SegmentNo(segment).name(timeline, size)).await;
        let header = header.map_err(|error| Unproven::Unread(error.into()))?;
        if header.is_none_or(|header| header.damaged) {
            return Ok(false);
        }
    }
    match stored_checkpoint(archive, size, names, lsn).await.map_err(Unproven::Unread)? {
        Ok(stored) if (stored.redo, stored.timeline, stored.time) == (redo, Some(timeline), time) => Ok(true),
        Ok(stored) => Err(Unproven::Other(format!(
            "the checkpoint at {lsn} has its redo at {}, that of the server at {redo}",
            stored.redo
        ))),
        Err(what) => Err(Unproven::Other(what)),
    }
}
