//! Paths in a record beside a data directory, which may have had another path when the record was written: through a bind mount or a link,
//! in another container, or before a directory above it was renamed.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::identity;

/// How the paths of a record are spelled now.
#[derive(Debug, Clone, Copy)]
pub(super) struct Respelled<'a> {
    /// The directory above the data directory, as it is in the record.
    recorded: &'a Path,
    /// The same now.
    now: &'a Path,
}

impl<'a> Respelled<'a> {
    /// `recorded`: the data directory's path in a record that was found beside `pgdata`. `None` if that is another data directory: its name
    /// is another one, or another directory is there, and this is a copy.
    pub(super) fn of(recorded: &'a Path, pgdata: &'a Path) -> Option<Self> {
        let (above, now) = recorded.parent().zip(pgdata.parent())?;
        let is_gone = || matches!(fs::metadata(above), Err(error) if error.kind() == ErrorKind::NotFound);
        let same = recorded.file_name() == pgdata.file_name()
            && (above == now || identity::same(above, now) || is_gone());
        same.then_some(Self { recorded: above, now })
    }

    /// A path of the record as it leads there from here.
    pub(super) fn path(&self, path: &Path) -> PathBuf {
        match path.strip_prefix(self.recorded) {
            Ok(rest) => self.now.join(rest),
            Err(_) => path.to_owned(),
        }
    }

    /// Whether all of these lie beside the data directory, or where they did: elsewhere, what has the recorded names may be another server's.
    pub(super) fn covers<'p>(&self, mut outside: impl Iterator<Item = &'p Path>) -> bool {
        self.recorded.exists() || outside.all(|path| path.starts_with(self.recorded))
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
        let respelled = |pgdata: &Path| {
            Respelled::of(&recorded, pgdata).map(|paths| paths.path(&here.join("data.walpoint-kept-1")))
        };
        assert_eq!(respelled(&recorded), Some(here.join("data.walpoint-kept-1")));
        assert_eq!(respelled(&link.join("data")), Some(link.join("data.walpoint-kept-1")));
        assert_eq!(respelled(&copy.join("data")), None, "the original is still there");
        assert_eq!(respelled(&link.join("other")), None);
        let outside = |path: &Path| Respelled::of(&recorded, &link.join("data")).unwrap().outside(path);
        assert_eq!(outside(&here.join("space")), here.join("space"), "as a link says");
        fs::remove_file(&link).unwrap();
        walpoint_base::durable::rename(&here, &link).unwrap();
        assert_eq!(respelled(&link.join("data")), Some(link.join("data.walpoint-kept-1")));
        assert_eq!(outside(&here.join("space")), link.join("space"));
        assert_eq!(outside(Path::new("/elsewhere/space")), Path::new("/elsewhere/space"));
    }
}
