//! WAL that was dropped (`queue_max`, `push --skip`), or archived although it is damaged, and matters still: by the record of the data
//! directory ([`walpoint_base::dropped`]), and no backup makes up for it that begins behind it and is in every repository that has to
//! acknowledge. An object of its name makes up for nothing: a damaged one may be why it was dropped.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::time::Duration;

use anyhow::Context;
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Serialize;
use walpoint_base::dropped::{self, DropReason, Dropped};
use walpoint_base::{BackupId, SegmentName, SegmentSize, WalFileName};
use walpoint_pg::wal::WalIdentity;

use super::base;
use super::disk;
use super::target::{TargetError, WalTarget};
use super::upload::{Upload, Uploader};

/// How long the repositories may take to say whether what they hold of a file is sound.
const TIME_LIMIT: Duration = Duration::from_secs(5);

/// WAL that was dropped, or archived although damaged, and after which no backup begins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[schemars(rename = "DroppedWal")]
pub(crate) struct Gap {
    /// The number of files.
    file_count: usize,
    /// The first file.
    first_file: String,
    /// The last file.
    last_file: String,
    /// When the first one was dropped.
    since_time: Timestamp,
    /// The number of files that were skipped on request (`push --skip`).
    skipped_count: usize,
    /// The number of files that were archived although damaged (`push --accept-damaged`).
    damaged_count: usize,
}

impl fmt::Display for Gap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            file_count: files,
            first_file: first,
            last_file: last,
            since_time: since,
            skipped_count: skipped,
            damaged_count: damaged,
        } = self;
        let what = match damaged {
            0 => "dropped",
            all if all == files => "archived although damaged",
            _ => "dropped, or archived although damaged,",
        };
        match files {
            1 => write!(f, "{first} was {what}, {since:.0}")?,
            _ => write!(f, "{files} files of WAL from {first} to {last} were {what} since {since:.0}")?,
        }
        let asked = [(*skipped, "push --skip"), (*damaged, "push --accept-damaged")];
        let queue_max = (skipped + damaged < *files).then(|| "because more than queue_max waited".to_owned());
        let asked = asked.into_iter().filter(|(count, _)| *count > 0);
        let why =
            queue_max.into_iter().chain(asked.map(|(_, command)| format!("as requested with {command}")));
        let why = why.collect::<Vec<_>>().join(", or ");
        let them = if *files == 1 { "it" } else { "them" };
        write!(f, ", {why}: recovery cannot pass {them}\nHINT: Take a new backup.")
    }
}

impl std::error::Error for Gap {}

impl Gap {
    /// One of one file.
    #[cfg(test)]
    pub(crate) fn example() -> Self {
        let name = "000000010000000000000005".parse().unwrap();
        Self::of(&[Dropped { name, at: 7, reason: DropReason::QueueMax }]).unwrap()
    }

    pub(super) fn of(dropped: &[Dropped]) -> Option<Self> {
        let (first, last) = (dropped.first()?, dropped.last()?);
        let since = Timestamp::from_second(first.at).unwrap_or(Timestamp::UNIX_EPOCH);
        let count = |reason| dropped.iter().filter(|dropped| dropped.reason == reason).count();
        Some(Self {
            skipped_count: count(DropReason::Skipped),
            damaged_count: count(DropReason::Damaged),
            file_count: dropped.len(),
            first_file: first.name.to_string(),
            last_file: last.name.to_string(),
            since_time: since,
        })
    }
}

/// Looks for what recovery from the newest backups cannot pass, by the record.
pub(crate) async fn look(uploader: &Uploader) -> anyhow::Result<Option<Gap>> {
    Ok(Gap::of(&on_record(uploader, &[]).await?))
}

/// What recovery from the newest backups cannot pass, by the record and by what was dropped `lately`: where the disk is full, that is on no
/// record. While a repository cannot be read, all of it counts.
pub(super) async fn on_record(uploader: &Uploader, lately: &[Dropped]) -> anyhow::Result<Vec<Dropped>> {
    let wal = uploader.wal_directory();
    let directory = wal.clone();
    let read = disk::run(&directory, move || {
        dropped::read(&wal).with_context(|| {
            format!("the record of dropped WAL, {}, cannot be read", wal.join(dropped::FILE).display())
        })
    });
    let dropped = with_lately(read.await??, lately);
    if dropped.is_empty() {
        return Ok(dropped);
    }
    let cluster = uploader.identity().await?;
    let mut newest = Vec::new();
    for target in uploader.targets().iter().filter(|target| target.acknowledges) {
        // One that hangs cannot be read either.
        let looked = tokio::time::timeout(TIME_LIMIT, newest_backup(uploader, target, &cluster)).await;
        newest.push(looked.ok().and_then(Result::ok).flatten());
    }
    Ok(without_backup(dropped, &newest, cluster.segment_size))
}

