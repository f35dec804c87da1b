//! The history files that a repository gave to a standby, kept across restarts and outages.
//!
//! A standby that cannot reach its archive must not be stopped, and a history file answered as missing could make it take a
//! timeline id that is in use. Histories never change, so one that was seen once is answered from here. Losing this
//! directory costs nothing but that. Nothing gets here from the server's own `pg_wal`: PostgreSQL takes what it is given for
//! archived. And they are of one recovery: without the note of what it began with ([`super::origin`]) none is believed.

use std::io;
use std::path::{Path, PathBuf};

use walpoint_base::socket::{HISTORY_CACHE, STOP_WITHOUT_HISTORY};
use walpoint_base::{RECOVERY_ORIGIN, Recovery, TimelineHistory, TimelineId, WalFileName, durable};
use walpoint_runtime::config::HistoryOutage;

/// The cache of one standby.
#[derive(Debug, Clone)]
pub(crate) struct HistoryCache {
    directory: PathBuf,
    origin: PathBuf,
}

impl HistoryCache {
    /// The cache in `pg_wal`.
    pub(crate) fn in_wal(wal: &Path) -> Self {
        Self { directory: wal.join(HISTORY_CACHE), origin: wal.join(RECOVERY_ORIGIN) }
    }

    /// The history of `timeline` if a data directory in that recovery need not ask the archive for it: a standby, also one
    /// that has just been promoted and removed its signal file, has seen it before.
    pub(crate) fn get(&self, recovery: Recovery, timeline: TimelineId) -> Option<Vec<u8>> {
        if recovery == Recovery::Archive || !self.origin.exists() {
            return None;
        }
        let content = std::fs::read(self.path(timeline)).ok()?;
        TimelineHistory::parse(timeline, &content).is_ok().then_some(content)
    }

    /// The newest history that [`Self::get`] has for that recovery.
    pub(crate) fn newest(&self, recovery: Recovery) -> Option<TimelineHistory> {
        let names = std::fs::read_dir(&self.directory).ok()?.flatten().filter_map(|entry| {
            match entry.file_name().to_str()?.parse() {
                Ok(WalFileName::History(timeline)) => Some(timeline),
                _ => None,
            }
        });
        let newest = names.max()?;
        TimelineHistory::parse(newest, &self.get(recovery, newest)?).ok()
    }

    /// Remembers a history that a repository gave.
    pub(crate) fn put(&self, timeline: TimelineId, content: &[u8]) -> io::Result<()> {
        let path = self.path(timeline);
        if std::fs::read(&path).is_ok_and(|known| known == content) {
            return Ok(());
        }
        durable::create_directories(&self.directory)?;
        durable::replace(&path, content, 0o600)
    }

    /// Forgets one history.
    pub(crate) fn drop_one(&self, timeline: TimelineId) -> io::Result<()> {
        durable::remove(&self.path(timeline))
    }

    /// Forgets the histories of an earlier recovery.
    pub(crate) fn forget(&self) -> io::Result<()> {
        let entries = match std::fs::read_dir(&self.directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other?,
        };
        for entry in entries {
            let entry = entry?;
            if entry.file_name() != STOP_WITHOUT_HISTORY {
                std::fs::remove_file(entry.path())?;
            }
        }
        durable::sync_directory(&self.directory)
    }

    /// Leaves word for `restore-fetch`, which reads no configuration, what to do when a history cannot be looked up.
    pub(crate) fn leave_policy(&self, policy: HistoryOutage) -> io::Result<()> {
        let marker = self.directory.join(STOP_WITHOUT_HISTORY);
        match policy {
            HistoryOutage::Stop => {
                durable::create_directories(&self.directory)?;
                durable::create(&marker, b"").map(drop)
            }
            HistoryOutage::Missing if marker.exists() => durable::remove(&marker),
            HistoryOutage::Missing => Ok(()),
        }
    }

    /// Forgets everything: the server is no standby any more.
    pub(crate) fn remove(&self) -> io::Result<()> {
        match std::fs::remove_dir_all(&self.directory) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn path(&self, timeline: TimelineId) -> PathBuf {
        self.directory.join(WalFileName::History(timeline).to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn histories_are_kept_for_one_recovery() {
        let dir = tempfile::tempdir().unwrap();
        let cache = HistoryCache::in_wal(dir.path());
        let timeline = TimelineId::new(2).unwrap();
        let content = b"1\t0/3000000\tno recovery target specified\n";
        assert_eq!(cache.get(Recovery::Standby, timeline), None);
        cache.put(timeline, content).unwrap();
        cache.put(timeline, content).unwrap();
        assert_eq!(cache.get(Recovery::Standby, timeline), None, "what it began with is not known");
        let origin = dir.path().join(RECOVERY_ORIGIN);
        durable::create(&origin, b"").unwrap();
        assert_eq!(cache.get(Recovery::Standby, timeline).as_deref(), Some(content.as_slice()));
        assert_eq!(cache.get(Recovery::Archive, timeline), None);
        durable::replace(&cache.path(timeline), b"damaged", 0o600).unwrap();
        assert_eq!(cache.get(Recovery::Standby, timeline), None);
        cache.put(timeline, content).unwrap();
        assert!(cache.get(Recovery::Standby, timeline).is_some(), "a damaged one is replaced");
        cache.leave_policy(HistoryOutage::Stop).unwrap();
        cache.forget().unwrap();
        assert_eq!(cache.get(Recovery::Standby, timeline), None);
        assert!(dir.path().join(HISTORY_CACHE).join(STOP_WITHOUT_HISTORY).exists());
    }

    #[test]
    fn what_lies_in_pg_wal_is_never_given() {
        let dir = tempfile::tempdir().unwrap();
        let cache = HistoryCache::in_wal(dir.path());
        let content = b"1\t0/3000000\tno recovery target specified\n";
        durable::create(&dir.path().join(RECOVERY_ORIGIN), b"").unwrap();
        durable::create(&dir.path().join("00000002.history"), content).unwrap();
        let timeline = TimelineId::new(2).unwrap();
        for recovery in [Recovery::None, Recovery::Standby, Recovery::Archive] {
            assert_eq!(cache.get(recovery, timeline), None, "{recovery:?}");
        }
    }

    #[test]
    fn the_policy_is_left_for_the_client() {
        let dir = tempfile::tempdir().unwrap();
        let cache = HistoryCache::in_wal(dir.path());
        let marker = dir.path().join(HISTORY_CACHE).join(STOP_WITHOUT_HISTORY);
        cache.leave_policy(HistoryOutage::Missing).unwrap();
        assert!(!marker.exists());
        cache.leave_policy(HistoryOutage::Stop).unwrap();
        assert!(marker.exists());
        cache.leave_policy(HistoryOutage::Missing).unwrap();
        assert!(!marker.exists());
        cache.remove().unwrap();
        cache.remove().unwrap();
    }
}
