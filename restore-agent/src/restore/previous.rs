//! Data directories that were moved aside for another one, and their way back.
//!
//! A directory goes to `<pgdata>.walpoint-old-<time>`, on the same filesystem, so that moving it is a rename and needs no
//! space. What lies outside it and is in the new one's way (tablespaces, `pg_wal`) goes along, and its links follow, so that it
//! stays a whole cluster; links outside it stay for the new one. [`RECORD`] in it says where everything belongs. Nothing is ever
//! deleted here.
//!
//! The record is written first, then the data directory is renamed, then the rest, one by one: a crash leaves the old
//! directory in place, or none at all and a record of what is still to be done, which [`Record::go`] does.

mod immovable;
mod moved;
mod names;
mod proof;
mod record;
mod succession;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use jiff::Timestamp;
use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};
use walpoint_base::durable;

pub(super) use self::immovable::Immovable;
pub(crate) use self::moved::Move;
pub(super) use self::names::SUFFIX;
pub(crate) use self::names::{all, at, latest, left_in, tell_not_used};
use self::names::{beside, candidates, moment, second};
pub(crate) use self::succession::{Succession, succeed};
use super::beneath::OpenRoots;
use super::directory::InUse;
use super::existing::Existing;
use super::identity;
use super::owners::Owner;
use super::reach;

/// The file in a data directory that was moved aside.
pub(crate) const RECORD: &str = "walpoint-aside.json";

/// What was moved, and where it belongs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// Where the data directory belongs.
    pub(crate) pgdata: PathBuf,
    /// Where it lies.
    pub(crate) aside: PathBuf,
    /// Its inode; `None` in the record of an older program.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    inode: Option<u64>,
    /// Directories outside it that went along.
    pub(crate) moves: Vec<Move>,
    /// The directory that comes in its place, if one that was moved aside earlier does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) successor: Option<PathBuf>,
    /// Whether a directory that came in its place was completed; `None` in the record of an older program.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    succeeded: Option<bool>,
    /// When it was moved, by the clock of this machine; `None` in the record of an older program, where the name says when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    moved: Option<Timestamp>,
    /// Whether it is this run's own word, or root's: of another user's, root does only what that user could do.
    #[serde(skip)]
    trusted: bool,
}

impl Record {
    /// Plans to move a data directory and directories outside it, each with its link. Whether they can be moved is found out before
    /// ([`Immovable`]).
    pub(crate) fn plan(
        pgdata: &Path,
        directories: Vec<(PathBuf, Option<PathBuf>)>,
        successor: Option<PathBuf>,
        now: Timestamp,
    ) -> anyhow::Result<Self> {
        let (moved, now) = (now, second(now));
        let all = || directories.iter().map(|(d, _)| d.as_path()).chain([pgdata]);
        // One name for all, and a later one than any other has: also within a second, and if the clock was set back.
        let others = candidates(pgdata).with_context(|| pgdata.display().to_string())?;
        let newest = others.iter().find_map(|other| moment(other, pgdata)).filter(|(time, _)| *time >= now);
        let (time, from) = newest.map_or((now, 0), |(time, n)| (time, n.saturating_add(1)));
        let names = (from..).map(|n| if n == 0 { time.clone() } else { format!("{time}-{n}") });
        let free = |name: &String| all().all(|d| fs::symlink_metadata(beside(d, name)).is_err());
        let name = names.take(1000).find(free).context("no name is free to move the directory to")?;
        let spelled = |link: &PathBuf| fs::read_link(pgdata.join(link)).ok();
        let moves = directories.iter().map(|(from, link)| Move {
            from: from.clone(),
            to: beside(from, &name),
            link: link.clone(),
            spelled: link.as_ref().and_then(spelled).filter(|to| to != from),
        });
        Ok(Self {
            pgdata: pgdata.to_owned(),
            aside: beside(pgdata, &name),
            inode: identity::inode(pgdata),
            moves: moves.collect(),
            successor,
            succeeded: Some(false),
            moved: Some(moved),
            trusted: true,
        })
    }

