//! What of a repository in a directory this process's user cannot use, though agents have to.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, CWD};
use walpoint_base::{ClusterName, durable, user};

use super::owner::Owner;
use crate::error::Result;
use crate::layout::{self, ClusterPaths};
use crate::store::failure::{Failure, FailureKind};
use crate::store::{Backend, Store};

/// A file or a directory that cannot be used.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Unusable {
    /// What it is, to whom it belongs and what cannot be done.
    pub found: String,
    /// The command that repairs it and all like it.
    pub repair: String,
}

impl Store {
    /// The first thing that backups, `expire` and holds of a cluster cannot list, read or write. Stores behind a network are asked
    /// by trying.
    pub async fn unusable(&self, cluster: &ClusterName) -> Result<Option<Unusable>> {
        let Backend::Local(local) = &self.inner.backend else { return Ok(None) };
        let root = local.path_of("");
        let below = local.path_of(layout::clusters().as_str());
        let cluster = local.path_of(ClusterPaths::new(cluster).all().as_str());
        let looked = tokio::task::spawn_blocking(move || look(&root, &below, &cluster));
        let looked = looked.await.unwrap_or_else(|_| {
            Err(Failure::new(FailureKind::Transient, "a worker thread ended before its work was done"))
        });
        looked.map_err(|failure| failure.during("a look at who owns what".to_owned(), self.name()))
    }
}

/// Looks at the directories on the way, at those directly below, and at what lies in those that every backup and `expire` reads.
fn look(root: &Path, below: &Path, cluster: &Path) -> Result<Option<Unusable>, Failure> {
    let mut pending: Vec<PathBuf> =
        ["holds", "announcements", "leases"].map(|name| cluster.join(name)).into();
    let named = pending.clone();
    pending.extend([cluster, below, root].map(Path::to_owned));
    while let Some(path) = pending.pop() {
        let meta = match fs::metadata(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            meta => meta?,
        };
        // No file is ever written again.
        let (wanted, what) = match meta.is_dir() {
            true => (Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK, "list and write"),
            false => (Access::READ_OK, "read"),
        };
        if rustix::fs::accessat(CWD, &path, wanted, AtFlags::EACCESS).is_err() {
            let owner = Owner::of(root)?;
            let found = format!(
                "{} belongs to {} (mode {:04o}), and {} cannot {what} it",
                path.display(),
                user::shown(meta.uid()),
                meta.mode() & 0o7777,
                user::shown(user::effective())
            );
            return Ok(Some(Unusable { found, repair: owner.repair(root) }));
        }
        if path == cluster || named.iter().any(|named| path.starts_with(named)) {
            let entries = fs::read_dir(&path);
            for entry in entries.into_iter().flatten() {
                let entry = entry?;
                let left = entry.file_name().to_string_lossy().starts_with(durable::TEMPORARY_PREFIX);
                if !left && !named.contains(&entry.path()) {
                    pending.push(entry.path());
                }
            }
        }
    }
    Ok(None)
}
