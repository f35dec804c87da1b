//! What came in the place of a data directory that was moved aside. Only where nothing did is it the predecessor of what is restored
//! there. Otherwise another directory was there since, and only that one could say of itself what it was.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use jiff::{SignedDuration, Timestamp};

use super::names::{at, candidates, moment, second};
use super::{RECORD, Record};

/// How much the clocks of two machines may differ.
const CLOCKS_DIFFER: SignedDuration = SignedDuration::from_mins(5);

/// What is known of the directory that was to come in its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Succession {
    /// It was never completed: the restore or the rollback was interrupted.
    Interrupted,
    /// The record of an older program does not say.
    Unknown,
    /// It was completed.
    Completed,
}

impl Record {
    /// What is known of the directory that was to come in its place.
    pub(crate) fn succession(&self) -> Succession {
        match (self.succeeded, &self.successor) {
            (Some(true), _) => Succession::Completed,
            // What a rollback puts back is complete, and waits until the last rename.
            (_, Some(successor)) if is_gone(successor) => Succession::Completed,
            (_, Some(_)) | (Some(false), None) => Succession::Interrupted,
            (None, None) => Succession::Unknown,
        }
    }

    /// Whether a rollback took it away and put back what comes in its place. One that was interrupted has done neither for certain.
    pub(crate) fn was_rolled_back(&self) -> bool {
        let came = |successor| self.succeeded == Some(true) || is_gone(successor) && !is_gone(&self.pgdata);
        self.successor.as_deref().is_some_and(came)
    }

    /// Whether it was moved after a moment of another machine's clock, for certain.
    pub(crate) fn was_moved_after(&self, earlier: Timestamp) -> bool {
        let latest = earlier.saturating_add(CLOCKS_DIFFER).unwrap_or(Timestamp::MAX);
        match self.moved {
            Some(moved) => moved > latest,
            None => moment(&self.aside, &self.pgdata).is_some_and(|(time, _)| time > second(latest)),
        }
    }

    /// Writes into the record that a directory has come in its place.
    fn succeed(&self) -> anyhow::Result<()> {
        let (own, owner) = (rustix::process::geteuid(), fs::symlink_metadata(self.aside.join(RECORD))?.uid());
        // It would not be root's word any more. That of an older program leaves in doubt what came, and so it may stay.
        if self.succeeded.is_none() && !own.is_root() && owner != own.as_raw() {
            return Ok(());
        }
        Self { succeeded: Some(true), ..self.clone() }.write(&self.aside, self.user())
    }
}

/// Whether nothing lies at a path. Where that cannot be seen, what was there may be there still.
fn is_gone(path: &Path) -> bool {
    fs::symlink_metadata(path).is_err_and(|error| error.kind() == ErrorKind::NotFound)
}

/// Writes into the records of all data directories that were moved aside from there that another one has come in their place. A restore
/// does not fail because of that: the old directory may be the one that is damaged.
pub(crate) fn succeed(pgdata: &Path) {
    // What could not be read was refused, or is to be left.
    let found = candidates(pgdata).unwrap_or_default();
    let records = found.iter().filter_map(|aside| at(aside, pgdata).ok().flatten());
    for record in records.filter(|record| record.succeeded != Some(true)) {
        if let Err(error) = record.succeed() {
            tracing::warn!(
                "could not note in {} that another data directory is in its place: {}\nHINT: If you lose {}, rename or delete \
                 {} before you restore it again.",
                record.aside.join(RECORD).display(),
                walpoint_runtime::exit::format_chain(&error),
                pgdata.display(),
                record.aside.display()
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::super::latest;
    use super::*;

    #[test]
    fn a_record_says_whether_another_directory_came() {
        let dir = tempfile::tempdir().unwrap();
        let pgdata = dir.path().canonicalize().unwrap().join("data");
        let move_aside = |successor: Option<PathBuf>| {
            fs::create_dir(&pgdata).unwrap();
            let record = Record::plan(&pgdata, Vec::new(), successor, Timestamp::now()).unwrap();
            record.go().unwrap();
            latest(&pgdata).unwrap().unwrap()
        };
        let first = move_aside(None);
        assert_eq!(first.succession(), Succession::Interrupted);
        assert!(!first.was_rolled_back(), "a restore moved it aside");
        let older = Record { succeeded: None, ..first.clone() };
        assert_eq!(older.succession(), Succession::Unknown);
        // A rollback: what it puts back waits, and then it came.
        let second = move_aside(Some(first.aside.clone()));
        assert_eq!(second.succession(), Succession::Interrupted);
        let unseen = Record { successor: Some(first.aside.join(RECORD).join("x")), ..second.clone() };
        assert_eq!(
            unseen.succession(),
            Succession::Interrupted,
            "a path that cannot be looked at is not gone"
        );
        assert!(!second.was_rolled_back(), "what it puts back waits");
        first.undo().unwrap();
        assert_eq!(second.succession(), Succession::Completed);
        assert!(second.was_rolled_back());
        fs::remove_dir(&pgdata).unwrap();

        assert!(!second.was_rolled_back(), "both are gone, and nothing says that the other one came");
        let came = Record { succeeded: Some(true), ..second.clone() };
        assert!(came.was_rolled_back(), "what came was lost since");

        let third = move_aside(None);
        older.write(&third.aside, None).unwrap();
        succeed(&pgdata);
        assert_eq!(latest(&pgdata).unwrap().unwrap().aside, second.aside);
        assert_eq!(latest(&pgdata).unwrap().unwrap().succeeded, Some(true));
        let foreign = Record::read(&third.aside).unwrap().unwrap();
        assert_eq!(foreign, older, "a record of another directory is not believed, and not changed");
    }

    #[test]
    fn what_was_moved_after_a_moment_is_known_by_the_record_or_the_name() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let record = Record::plan(Path::new("/nowhere/data"), Vec::new(), None, at(1_000)).unwrap();
        let of_an_older_program = Record { moved: None, ..record.clone() };
        for record in [record, of_an_older_program] {
            for (moment, after) in [(1_001, false), (1_000, false), (701, false), (700, false), (699, true)] {
                assert_eq!(record.was_moved_after(at(moment)), after, "{moment}");
            }
            assert!(!record.was_moved_after(Timestamp::MAX));
        }
    }
}
