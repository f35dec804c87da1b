//! Paths without links, also where they lead to what does not exist.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use super::{DirectoryError, error_at};

/// So many links to what does not exist are followed, as by the kernel.
const LINKS: u32 = 40;

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
}
