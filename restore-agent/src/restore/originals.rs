//! The data directories that a data directory may be a copy of.
//!
//! A plain copy keeps the links `pg_tblspc/<oid>` and `pg_wal`, so what they lead to is the original's. A server that runs there is
//! found by its process; of one that is down, the copy itself still says where it ran (`postmaster.pid` after a crash,
//! `postmaster.opts`), and the configuration says where the cluster lives.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use super::existing;
use super::identity::Identity;
use super::reach;

/// Bytes of a file of the server's that are read.
const LONGEST: u64 = 64 << 10;

/// How long a filesystem may take to show what an original leads to. What does not answer shows nothing.
const LIMIT: Duration = Duration::from_secs(2);

/// The directories that this one names as its own place, and those that the configuration names, but for itself.
pub(super) fn of(pgdata: &Path, configured: &[PathBuf]) -> Vec<PathBuf> {
    let read = |name: &str| {
        let mut text = Vec::new();
        let file = reach::plain(&pgdata.join(name)).ok()?;
        file.take(LONGEST).read_to_end(&mut text).ok()?;
        Some(String::from_utf8_lossy(&text).into_owned())
    };
    let lock = read("postmaster.pid").and_then(|text| text.lines().nth(1).map(PathBuf::from));
    let started = read("postmaster.opts").and_then(|text| directory_of(&text));
    let own = Identity::of(pgdata);
    let mut found = Vec::new();
    for directory in lock.into_iter().chain(started).chain(configured.iter().cloned()) {
        if directory.is_absolute() && directory != pgdata && !found.contains(&directory) {
            found.push(directory);
        }
    }
    found.retain(|directory| {
        let directory = directory.clone();
        within(move || (Identity::of(&directory), directory.join("PG_VERSION").is_file()))
            .is_some_and(|(identity, is_data)| is_data && identity != own)
    });
    found
}

/// The directory that a server was started with, of its `postmaster.opts`: each option stands in quotes.
fn directory_of(options: &str) -> Option<PathBuf> {
    let options: Vec<&str> = options.split('"').skip(1).step_by(2).collect();
    let at = options.iter().rposition(|option| *option == "-D");
    let next = at.and_then(|at| options.get(at + 1)).copied();
    let joined =
        || options.iter().rev().find_map(|option| option.strip_prefix("-D").filter(|rest| !rest.is_empty()));
    next.or_else(joined).map(PathBuf::from)
}

/// The first of these directories to which a link of one of the originals leads, and that original.
pub(super) fn sharing(originals: &[PathBuf], directories: &[PathBuf]) -> Option<(PathBuf, PathBuf)> {
    originals.iter().find_map(|original| {
        let (of, wanted) = (original.clone(), directories.to_owned());
        let look = move || {
            let used = existing::linked(&of, Path::new("/"));
            wanted
                .into_iter()
                .find(|directory| Identity::of(directory).is_some_and(|one| used.contains(&one)))
        };
        Some((within(look)??, original.clone()))
    })
}

/// Asks a filesystem that may hang.
fn within<T: Send + 'static>(look: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (found, answer) = mpsc::channel();
    std::thread::spawn(move || found.send(look()).ok());
    answer.recv_timeout(LIMIT).ok()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::slice;

    use walpoint_base::durable;

    use super::*;

    #[test]
    fn a_copy_names_its_original_and_shares_what_its_links_lead_to() {
        let dir = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(dir.path()).unwrap();
        let (original, copy, other) = (root.join("original"), root.join("copy"), root.join("other"));
        let (space, wal) = (root.join("space"), root.join("wal"));
        [&space, &wal].iter().for_each(|directory| fs::create_dir(directory).unwrap());
        for data in [&original, &copy, &other] {
            fs::create_dir_all(data.join("pg_tblspc")).unwrap();
            durable::replace(&data.join("PG_VERSION"), b"17\n", 0o600).unwrap();
        }
        for data in [&original, &copy] {
            symlink(&space, data.join("pg_tblspc/16396")).unwrap();
            symlink(&wal, data.join("pg_wal")).unwrap();
        }
        assert!(of(&copy, &[]).is_empty());
        assert_eq!(
            of(&copy, &[original.clone(), other.clone(), copy.clone()]),
            [original.clone(), other.clone()]
        );
        symlink(&copy, root.join("alias")).unwrap();
        assert!(of(&copy, &[root.join("alias"), root.join("gone")]).is_empty());
        let options = format!("/bin/postgres \"-D\" \"{}\" \"-c\" \"port=1\"\n", original.display());
        durable::replace(&copy.join("postmaster.opts"), options.as_bytes(), 0o600).unwrap();
        assert_eq!(of(&copy, &[]), slice::from_ref(&original));
        let lock = format!("1\n{}\n1\n", other.display());
        durable::replace(&copy.join("postmaster.pid"), lock.as_bytes(), 0o600).unwrap();
        assert_eq!(of(&copy, &[]), [other.clone(), original.clone()]);

        let shared = |directories: &[&PathBuf]| {
            let directories: Vec<PathBuf> = directories.iter().map(|one| (*one).clone()).collect();
            sharing(&of(&copy, &[]), &directories)
        };
        assert_eq!(shared(&[&other, &space]), Some((space.clone(), original.clone())));
        assert_eq!(shared(&[&wal]), Some((wal, original)));
        assert_eq!(shared(&[&other]), None);
    }
}