    /// Moves everything that is not moved yet.
    pub(crate) fn go(&self) -> anyhow::Result<()> {
        let user = self.user();
        self.check(user)?;
        if self.is_in_place() {
            self.write(&self.pgdata, user)?;
            self.rename(&self.pgdata, &self.aside, user)?;
        }
        let data = self.data(&self.aside, user)?;
        for moved in &self.moves {
            if fs::symlink_metadata(&moved.to).is_err() && moved.from.exists() {
                self.rename(&moved.from, &moved.to, user)?;
            }
            moved.lead(&data, &self.aside, &moved.to)?;
        }
        Ok(())
    }

    /// Where its `pg_wal` lies. A run that was interrupted had perhaps not made the link lead there yet.
    pub(crate) fn wal(&self) -> PathBuf {
        let wal = self.aside.join("pg_wal");
        let is_it = |moved: &&Move| moved.link.as_deref() == Some(Path::new("pg_wal")) && moved.to.is_dir();
        match self.moves.iter().find(is_it) {
            Some(moved) if !wal.is_dir() => moved.to.clone(),
            _ => wal,
        }
    }

    /// Puts everything back to where it belongs; nothing may be there.
    pub(crate) fn undo(&self) -> anyhow::Result<()> {
        let user = self.user();
        self.check(user)?;
        if !self.is_in_place() {
            let data = self.data(&self.aside, user)?;
            for moved in &self.moves {
                if moved.to.exists() {
                    self.vacant(&moved.from, user)?;
                    self.rename(&moved.to, &moved.from, user)?;
                }
                moved.lead(&data, &self.aside, moved.named())?;
            }
            self.vacant(&self.pgdata, user)?;
            self.rename(&self.aside, &self.pgdata, user)?;
        }
        let data = self.data(&self.pgdata, user)?;
        let anchor = data.anchor(&self.pgdata).with_context(|| self.pgdata.display().to_string())?;
        remove_abandoned(anchor.path())?;
        let record = anchor.path().join(RECORD);
        durable::remove(&record).with_context(|| format!("{} cannot be removed", record.display()))
    }

    /// For whom root moves things: the owner of the data directory.
    fn user(&self) -> Option<Owner> {
        reach::owner_of(if self.is_in_place() { &self.pgdata } else { &self.aside })
    }

    /// Opens the data directory where it lies. No link is followed to it.
    fn data(&self, directory: &Path, user: Option<Owner>) -> anyhow::Result<OpenRoots> {
        let open = || {
            let (parent, name) = reach::parent(directory, true, user)?;
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            Ok(OpenRoots::of(vec![(
                directory.to_owned(),
                rustix::fs::openat(&parent, name, flags, Mode::empty())?,
            )]))
        };
        open().map_err(|error: io::Error| anyhow!(error)).with_context(|| directory.display().to_string())
    }

    /// Renames one of the directories. The data directory is named by the command line, whatever the record is.
    fn rename(&self, from: &Path, to: &Path, user: Option<Owner>) -> anyhow::Result<()> {
        let trusted = self.trusted || [from, to].contains(&self.pgdata.as_path());
        reach::rename(from, to, trusted, user)
            .with_context(|| format!("{} cannot be moved to {}", from.display(), to.display()))
    }

    /// Refuses a name that leads to something; an empty directory goes.
    fn vacant(&self, path: &Path, user: Option<Owner>) -> anyhow::Result<()> {
        reach::vacate(path, self.trusted || path == self.pgdata, user)
            .with_context(|| format!("something else lies at {}", path.display()))
    }

    /// Directories that should have been moved and were not: an earlier run was interrupted.
    pub(crate) fn pending(&self) -> impl Iterator<Item = &Path> {
        let waits = |moved: &&Move| moved.from.exists() && fs::symlink_metadata(&moved.to).is_err();
        self.moves.iter().filter(waits).map(|moved| moved.from.as_path())
    }

