//! The record of WAL that was given up (`queue_max`): a file in `pg_wal`, where it stays when the daemon and the machine
//! start anew, until a backup that begins behind the gap is in every repository that has to acknowledge.
//!
//! It is replaced as a whole: a crash leaves the old record or the new one.

use std::fmt;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::Context;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use walpoint_base::{BackupId, SegmentSize, WalFileName, durable};

use super::target::newest_backup;
use super::upload::{Trouble, Uploader};

/// Its name in `pg_wal`.
const FILE: &str = "walpoint-dropped.json";

/// What was given up and matters still.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Gap {
    /// How many files.
    files: u64,
    /// The first one.
    first: String,
    /// The one that ends last.
    last: String,
    /// When the first one was given up.
    since: Timestamp,
}

impl fmt::Display for Gap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { files, first, last, since } = self;
        match files {
            1 => write!(f, "{first} was dropped and not archived {since:.0}")?,
            _ => write!(
                f,
                "{files} files of WAL from {first} to {last} were dropped and not archived since {since:.0}"
            )?,
        }
        write!(f, ", because more than queue_max waited: recovery cannot pass them. HINT: make a new backup")
    }
}

impl Gap {
    /// The record in a directory of WAL, if there is one.
    pub(crate) fn read(wal: &Path) -> anyhow::Result<Option<Self>> {
        let path = wal.join(FILE);
        let told = || format!("the record of dropped WAL, {}, cannot be read", path.display());
        match std::fs::read(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(told),
            Ok(content) => serde_json::from_slice(&content).map(Some).with_context(told),
        }
    }

    /// Adds a file to the record. Blocks.
    pub(super) fn record(wal: &Path, name: WalFileName) -> anyhow::Result<()> {
        // What cannot be read is no reason to lose what happens now.
        let before = Self::read(wal).unwrap_or_else(|problem| {
            tracing::error!("{problem:#}; it begins anew");
            None
        });
        let gap = match before {
            None => {
                Self { files: 1, first: name.to_string(), last: name.to_string(), since: Timestamp::now() }
            }
            Some(gap) => gap.with(name),
        };
        let path = wal.join(FILE);
        let content = serde_json::to_vec_pretty(&gap)?;
        durable::replace(&path, &content, 0o600)
            .with_context(|| format!("{} cannot be written", path.display()))
    }

    fn with(self, name: WalFileName) -> Self {
        let place = |name: WalFileName| name.segment().map(|s| (s.log, s.segment, s.timeline));
        let last = self.last.parse().ok().filter(|last| place(*last) > place(name));
        Self { files: self.files + 1, last: last.unwrap_or(name).to_string(), ..self }
    }

    /// Whether recovery from that backup does not need what was given up.
    fn is_before(&self, backup: BackupId, size: SegmentSize) -> anyhow::Result<bool> {
        let last: WalFileName =
            self.last.parse().context("the record of dropped WAL names no file of WAL")?;
        let behind = match last.segment().map(|segment| segment.number(size)) {
            Some(number) => backup.start() >= number.context("the last one is no segment")?.end(size),
            // A history: a backup on its timeline has seen to it.
            None => true,
        };
        Ok(behind && backup.timeline() >= last.timeline())
    }
}

/// Removes the record if a newer backup makes up for what it names; what it names, if not.
pub(crate) async fn settle(uploader: &Uploader) -> anyhow::Result<Option<Gap>> {
    let wal = uploader.wal_directory();
    let Some(gap) = read(&wal).await? else { return Ok(None) };
    let cluster = uploader.identity().await.map_err(|Trouble { text, .. }| anyhow::anyhow!(text))?;
    for target in uploader.targets().iter().filter(|target| target.acknowledges) {
        let newest = match target.archive(&cluster).await {
            Ok(archive) => newest_backup(&archive).await,
            // The store that failed may fail still: then there is no new backup either.
            Err(_) => return Ok(Some(gap)),
        };
        match newest {
            Ok(Some(backup)) if gap.is_before(backup, cluster.segment_size)? => {}
            Ok(_) | Err(_) => return Ok(Some(gap)),
        }
    }
    let path = wal.join(FILE);
    tokio::task::spawn_blocking(move || {
        durable::remove(&path).with_context(|| format!("{} cannot be removed", path.display()))
    })
    .await??;
    tracing::info!("a backup begins behind the WAL that was dropped: {} files from {}", gap.files, gap.first);
    Ok(None)
}

async fn read(wal: &Path) -> anyhow::Result<Option<Gap>> {
    let wal: PathBuf = wal.to_owned();
    tokio::task::spawn_blocking(move || Gap::read(&wal)).await?
}

#[cfg(test)]
mod tests {
    use walpoint_base::{Lsn, TimelineId};

    use super::*;

    fn name(text: &str) -> WalFileName {
        text.parse().unwrap()
    }

    #[test]
    fn the_record_grows_and_survives() {
        let wal = tempfile::tempdir().unwrap();
        assert_eq!(Gap::read(wal.path()).unwrap(), None);
        for file in [
            "000000010000000000000005",
            "000000010000000000000007",
            "000000010000000000000006",
            "00000002.history",
        ] {
            Gap::record(wal.path(), name(file)).unwrap();
        }
        let gap = Gap::read(wal.path()).unwrap().unwrap();
        assert_eq!((gap.files, gap.first.as_str()), (4, "000000010000000000000005"));
        assert_eq!(gap.last, "000000010000000000000007");
        assert!(
            gap.to_string()
                .starts_with("4 files of WAL from 000000010000000000000005 to 000000010000000000000007")
        );
        durable::replace(&wal.path().join(FILE), b"{", 0o600).unwrap();
        assert!(Gap::read(wal.path()).unwrap_err().to_string().contains("walpoint-dropped.json"));
        Gap::record(wal.path(), name("000000010000000000000008")).unwrap();
        assert_eq!(Gap::read(wal.path()).unwrap().unwrap().files, 1, "what cannot be read begins anew");
    }

    #[test]
    fn only_a_backup_that_begins_behind_it_makes_up_for_it() {
        let size = SegmentSize::new(16 << 20).unwrap();
        let gap = |last: &str| Gap {
            files: 1,
            first: last.into(),
            last: last.into(),
            since: Timestamp::UNIX_EPOCH,
        };
        let backup = |timeline, start| {
            let id = format!("20261122T000000Z-{timeline:08X}-{:016X}-00000000", Lsn(start).0);
            id.parse::<BackupId>().unwrap()
        };
        let segment = gap("000000010000000000000005");
        assert!(!segment.is_before(backup(1, 0x5ff_ff28), size).unwrap());
        assert!(segment.is_before(backup(1, 0x600_0028), size).unwrap());
        assert!(segment.is_before(backup(2, 0x600_0028), size).unwrap());
        let later = gap("000000020000000000000005");
        assert!(!later.is_before(backup(1, 0x600_0028), size).unwrap());
        let history = gap("00000002.history");
        assert!(history.is_before(backup(2, 0x100_0028), size).unwrap());
        assert!(!history.is_before(backup(1, 0x900_0028), size).unwrap());
        assert!(gap("else").is_before(backup(1, 0x900_0028), size).is_err());
        assert_eq!(backup(2, 1).timeline(), TimelineId::new(2).unwrap());
    }
}
