//! Whether the WAL under the names that a backup needs is that of the server which was copied. Names prove nothing: a clone
//! writes segments of the same names as the server it was copied from.
//!
//! Two things show it. The checkpoints that the backup label and the copied `pg_control` name have to be in the stored WAL, at
//! their positions and with the same content: recovery reads the first of them before anything else. And where the
//! data directory is visible, segments that are still in `pg_wal` have to be the stored ones.

use std::io::{self, Write};
use std::path::Path;

use anyhow::{Context, bail};
use walpoint_base::{Lsn, SegmentName, SegmentNo, SegmentSize, TimelineId, WalFileName};
use walpoint_pg::control::{CheckpointCopy, ClusterState, ControlFile};
use walpoint_pg::label::BackupLabel;
use walpoint_pg::wal::{WalIdentity, checkpoint_at, checkpoint_window};
use walpoint_repo::backup::BackupDescription;
use walpoint_repo::wal::WalArchive;

use super::needed_wal::BackupWal;
use crate::wal::comparison::{self, Comparison};
use crate::wal::split_brain::SplitBrain;

/// Segments of `pg_wal`, the newest ones, that have to be the stored ones; those before are proven by the chain.
const ENOUGH: usize = 2;

/// The checkpoints of the server that was copied.
#[derive(Debug)]
pub(crate) struct Checkpoints {
    label: BackupLabel,
    control: CheckpointCopy,
    from_standby: bool,
    stop: Lsn,
}

impl Checkpoints {
    /// Of a backup with these facts and that `pg_control`. Fails if they are not of one server.
    pub(crate) fn new(facts: &BackupDescription, control: ControlFile) -> anyhow::Result<Self> {
        let label = BackupLabel::parse(&facts.backup_label.0).context("the backup label cannot be used")?;
        require_one_server(facts.from_standby, control.state)?;
        let replayed = facts.from_standby.then_some(control.min_recovery_point);
        require_reached(label.checkpoint, control.checkpoint.lsn, replayed)?;
        let (control, from_standby, stop) = (control.checkpoint, facts.from_standby, facts.stop_lsn);
        Ok(Self { label, control, from_standby, stop })
    }

    /// Where recovery from the backup starts, and where it is consistent.
    pub(crate) fn range(&self) -> (Lsn, Lsn) {
        (self.label.start, self.stop)
    }

    /// An error says that the stored WAL is not that of the server which was copied. The WAL that the backup needs is there.
    pub(crate) async fn prove(&self, archive: &WalArchive, needed: &BackupWal) -> anyhow::Result<()> {
        let Self { label, control, .. } = self;
        let names = |segment| needed.names(segment);
        let stored = stored_checkpoint(archive, needed.size(), names, label.checkpoint).await?;
        let what = match stored {
            Err(what) => Some(what),
            Ok(stored) if (stored.redo, stored.timeline) != (label.start, Some(label.timeline)) => {
                let timeline = stored.timeline.map_or(0, TimelineId::get);
                Some(format!(
                    "the checkpoint at {} has its redo at {} on timeline {timeline}, that of the backup at {} on timeline {}",
                    label.checkpoint, stored.redo, label.start, label.timeline
                ))
            }
            Ok(_) => None,
        };
        if let Some(what) = what {
            return Err(refusal(archive, label.timeline, what));
        }
        // A later one may have been made meanwhile, but nothing that the backup does not need.
        if !needed.holds(control.lsn) || control.lsn >= self.stop {
            return Ok(());
        }
        let what = match stored_checkpoint(archive, needed.size(), names, control.lsn).await? {
            Err(what) => what,
            Ok(stored) if self.is_copied(&stored) => return Ok(()),
            Ok(stored) => format!(
                "the checkpoint at {} was made at {} with {} as next transaction, that of the backup at {} with {}",
                control.lsn,
                time(stored.time),
                stored.next_xid,
                time(control.time),
                control.next_xid
            ),
        };
        Err(refusal(archive, label.timeline, what))
    }

    /// Whether `pg_control` has a copy of that checkpoint. On a standby it goes on counting transactions.
    fn is_copied(&self, stored: &CheckpointCopy) -> bool {
        let same = |c: &CheckpointCopy| (c.redo, c.timeline, c.previous_timeline, c.time);
        same(stored) == same(&self.control) && (self.from_standby || stored.next_xid == self.control.next_xid)
    }
}

/// How a data directory comes to hold another server's `pg_control`.
const ANOTHER_WRITES: &str = "DETAIL: Another server writes to this data directory: PostgreSQL finds pg_control by the directory's \
     path.\nHINT: Make sure that no other server uses the same path, then run the backup again.";

/// Refuses a label and a `pg_control` of two servers. A server writes `pg_control` by the path of its data directory: where that leads
/// to another server's files meanwhile, it writes there. PostgreSQL would not start from such a backup, or from the wrong state.
fn require_one_server(from_standby: bool, state: ClusterState) -> anyhow::Result<()> {
    let (label, control) = match (from_standby, state) {
        (true, ClusterState::InProduction) => ("standby", "primary"),
        (false, ClusterState::InArchiveRecovery) => ("primary", "standby"),
        _ => return Ok(()),
    };
    bail!(
        "no backup was taken: the server is a {label}, and the global/pg_control that was copied is that \
         of a {control}\n{ANOTHER_WRITES}"
    )
}