    /// Whether everything lies where it should and every link leads there.
    pub(crate) fn is_complete(&self) -> bool {
        let led = |moved: &Move| {
            let link = moved.link.as_ref().map(|link| self.aside.join(link));
            link.is_none_or(|link| moved::leads_to(&link, &moved.to) || !link.is_symlink())
        };
        self.pending().next().is_none() && self.moves.iter().all(led)
    }

    /// Where everything lies that was moved, for a person who may want to delete it.
    pub(crate) fn places(&self) -> String {
        let moved = self.moves.iter().map(|moved| &moved.to).filter(|to| to.exists());
        let places = std::iter::once(&self.aside).chain(moved).map(|place| place.display().to_string());
        places.collect::<Vec<_>>().join(" and ")
    }

    /// What the data directory called a directory before: the name that belongs to what is called `path` now.
    pub(crate) fn original(&self, path: &Path) -> Option<PathBuf> {
        let moved = self.moves.iter().find(|moved| identity::same(&moved.to, path))?;
        Some(if moved.named().is_absolute() { moved.named() } else { &moved.from }.to_owned())
    }

    /// Whether the directory was not moved, or is back.
    fn is_in_place(&self) -> bool {
        fs::symlink_metadata(&self.aside).is_err()
    }
}

/// Removes what a killed run was about to write.
fn remove_abandoned(directory: &Path) -> anyhow::Result<()> {
    durable::remove_abandoned(directory).map(drop).with_context(|| directory.display().to_string())
}

/// What is in the way in a directory outside, and of which data directory that was moved aside it is: one whose link still leads there, or
/// whose record says that it belongs there and was not moved, or is back, as after an interruption.
pub(crate) fn in_use(directory: &Path, location: &Path, asides: &[Record]) -> Option<InUse> {
    let leads = |record: &&Record| {
        let is_named = record.pending().any(|from| from == directory || from == location);
        let existing = Existing::look(&record.aside).ok().flatten();
        is_named || existing.is_some_and(|existing| existing.link_to(location, None).is_some())
    };
    let in_use = InUse::look(directory)?;
    let of = asides.iter().find(leads).filter(|_| in_use == InUse::NotEmpty);
    Some(of.map_or(in_use, |record| InUse::Aside(record.aside.clone())))
}

