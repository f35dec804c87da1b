//! The clock of a directory's filesystem: another machine's where it is mounted over a network.

use jiff::Timestamp;

use crate::store::limits::Limits;
use crate::store::{Backend, Store};

impl Store {
    /// What time it is by the clock of a directory's filesystem, to be asked where that is full: by an empty file, which often needs no
    /// room. `None` for other stores, and where not even that can be created.
    pub async fn filesystem_time(&self) -> Option<Timestamp> {
        match &self.inner.backend {
            Backend::Local(local) => Limits::within(self.inner.limits.read_timeout, local.time()).await.ok(),
            Backend::Remote(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;

    use super::*;
    use crate::store::StoreSettings;

    #[tokio::test]
    async fn a_directory_tells_its_time_and_keeps_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&StoreSettings::at(dir.path().to_str().unwrap())).await.unwrap();
        let apart = store.filesystem_time().await.unwrap().duration_since(Timestamp::now()).abs();
        assert!(apart < SignedDuration::from_secs(10), "{apart:?}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