/// Refuses a `pg_control` that is behind the start of the backup. That of the server which made it names the checkpoint that the backup
/// begins with, or a later one, and on a standby that has been replayed (`CreateRestartPoint` in PostgreSQL's `xlog.c`).
fn require_reached(begin: Lsn, checkpoint: Lsn, replayed: Option<Lsn>) -> anyhow::Result<()> {
    let reached = replayed.map_or(checkpoint, |replayed| replayed.min(checkpoint));
    if reached >= begin {
        return Ok(());
    }
    bail!(
        "no backup was taken: the backup begins with the checkpoint at {begin}, and the global/pg_control \
         that was copied has only reached \
         {reached}\n{ANOTHER_WRITES}"
    )
}

/// The WAL that is stored there is not that of the server.
pub(crate) fn refusal(archive: &WalArchive, timeline: TimelineId, what: String) -> anyhow::Error {
    anyhow::anyhow!("no backup was taken: {}", SplitBrain::new(archive, timeline, what))
}

fn time(seconds: i64) -> String {
    jiff::Timestamp::from_second(seconds).map_or_else(|_| seconds.to_string(), |time| time.to_string())
}

/// Refuses where a segment in `pg_wal` differs from the stored one of the same name.
pub(crate) async fn compare(
    archive: &WalArchive,
    cluster: &WalIdentity,
    wal: &Path,
    needed: &BackupWal,
) -> anyhow::Result<()> {
    let mut same = 0;
    for name in needed.newest_first() {
        if !comparison::is_finished(wal, name) {
            continue;
        }
        match comparison::segment(archive, cluster, wal, name).await? {
            Comparison::Unknown => {}
            Comparison::Same => same += 1,
            Comparison::Other(what) => {
                bail!("no backup was taken: {}", SplitBrain::new(archive, name.timeline, what))
            }
        }
        if same == ENOUGH {
            break;
        }
    }
    Ok(())
}

/// The checkpoint whose record starts at a position of stored WAL, or what is there instead.
pub(crate) async fn stored_checkpoint(
    archive: &WalArchive,
    size: SegmentSize,
    names: impl Fn(SegmentNo) -> Vec<SegmentName>,
    lsn: Lsn,
) -> anyhow::Result<Result<CheckpointCopy, String>> {
    let page = archive.lineage().wal_block_size;
    let begin = Lsn(lsn.0 - lsn.0 % u64::from(page.max(1)));
    let end = begin + checkpoint_window(page);
    let (mut wal, mut at) = (Vec::new(), begin);
    while at < end {
        let segment = SegmentNo::of(at, size);
        let upto = end.min(segment.end(size));
        let window = Window { skip: at.0 - segment.start(size).0, left: upto.0 - at.0, bytes: Vec::new() };
        // What lies behind the record may be in no repository yet.
        let Some(bytes) = part(archive, names(segment), window).await? else { break };
        wal.extend_from_slice(&bytes);
        at = upto;
    }
    Ok(checkpoint_at(lsn, page, &wal))
}

async fn part(
    archive: &WalArchive,
    names: Vec<SegmentName>,
    window: Window,
) -> anyhow::Result<Option<Vec<u8>>> {
    for name in names {
        if let Some(reader) = archive.read(WalFileName::Segment(name)).await? {
            let (window, _) = reader.write_to(window).await?;
            return Ok(Some(window.bytes));
        }
    }
    Ok(None)
}

/// Keeps a part of what is written to it.
struct Window {
    skip: u64,
    left: u64,
    bytes: Vec<u8>,
}

impl Write for Window {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        let length = u64::try_from(piece.len()).unwrap_or(u64::MAX);
        let skipped = self.skip.min(length);
        let taken = self.left.min(length - skipped);
        let range = usize::try_from(skipped).ok().zip(usize::try_from(skipped + taken).ok());
        let kept = range.and_then(|(from, until)| piece.get(from..until)).unwrap_or_default();
        self.bytes.extend_from_slice(kept);
        (self.skip, self.left) = (self.skip - skipped, self.left - taken);
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_and_a_control_file_are_of_one_server() {
        use ClusterState::{InArchiveRecovery, InProduction};
        assert!(
            require_one_server(true, InArchiveRecovery).is_ok()
                && require_one_server(false, InProduction).is_ok()
        );
        assert!(
            require_one_server(true, InProduction).is_err()
                && require_one_server(false, InArchiveRecovery).is_err()
        );
    }

    #[test]
    fn a_control_file_has_reached_the_beginning_of_the_backup() {
        let reached = |checkpoint, replayed: Option<u64>| {
            require_reached(Lsn(100), Lsn(checkpoint), replayed.map(Lsn)).is_ok()
        };
        assert!(reached(100, None) && reached(200, None) && reached(100, Some(180)));
        assert!(!reached(99, None) && !reached(99, Some(180)) && !reached(100, Some(99)));
    }

    #[test]
    fn a_window_keeps_its_part_however_it_comes() {
        let all: Vec<u8> = (0..100).collect();
        for step in [1, 7, 30, 100] {
            let mut window = Window { skip: 23, left: 40, bytes: Vec::new() };
            all.chunks(step).for_each(|piece| window.write_all(piece).unwrap());
            assert_eq!(window.bytes, all[23..63], "{step}");
        }
    }
}