/// Directories outside `pgdata` that are in the way of others, each with the link that proves whose it is; an error names
/// one that no link leads to.
pub(crate) fn in_the_way(
    wanted: &[PathBuf],
    asides: &[Record],
    link_to: impl Fn(&Path) -> Option<PathBuf>,
    also_ours: impl Fn(&Path) -> bool,
) -> Result<Vec<(PathBuf, Option<PathBuf>)>, String> {
    let mut directories = Vec::new();
    for directory in wanted {
        let Some(in_use) = in_use(directory, directory, asides) else { continue };
        match link_to(directory) {
            Some(link) => directories.push((directory.clone(), Some(link))),
            None if also_ours(directory) => directories.push((directory.clone(), None)),
            None => return Err(in_use.explain_to_rollback(directory)),
        }
    }
    Ok(directories)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    struct Bed {
        dir: tempfile::TempDir,
    }

    impl Bed {
        fn new() -> Self {
            let bed = Self { dir: tempfile::tempdir().unwrap() };
            bed.make("the old one");
            bed
        }

        fn path(&self, name: &str) -> PathBuf {
            self.dir.path().canonicalize().unwrap().join(name)
        }

        /// A data directory with a tablespace outside.
        fn make(&self, content: &str) {
            fs::create_dir_all(self.path("data/pg_tblspc")).unwrap();
            fs::create_dir_all(self.path("fast")).unwrap();
            symlink(self.path("fast"), self.path("data/pg_tblspc/1")).unwrap();
            durable::create(&self.path("data/x"), content.as_bytes()).unwrap();
            durable::create(&self.path("fast/x"), content.as_bytes()).unwrap();
        }

        fn plan(&self, successor: Option<PathBuf>) -> Record {
            let directories = vec![(self.path("fast"), Some("pg_tblspc/1".into()))];
            Record::plan(&self.path("data"), directories, successor, Timestamp::now()).unwrap()
        }

        #[track_caller]
        fn assert_whole(&self, pgdata: &Path, content: &str) {
            assert_eq!(fs::read_to_string(pgdata.join("x")).unwrap(), content);
            assert_eq!(fs::read_to_string(pgdata.join("pg_tblspc/1/x")).unwrap(), content);
        }
    }

    #[test]
    fn a_directory_goes_aside_whole_and_comes_back() {
        let bed = Bed::new();
        let record = bed.plan(None);
        assert_eq!(record.pending().count(), 1);
        record.go().unwrap();
        assert!(!bed.path("data").exists() && !bed.path("fast").exists() && record.pending().count() == 0);
        bed.assert_whole(&record.aside, "the old one");
        assert_eq!(latest(&bed.path("data")).unwrap(), Some(record.clone()));
        assert_eq!(latest(&bed.path("dat")).unwrap(), None);
        bed.make("the new one");
        assert!(record.undo().is_err(), "something is in its place");
        let second = bed.plan(Some(record.aside.clone()));
        assert_ne!(second.aside, record.aside, "names differ within a second");
        second.go().unwrap();
        record.undo().unwrap();
        bed.assert_whole(&bed.path("data"), "the old one");
        bed.assert_whole(&second.aside, "the new one");
        assert!(!bed.path("data").join(RECORD).exists());
        assert_eq!(latest(&bed.path("data")).unwrap(), Some(second));
        assert_eq!(at(&record.aside, &bed.path("data")).unwrap(), None);
    }

    #[test]
    fn what_was_moved_last_is_the_latest_whatever_the_clock_says() {
        let bed = Bed::new();
        let at = |second: i64| {
            let now = Timestamp::from_second(second).unwrap();
            let record = Record::plan(&bed.path("data"), Vec::new(), None, now).unwrap();
            record.go().unwrap();
            fs::create_dir(bed.path("data")).unwrap();
            record
        };
        let first = at(1_000);
        at(1_000);
        first.undo().unwrap();
        for record in [1_000, 999, 1_000, 1_000, 999, 1_001].repeat(2).into_iter().map(at) {
            assert_eq!(latest(&record.pgdata).unwrap(), Some(record));
        }
    }

    #[test]
    fn a_record_that_cannot_be_read_is_not_passed_over() {
        let bed = Bed::new();
        let older = bed.plan(None);
        older.go().unwrap();
        bed.make("the new one");
        let newer = bed.plan(None);
        newer.go().unwrap();
        let path = newer.aside.join(RECORD);
        durable::replace(&path, b"{", 0o600).unwrap();
        let damaged = latest(&newer.pgdata).unwrap_err();
        assert!(damaged.to_string().contains(path.to_str().unwrap()), "{damaged:#}");
        assert!(left_in(&newer.aside).is_err());
        // Not even root reads a directory as a file.
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        let unreadable = latest(&newer.pgdata).unwrap_err();
        assert!(unreadable.to_string().contains("cannot be read"), "{unreadable:#}");
        // Under another name it is nobody's.
        durable::rename(&newer.aside, &bed.path("elsewhere")).unwrap();
        assert_eq!(latest(&newer.pgdata).unwrap(), Some(older));
    }

    #[test]
    fn a_move_that_was_interrupted_anywhere_is_finished() {
        for steps in 0..4 {
            let bed = Bed::new();
            let record = bed.plan(None);
            if steps > 0 {
                record.write(&record.pgdata, record.user()).unwrap();
                assert_eq!(left_in(&record.pgdata).unwrap(), Some(record.clone()));
            }
            if steps > 1 {
                durable::rename(&record.pgdata, &record.aside).unwrap();
                assert_eq!(latest(&record.pgdata).unwrap(), Some(record.clone()));
            }
            if steps > 2 {
                durable::rename(&record.moves[0].from, &record.moves[0].to).unwrap();
            }
            assert!(!record.is_complete());
            record.go().unwrap();
            assert!(record.is_complete());
            bed.assert_whole(&record.aside, "the old one");
            // And so is its way back.
            if steps > 0 {
                durable::rename(&record.moves[0].to, &record.moves[0].from).unwrap();
            }
            if steps > 1 {
                let data = record.data(&record.aside, record.user()).unwrap();
                record.moves[0].lead(&data, &record.aside, &record.moves[0].from).unwrap();
            }
            if steps > 2 {
                durable::rename(&record.aside, &record.pgdata).unwrap();
            }
            record.undo().unwrap();
            bed.assert_whole(&record.pgdata, "the old one");
            assert_eq!((latest(&record.pgdata).unwrap(), left_in(&record.pgdata).unwrap()), (None, None));
        }
    }

    #[test]
    fn a_record_that_no_restore_wrote_moves_nothing() {
        let edits: [fn(&mut Record); 4] = [
            |record| record.moves[0].to = "/etc".into(),
            |record| record.moves[0].from.push("deeper"),
            |record| record.moves[0].link = Some("pg_tblspc/../../../etc/link".into()),
            |record| record.moves[0].link = Some("base".into()),
        ];
        for edit in edits {
            let bed = Bed::new();
            let mut record = bed.plan(None);
            edit(&mut record);
            for error in [record.go().unwrap_err(), record.undo().unwrap_err()] {
                assert!(error.to_string().contains("nothing was changed"), "{error:#}");
            }
            assert!(bed.path("data").exists() && !record.aside.exists());
        }
    }

    #[test]
    fn only_what_a_link_leads_to_is_moved() {
        let bed = Bed::new();
        let wanted = [bed.path("fast"), bed.path("missing")];
        let link = |path: &Path| (path == bed.path("fast")).then(|| PathBuf::from("pg_tblspc/1"));
        let moved = in_the_way(&wanted, &[], link, |_| false).unwrap();
        assert_eq!(moved, [(bed.path("fast"), Some("pg_tblspc/1".into()))]);
        assert!(in_the_way(&wanted, &[], |_| None, |_| false).unwrap_err().contains("fast"));
    }

    #[test]
    fn what_a_directory_that_was_moved_aside_still_leads_to_is_its_own() {
        for directories in [vec![], vec![("fast", "pg_tblspc/1")]] {
            let bed = Bed::new();
            durable::create(&bed.path("data/PG_VERSION"), b"17\n").unwrap();
            let moved = directories.iter().map(|(name, link)| (bed.path(name), Some(PathBuf::from(link))));
            let record = Record::plan(&bed.path("data"), moved.collect(), None, Timestamp::now()).unwrap();
            record.go().unwrap();
            fs::create_dir_all(bed.path("fast/PG_17")).unwrap();
            let is = match directories.is_empty() {
                true => InUse::Aside(record.aside.clone()),
                false => InUse::NotEmpty,
            };
            let asides = [record];
            assert_eq!(in_use(&bed.path("fast"), &bed.path("fast"), &asides), Some(is));
            assert_eq!(in_use(&bed.path("fast/PG_17"), &bed.path("fast"), &asides), None, "it is empty");
            if let Some(moved) = asides[0].moves.first() {
                fs::remove_dir_all(&moved.from).unwrap();
                durable::rename(&moved.to, &moved.from).unwrap();
                let put_back = in_use(&moved.from, &moved.from, &asides);
                assert_eq!(put_back, Some(InUse::Aside(asides[0].aside.clone())));
            }
        }
    }
}
