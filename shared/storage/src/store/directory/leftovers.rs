//! What killed writes left in a directory: temporary files that nobody links any more. Stores behind a network have none.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::time::{Duration, SystemTime};

use jiff::SignedDuration;
use walpoint_base::{ClusterName, durable};

use crate::error::Result;
use crate::layout::ClusterPaths;
use crate::store::failure::{Failure, FailureKind};
use crate::store::{Backend, Store};

impl Store {
    /// Removes temporary files of a cluster that are older than `age`; how many there were.
    pub async fn remove_leftovers(&self, cluster: &ClusterName, age: SignedDuration) -> Result<u64> {
        let Backend::Local(local) = &self.inner.backend else { return Ok(0) };
        let path = local.path_of(ClusterPaths::new(cluster).all().as_str());
        let age = Duration::try_from(age).unwrap_or_default();
        let swept = tokio::task::spawn_blocking(move || {
            // A clock that was set back makes them younger: they stay until it has caught up.
            let limit = SystemTime::now().checked_sub(age);
            limit.map_or(Ok(0), |limit| sweep(&path, limit))
        });
        let swept = swept.await.unwrap_or_else(|_| {
            Err(Failure::new(FailureKind::Transient, "a worker thread ended before its work was done"))
        });
        swept.map_err(|failure| failure.during("the removal of temporary files".to_owned(), self.name()))
    }
}

fn sweep(directory: &Path, limit: SystemTime) -> Result<u64, Failure> {
    let entries = match fs::read_dir(directory) {
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(0),
        entries => entries?,
    };
    let mut removed = 0;
    for entry in entries {
        let entry = entry?;
        // Not through links: what they lead to is not this store's to clean.
        let meta = match entry.metadata() {
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            meta => meta?,
        };
        if meta.is_dir() {
            removed += sweep(&entry.path(), limit)?;
        } else if meta.is_file()
            && entry.file_name().to_string_lossy().starts_with(durable::TEMPORARY_PREFIX)
            && meta.modified()? < limit
            && fs::remove_file(entry.path()).is_ok()
        {
            removed += 1;
        }
    }
    Ok(removed)
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;
    use crate::store::StoreSettings;

    #[tokio::test]
    async fn old_temporary_files_of_the_cluster_go_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let place = |name: &str| {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            path
        };
        let old = SystemTime::now() - Duration::from_secs(100_000);
        for (name, aged) in [
            ("clusters/main/data/x/.walpoint-tmp-a", true),
            ("clusters/main/.walpoint-tmp-b", true),
            ("clusters/main/data/x/.walpoint-tmp-young", false),
            ("clusters/main/data/x/00000000.pack", true),
            ("clusters/other/.walpoint-tmp-c", true),
        ] {
            let file = File::create_new(place(name)).unwrap();
            if aged {
                file.set_modified(old).unwrap();
            }
        }
        let store = Store::open(&StoreSettings::at(dir.path().to_str().unwrap())).await.unwrap();
        let day = SignedDuration::from_hours(24);
        assert_eq!(store.remove_leftovers(&"main".parse().unwrap(), day).await.unwrap(), 2);
        assert_eq!(store.remove_leftovers(&"main".parse().unwrap(), day).await.unwrap(), 0);
        for left in ["main/data/x/.walpoint-tmp-young", "main/data/x/00000000.pack", "other/.walpoint-tmp-c"]
        {
            assert!(dir.path().join("clusters").join(left).exists(), "{left}");
        }
        assert_eq!(store.remove_leftovers(&"none".parse().unwrap(), day).await.unwrap(), 0);
    }
}
