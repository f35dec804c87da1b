//! Paths in a record beside a data directory, which may have had another path when the record was written: through a bind mount or a link,
//! in another container, or before a directory above it was renamed.

use std::ffi::OsStr;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::identity;

/// How the names go on of what restores put beside a data directory.
const OURS: &[u8] = b".walpoint-";

/// How the paths of a record are spelled now.
#[derive(Debug, Clone, Copy)]
pub(super) struct Respelled<'a> {
    /// The directory above the data directory, as it is in the record.
    recorded: &'a Path,
    /// The same now.
    now: &'a Path,
    /// The name of the data directory in the record, and now.
    names: (&'a OsStr, &'a OsStr),
    /// Whether that is the same directory, or is it no more.
    same: bool,
}

impl<'a> Respelled<'a> {
    /// `recorded`: the data directory's path in a record that was found beside `pgdata`. `None` if that is another data directory: its name
    /// is another one, or another directory is there, and this is a copy; unless the directory with the record is `known` to be the one that
    /// it says it is.
    pub(super) fn of(recorded: &'a Path, pgdata: &'a Path, known: bool) -> Option<Self> {
        let (above, now) = recorded.parent().zip(pgdata.parent())?;
        let is_gone = || matches!(fs::metadata(above), Err(error) if error.kind() == ErrorKind::NotFound);
        let same = above == now || identity::same(above, now) || is_gone();
        let names = recorded.file_name().zip(pgdata.file_name())?;
        (known || same && names.0 == names.1).then_some(Self { recorded: above, now, names, same })
    }

    /// A path of the record as it leads there from here.
    pub(super) fn path(&self, path: &Path) -> PathBuf {
        let Ok(rest) = path.strip_prefix(self.recorded) else { return path.to_owned() };
        let (before, now) = self.names;
        // The data directory itself, what is in it, and what restores put beside it.
        let own = |suffix: &&[u8]| suffix.is_empty() || suffix.starts_with(b"/") || suffix.starts_with(OURS);
        match rest.as_os_str().as_bytes().strip_prefix(before.as_bytes()).filter(own) {
            Some(suffix) => self.now.join(OsStr::from_bytes(&[now.as_bytes(), suffix].concat())),
            None => self.now.join(rest),
        }
    }

    /// Whether all of these lie beside the data directory, or where they did: elsewhere, what has the recorded names may be another server's.
    pub(super) fn covers<'p>(&self, mut outside: impl Iterator<Item = &'p Path>) -> bool {
        match self.same {
            true => self.recorded.exists() || outside.all(|path| path.starts_with(self.recorded)),
            false => outside.next().is_none(),
        }
    }

    /// The same of a directory outside, to which a link in the data directory may lead: as it was while that leads there, as the link does.
    pub(super) fn outside(&self, path: &Path) -> PathBuf {
        if self.recorded.exists() { path.to_owned() } else { self.path(path) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_known_by_another_path_and_a_copy_of_it_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let [here, link, copy] = ["here", "link", "copy"].map(|name| dir.path().join(name));
        fs::create_dir(&here).unwrap();
        fs::create_dir(&copy).unwrap();
        std::os::unix::fs::symlink(&here, &link).unwrap();
        let recorded = here.join("data");
        let kept = here.join("data.walpoint-kept-1");
        let respelled =
            |pgdata: &Path| Respelled::of(&recorded, pgdata, false).map(|paths| paths.path(&kept));
        assert_eq!(respelled(&recorded), Some(here.join("data.walpoint-kept-1")));
        assert_eq!(respelled(&link.join("data")), Some(link.join("data.walpoint-kept-1")));
        assert_eq!(respelled(&copy.join("data")), None, "the original is still there");
        assert_eq!(respelled(&link.join("other")), None);
        let there = copy.join("data");
        let known = Respelled::of(&recorded, &there, true).unwrap();
        assert_eq!(known.path(&kept), copy.join("data.walpoint-kept-1"));
        assert!(known.covers(std::iter::empty()));
        let other = copy.join("main");
        let known = Respelled::of(&recorded, &other, true).unwrap();
        assert_eq!(known.path(&kept), copy.join("main.walpoint-kept-1"));
        assert_eq!(known.path(&here.join("database")), copy.join("database"));
        assert!(!known.covers([here.join("space").as_path()].into_iter()), "which one is meant is not known");
        let outside =
            |path: &Path| Respelled::of(&recorded, &link.join("data"), false).unwrap().outside(path);
        let covers = |path: &str| {
            let there = link.join("data");
            Respelled::of(&recorded, &there, false).unwrap().covers([Path::new(path)].into_iter())
        };
        assert!(covers("/elsewhere/space"), "it is where it was");
        assert_eq!(outside(&here.join("space")), here.join("space"), "as a link says");
        fs::remove_file(&link).unwrap();
        walpoint_base::durable::rename(&here, &link).unwrap();
        assert_eq!(respelled(&link.join("data")), Some(link.join("data.walpoint-kept-1")));
        assert_eq!(outside(&here.join("space")), link.join("space"));
        assert_eq!(outside(Path::new("/elsewhere/space")), Path::new("/elsewhere/space"));
        assert!(!covers("/elsewhere/space"), "it may be another server's by now");
        assert!(covers(here.join("space").to_str().unwrap()));
    }
}
