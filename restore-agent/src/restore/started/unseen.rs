//! How far a recovery is where its server takes no sessions: by `pg_control`, and by what its startup process calls itself.
//!
//! Both lag behind: `pg_control` has what the pages on disk need, and the title the segment that is being replayed.

use std::io::ErrorKind;
use std::path::Path;

use walpoint_base::{Lsn, SegmentName, SegmentSize};
use walpoint_pg::control::{CONTROL_FILE, ClusterState, ControlFile};
use walpoint_pg::label::BACKUP_LABEL_FILE;

use crate::restore::owners::Owner;
use crate::server::owner;

/// What the startup process calls itself while it replays (`"recovering %s"` in PostgreSQL's `xlogreader`).
const TITLE: &str = "recovering ";

/// Bytes of a `pg_control` that are read: all of it.
const LONGEST: u64 = 8192;

/// A data directory, and whose it is, if not this process's user's.
pub(super) type Data<'a> = (&'a Path, Option<Owner>);

/// At least this was replayed, as far as it shows. `pid`: the server's.
pub(super) fn replayed(data: Data<'_>, pid: u32, size: SegmentSize) -> Option<Lsn> {
    let titled = titles(pid).iter().find_map(|title| segment(title, size));
    control(data).map(|control| noted(&control)).max(titled).filter(|lsn| lsn.is_valid())
}

/// Whether what was replayed makes the data consistent.
pub(super) fn is_consistent(data: Data<'_>) -> bool {
    has_begun(data.0)
        && control(data).is_some_and(|control| {
            control.state == ClusterState::InArchiveRecovery
                && !control.backup_start_point.is_valid()
                && !control.backup_end_required
        })
}

/// Whether `pg_control` says something of this recovery. Until the server has written it, it is that of the backup, which a standby's says
/// is in recovery and needs nothing; then the server puts the label out of the way.
fn has_begun(pgdata: &Path) -> bool {
    let label = std::fs::symlink_metadata(pgdata.join(BACKUP_LABEL_FILE));
    label.is_err_and(|error| error.kind() == ErrorKind::NotFound)
}

fn control((pgdata, owner): Data<'_>) -> Option<ControlFile> {
    // A file that is being written is read again with the next look.
    ControlFile::parse(&owner::read(&pgdata.join(CONTROL_FILE), owner, LONGEST).ok()?).ok()
}

fn noted(control: &ControlFile) -> Lsn {
    control.min_recovery_point.max(control.checkpoint.lsn)
}

/// What the children of a process call themselves.
fn titles(pid: u32) -> Vec<String> {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let title = |child: &str| std::fs::read(format!("/proc/{child}/cmdline")).ok();
    let titles = children.split_ascii_whitespace().filter_map(title);
    titles.map(|title| String::from_utf8_lossy(&title).trim_end_matches('\0').to_owned()).collect()
}

/// Where the segment begins that a process says it replays.
fn segment(title: &str, size: SegmentSize) -> Option<Lsn> {
    let name = title.split_once(TITLE)?.1.split_ascii_whitespace().next()?;
    Some(name.parse::<SegmentName>().ok()?.number(size)?.start(size))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_segment_in_a_title_is_found() {
        let size = SegmentSize::new(16 << 20).unwrap();
        let found = |title: &str| segment(title, size);
        assert_eq!(
            found("postgres: main: startup recovering 000000010000000000000005"),
            Some(Lsn(0x500_0000))
        );
        assert_eq!(
            found("postgres: startup recovering 00000001000000010000000A \0\0"),
            Some(Lsn(0x1_0A00_0000))
        );
        assert_eq!(found("postgres: startup waiting for 000000010000000000000005"), None);
        assert_eq!(found("postgres: startup recovering x"), None);
    }

    #[test]
    fn the_control_file_of_the_backup_says_nothing_of_the_recovery() {
        let dir = tempfile::tempdir().unwrap();
        walpoint_base::durable::create(&dir.path().join("backup_label"), b"").unwrap();
        assert!(!has_begun(dir.path()));
        walpoint_base::durable::remove(&dir.path().join("backup_label")).unwrap();
        assert!(has_begun(dir.path()));
    }

    #[test]
    fn children_are_seen_by_their_titles() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        // The list of a thread's children: those of the test's own thread are in another one.
        let task = format!("/proc/self/task/{}/children", rustix::thread::gettid().as_raw_nonzero());
        let listed = std::fs::read_to_string(task).unwrap_or_default();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(listed.split_ascii_whitespace().any(|pid| pid == child.id().to_string()), "{listed}");
        assert_eq!(titles(0), [""; 0]);
    }
}