/// What is on record, and what was dropped `lately` and is not.
fn with_lately(mut record: Vec<Dropped>, lately: &[Dropped]) -> Vec<Dropped> {
    let recorded: BTreeSet<WalFileName> = record.iter().map(|dropped| dropped.name).collect();
    record.extend(lately.iter().filter(|dropped| !recorded.contains(&dropped.name)));
    record
}

/// The newest backup that this server can be recovered from.
async fn newest_backup(
    uploader: &Uploader,
    target: &WalTarget,
    cluster: &WalIdentity,
) -> anyhow::Result<Option<BackupId>> {
    let archive = target.archive(cluster).await?;
    match base::path(uploader, &archive).await? {
        Some(path) => Ok(base::newest_backup(&archive, &path).await?),
        None => Ok(None),
    }
}

/// What of the record counts, with the newest backup in each repository that has to acknowledge.
fn without_backup(mut dropped: Vec<Dropped>, newest: &[Option<BackupId>], size: SegmentSize) -> Vec<Dropped> {
    let made_up_for = |dropped: &Dropped, backup: &Option<BackupId>| {
        backup.is_some_and(|backup| makes_up_for(backup, dropped, size))
    };
    // A label of a backup is for people: recovery reads none.
    dropped.retain(|dropped| !matches!(dropped.name, WalFileName::Backup(..)));
    dropped.retain(|dropped| newest.is_empty() || !newest.iter().all(|backup| made_up_for(dropped, backup)));
    dropped
}

/// Whether recovery from that backup does not need a file.
fn makes_up_for(backup: BackupId, dropped: &Dropped, size: SegmentSize) -> bool {
    let name = dropped.name;
    let behind = match name.segment().and_then(|segment| segment.number(size)) {
        Some(number) => backup.start() >= number.end(size),
        // A history: a backup on its timeline has seen to it.
        None => name.segment().is_none(),
    };
    behind && backup.timeline() >= name.timeline()
}

/// Whether a file that was acknowledged is on record as dropped, and is stored as a sound one: then the record has to say so. While that
/// cannot be determined, it stays dropped.
pub(super) async fn is_archived_after_all(uploader: &impl Upload, name: WalFileName) -> bool {
    let (directory, wal) = (uploader.wal_directory(), uploader.wal_directory());
    let dropped = disk::look(&directory, move || dropped::is_dropped(&wal, name)).await;
    match dropped.map_err(io::Error::other).and_then(|dropped| dropped) {
        Ok(dropped) => dropped && uploader.holds_sound(name).await,
        Err(error) => {
            let record = directory.join(dropped::FILE);
            tracing::debug!(file = %name, "{} cannot be read: {error}", record.display());
            false
        }
    }
}

impl Uploader {
    /// Whether every repository that has to acknowledge holds a file that was stored as a sound one. Only a segment may have been
    /// accepted although damaged. `false` also if they do not answer soon.
    pub(crate) async fn holds_sound(&self, name: WalFileName) -> bool {
        let WalFileName::Segment(segment) = name else { return true };
        let look = async {
            let cluster = self.identity().await.map_err(|error| TargetError::Server(error.text))?;
            self.all_hold_sound(&cluster, segment).await
        };
        match tokio::time::timeout(TIME_LIMIT, look).await {
            Ok(Ok(sound)) => sound,
            failed => {
                tracing::debug!(file = %name, "it is not known whether it is stored sound: {failed:?}");
                false
            }
        }
    }

