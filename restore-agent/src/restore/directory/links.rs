//! Paths without links, also where they lead to what does not exist.
//!
//! A `..` behind something that does not exist leads nowhere, and leads somewhere as soon as that is made: what was judged under such a
//! path would not be what is written to. So no such path is resolved, and every path that a person gave an option is ([`given`],
//! [`spelled`]).

use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use rustix::io::Errno;

use super::{DirectoryError, error_at};

/// So many links to what does not exist are followed, as by the kernel.
const LINKS: u32 = 40;

/// Where a path leads that a person gave an option: that path without links, as far as it exists.
pub(crate) fn given(option: &'static str, path: &Path) -> Result<PathBuf, DirectoryError> {
    resolve(path).map_err(|error| error.of(option, path))
}

/// The same with the person's own spelling of what follows the last `..`: a link there is to keep its name.
pub(crate) fn spelled(option: &'static str, path: &Path) -> Result<PathBuf, DirectoryError> {
    let absolute = std::path::absolute(path).map_err(error_at(path))?;
    let Some(above) = absolute.ancestors().find(|ancestor| ancestor.ends_with("..")) else {
        return Ok(absolute);
    };
    let real = resolve(above).map_err(|error| error.of(option, path))?;
    Ok(match absolute.strip_prefix(above) {
        Ok(rest) if !rest.as_os_str().is_empty() => real.join(rest),
        _ => real,
    })
}

/// `path` without links, as far as it exists. A link to something that does not exist leads there all the same.
pub(crate) fn resolve(path: &Path) -> Result<PathBuf, DirectoryError> {
    let mut path = std::path::absolute(path).map_err(error_at(path))?;
    for _ in 0..LINKS {
        match follow(&path)? {
            Followed::Real(real) => return Ok(real),
            Followed::Link(on) => path = on,
        }
    }
    Err(error_at(&path)(Errno::LOOP.into()))
}

/// Where an absolute path leads.
enum Followed {
    /// There, without links as far as that exists.
    Real(PathBuf),
    /// On to this path, by a link to something that does not exist.
    Link(PathBuf),
}

fn follow(path: &Path) -> Result<Followed, DirectoryError> {
    for ancestor in path.ancestors() {
        let rest = path.strip_prefix(ancestor).unwrap_or(Path::new(""));
        let with_rest = |at: PathBuf| if rest.as_os_str().is_empty() { at } else { at.join(rest) };
        match fs::canonicalize(ancestor) {
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                let (Ok(target), Some(parent)) = (fs::read_link(ancestor), ancestor.parent()) else {
                    continue;
                };
                return Ok(Followed::Link(with_rest(parent.join(target))));
            }
            Err(e) => return Err(error_at(ancestor)(e)),
            Ok(real) => {
                if !rest.as_os_str().is_empty() && !real.is_dir() {
                    return Err(DirectoryError::NoDirectory(ancestor.to_owned()));
                }
                if rest.components().any(|component| component == Component::ParentDir) {
                    let missing =
                        rest.components().next().map_or_else(|| real.clone(), |name| real.join(name));
                    return Err(DirectoryError::Nowhere { option: None, path: path.to_owned(), missing });
                }
                return Ok(Followed::Real(with_rest(real)));
            }
        }
    }
    Ok(Followed::Real(path.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_in_paths_are_seen_through() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().canonicalize().unwrap().join("real");
        fs::create_dir(&real).unwrap();
        std::os::unix::fs::symlink(&real, dir.path().join("link")).unwrap();
        assert_eq!(resolve(&dir.path().join("link")).unwrap(), real);
        assert_eq!(resolve(&dir.path().join("link/new/data")).unwrap(), real.join("new/data"));
        // Also through what does not exist: it was moved aside, say.
        fs::remove_dir(&real).unwrap();
        assert_eq!(resolve(&dir.path().join("link/new")).unwrap(), real.join("new"));
        std::os::unix::fs::symlink("loop", dir.path().join("loop")).unwrap();
        assert!(resolve(&dir.path().join("loop/new")).is_err());
    }

    #[test]
    fn nothing_is_above_what_does_not_exist() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        fs::create_dir_all(root.join("outer/real")).unwrap();
        std::os::unix::fs::symlink("outer/real", root.join("link")).unwrap();
        std::os::unix::fs::symlink("missing/../outer", root.join("dangling")).unwrap();
        // As the kernel does it, and not by the text.
        for (path, leads) in [
            ("link/..", "outer"),
            ("link/../new/data", "outer/new/data"),
            ("outer/../link/./new", "outer/real/new"),
            ("missing/./new", "missing/new"),
        ] {
            assert_eq!(resolve(&root.join(path)).unwrap(), root.join(leads), "{path}");
        }
        for (path, missing) in [
            ("missing/../outer", "missing"),
            ("missing/deep/../../outer", "missing"),
            ("outer/missing/..", "outer/missing"),
            ("link/missing/../new", "outer/real/missing"),
            ("dangling", "missing"),
        ] {
            let path = root.join(path);
            let DirectoryError::Nowhere { missing: found, .. } = resolve(&path).unwrap_err() else {
                panic!("{}", path.display());
            };
            assert_eq!(found, root.join(missing), "{}", path.display());
        }
    }

    #[test]
    fn an_option_names_what_is_above_only_where_that_exists() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        fs::create_dir_all(root.join("outer/real")).unwrap();
        std::os::unix::fs::symlink("outer/real", root.join("link")).unwrap();
        std::os::unix::fs::symlink("real", root.join("outer/alias")).unwrap();
        for (path, is_spelled, leads) in [
            ("link/new", "link/new", "outer/real/new"),
            ("link/../alias/new", "outer/alias/new", "outer/real/new"),
            ("link/..", "outer", "outer"),
        ] {
            let path = root.join(path);
            assert_eq!(spelled("--wal-dir", &path).unwrap(), root.join(is_spelled));
            assert_eq!(given("--pgdata", &path).unwrap(), root.join(leads));
        }
        let path = root.join("missing/../outer");
        for error in [given("--pgdata", &path).unwrap_err(), spelled("--pgdata", &path).unwrap_err()] {
            let expected = format!(
                "--pgdata \"{0}/missing/../outer\" leads through a directory that does not exist: nothing was changed\nDETAIL: \
                 \"{0}/missing\" does not exist, and \"..\" follows it.\nHINT: Give a path without \"..\".",
                root.display()
            );
            assert_eq!(error.to_string(), expected);
        }
    }
}
