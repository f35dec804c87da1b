//! The pass over the timelines in which PostgreSQL looks for a segment: the youngest timeline of its path first, then the older ones.
//!
//! A prefetcher and the processes that fetch one file each answer the same pass, so what PostgreSQL did not get is noted in `pg_wal`, in
//! `walpoint-pass`: the name of the segment, at the time of the file. Missing or damaged, it counts as none, as where another process may
//! not write it: then an older timeline's segment is the first that PostgreSQL asks for. PostgreSQL's next question of another kind, of
//! which there is one at the end of each recovery, removes it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use walpoint_base::{SegmentName, TimelineId, WalFileName, durable};

use crate::wal::atomic_file::{self, Durability};

/// Its name in `pg_wal`.
const FILE: &str = "walpoint-pass";

/// PostgreSQL asks for an older timeline's file at once after the answer for the younger one.
const ONE_PASS: Duration = Duration::from_secs(10);

/// The pass of one data directory.
#[derive(Debug)]
pub(crate) struct Pass {
    path: PathBuf,
}

impl Pass {
    /// The pass of the server whose WAL lies there.
    pub(crate) fn in_wal(wal: &Path) -> Self {
        Self { path: wal.join(FILE) }
    }

    /// PostgreSQL asks for a file: the youngest timeline that it did not get this segment of. What was refused before only counts for
    /// an older file of the same number.
    pub(crate) fn ask(&self, name: WalFileName) -> Option<TimelineId> {
        self.ask_at(name, SystemTime::now())
    }

    fn ask_at(&self, name: WalFileName, now: SystemTime) -> Option<TimelineId> {
        let (refused, at) = self.refused()?;
        // A clock that is set back makes the note one of the future.
        let age = now.duration_since(at).unwrap_or_else(|ahead| ahead.duration());
        let is_next = matches!(name, WalFileName::Segment(name)
            if (name.log, name.segment) == (refused.log, refused.segment) && name.timeline < refused.timeline);
        if is_next && age < ONE_PASS {
            return Some(refused.timeline);
        }
        if let Err(error) = durable::remove(&self.path) {
            tracing::debug!("{} stays: {error}", self.path.display());
        }
        None
    }

    /// PostgreSQL does not get a file. `youngest`: what [`Self::ask`] answered; the path of that timeline has all others of the pass.
    pub(crate) fn refuse(&self, name: WalFileName, youngest: Option<TimelineId>) {
        let WalFileName::Segment(name) = name else { return };
        let refused = SegmentName { timeline: youngest.unwrap_or(name.timeline), ..name };
        // No timeline is older.
        if refused.timeline == TimelineId::FIRST {
            return;
        }
        // Lost in a crash, it costs nothing: PostgreSQL begins another pass.
        let noted = atomic_file::land(&self.path, refused.to_string().as_bytes(), Durability::Readers);
        if let Err(error) = noted {
            let error = walpoint_words::format_chain(&error);
            tracing::warn!("that \"{refused}\" was not given is not noted: {error}");
        }
    }

    fn refused(&self) -> Option<(SegmentName, SystemTime)> {
        let at = fs::metadata(&self.path).and_then(|meta| meta.modified()).ok()?;
        let refused = fs::read_to_string(&self.path).ok()?.parse().ok()?;
        Some((refused, at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> WalFileName {
        text.parse().unwrap()
    }

    #[test]
    fn a_pass_ends_with_another_question() {
        let dir = tempfile::tempdir().unwrap();
        let pass = || Pass::in_wal(dir.path());
        let [parent, child, grandchild] =
            ["000000010000000000000005", "000000020000000000000005", "000000030000000000000005"].map(file);
        let youngest = Some(grandchild.timeline());
        assert_eq!(pass().ask(grandchild), None);
        pass().refuse(grandchild, None);
        assert_eq!(pass().ask(child), youngest, "of another process, too");
        pass().refuse(child, youngest);
        assert_eq!(pass().ask(parent), youngest);
        assert_eq!(pass().ask_at(child, SystemTime::now() + ONE_PASS), None, "much later");
        pass().refuse(child, None);
        assert_eq!(pass().ask(file("00000004.history")), None, "a history");
        assert_eq!(pass().ask(parent), None);
        pass().refuse(parent, None);
        assert_eq!(pass().ask(child), None, "a younger one is another pass");
        pass().refuse(child, None);
        assert_eq!(pass().ask(file("000000010000000000000006")), None, "another segment");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is left");
        durable::create(&dir.path().join(FILE), b"damaged").unwrap();
        assert_eq!(pass().ask(parent), None);
    }
}