    async fn all_hold_sound(&self, cluster: &WalIdentity, segment: SegmentName) -> Result<bool, TargetError> {
        for target in self.targets().iter().filter(|target| target.acknowledges) {
            let archive = target.archive_at(cluster, segment.timeline).await?;
            if archive.header(segment).await?.is_none_or(|header| header.damaged) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::{Bed, size, uploader};
    use super::*;
    use crate::binding;

    fn dropped(name: &str) -> Dropped {
        Dropped { name: name.parse().unwrap(), at: 7, reason: DropReason::QueueMax }
    }

    #[test]
    fn only_a_backup_that_begins_behind_it_makes_up_for_it() {
        let size = SegmentSize::new(16 << 20).unwrap();
        let makes_up = |timeline: u32, start: u64, name: &str| {
            let id = format!("20261122T000000Z-{timeline:08X}-{start:016X}-00000000");
            makes_up_for(id.parse().unwrap(), &dropped(name), size)
        };
        let segment = "000000010000000000000005";
        assert!(!makes_up(1, 0x5ff_ff28, segment));
        assert!(makes_up(1, 0x600_0028, segment) && makes_up(2, 0x600_0028, segment));
        assert!(!makes_up(1, 0x600_0028, "000000020000000000000005"));
        assert!(makes_up(2, 0x100_0028, "00000002.history"));
        assert!(!makes_up(1, 0x900_0028, "00000002.history"));
    }

    #[test]
    fn what_was_dropped_counts_until_every_repository_has_a_backup_behind_it() {
        let size = SegmentSize::new(16 << 20).unwrap();
        let names = ["000000010000000000000005", "000000010000000000000006"];
        let behind = |segment: u32| {
            let id = format!("20261122T000000Z-00000001-{:016X}-00000000", (segment + 1) << 24 | 0x28);
            Some(id.parse::<BackupId>().unwrap())
        };
        let left = |newest: &[Option<BackupId>]| {
            let left = without_backup(names.map(dropped).to_vec(), newest, size);
            left.iter().map(|dropped| dropped.name.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(left(&[behind(4)]), names);
        assert_eq!(left(&[behind(5)]), names[1..]);
        assert_eq!(left(&[behind(6)]), names[2..]);
        assert_eq!(left(&[behind(6), behind(5)]), names[1..], "the other one has to have it, too");
        assert_eq!(left(&[behind(6), None]), names, "it cannot be read, or has none");
        assert_eq!(left(&[]), names);
        let label = dropped("000000010000000000000006.00000028.backup");
        assert!(without_backup(vec![label], &[], size).is_empty(), "recovery needs none");
    }

    #[tokio::test]
    async fn only_what_every_repository_holds_undamaged_is_archived_after_all() {
        let (main, far) = (Bed::named("main").await, Bed::named("far").await);
        for bed in [&main, &far] {
            let (repository, lineage) = (bed.archive.repository().id(), bed.archive.lineage());
            binding::add(&main.pgdata(), &lineage.cluster, repository, lineage.id).unwrap();
        }
        let lineage = main.archive.lineage();
        let cluster =
            WalIdentity { system_id: lineage.system_id(), major: lineage.major, segment_size: size() };
        let uploader = uploader(&[&main, &far], &["main", "far"]);
        let [first, second] = ["000000010000000000000005", "000000010000000000000006"];
        let sound =
            async |name: &str| uploader.all_hold_sound(&cluster, name.parse().unwrap()).await.unwrap();
        assert!(!sound(first).await, "nothing is stored");
        main.put(first, 1).await;
        assert!(!sound(first).await, "one lacks it");
        far.put(first, 1).await;
        assert!(sound(first).await);
        main.put(second, 1).await;
        far.put_damaged(second, 1).await;
        assert!(!sound(second).await, "one accepted it although it is damaged");
    }

    #[test]
    fn what_was_dropped_lately_counts_though_it_is_on_no_record() {
        let [first, second] = ["000000010000000000000005", "000000010000000000000006"].map(dropped);
        let recorded = Dropped { at: 3, ..first };
        assert_eq!(with_lately(vec![recorded], &[first, second]), [recorded, second]);
        assert_eq!(with_lately(Vec::new(), &[second]), [second]);
    }

    #[test]
    fn a_gap_names_its_ends() {
        assert_eq!(Gap::of(&[]), None);
        let one = Gap::of(&[dropped("000000010000000000000005")]).unwrap();
        assert!(one.to_string().starts_with(
            "000000010000000000000005 was dropped, 1970-01-01T00:00:07Z, because more than queue_max waited"
        ));
        assert!(one.to_string().ends_with(": recovery cannot pass it\nHINT: Take a new backup."));
        let skipped = Dropped { reason: DropReason::Skipped, ..dropped("000000010000000000000005") };
        assert!(Gap::of(&[skipped]).unwrap().to_string().contains("as requested with push --skip"));
        let accepted = Dropped { reason: DropReason::Damaged, ..dropped("000000010000000000000005") };
        let accepted = Gap::of(&[accepted]).unwrap().to_string();
        assert!(accepted.contains(
            "05 was archived although damaged, 1970-01-01T00:00:07Z, as requested with push --accept-damaged"
        ));
        let two =
            Gap::of(&[dropped("000000010000000000000005"), dropped("000000010000000000000006")]).unwrap();
        assert!(two.to_string().starts_with(
            "2 files of WAL from 000000010000000000000005 to 000000010000000000000006 were dropped since 1970"
        ));
    }
}
