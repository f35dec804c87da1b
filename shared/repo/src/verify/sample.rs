//! A share of the objects, or as many as a time allows. Objects are taken in a fixed order, packs before segments, each by their names, and
//! each run goes on behind the object with which the last one stopped, around the end to the beginning: so in some runs
//! everything is read. What is read of an object is all of it, with every check it carries, and of a segment its records, unless it is long;
//! page checksums and the manifests' tables are the full verification's.
//!
//! The place is remembered in the repository, under `leases/verify/<n>`, so that it does not matter which machine goes on.
//! A crash leaves the place of the run before.

use std::time::Instant;

use futures_util::{StreamExt, stream};
use serde::{Deserialize, Serialize};
use walpoint_base::{BackupId, SegmentName, SegmentNo, WalFileName};
use walpoint_storage::error::{RepoError, Result, error_chain, found};
use walpoint_storage::layout::{ClusterObject, ClusterPaths, Key};
use walpoint_storage::object::{ObjectKind, ObjectReader, ObjectWriter};
use walpoint_storage::store::NumberClaim;

use super::light::NeededWal;
use super::report::FindingKind;
use super::wal::{LONGEST, hashed};
use super::{Depth, Run};
use crate::wal::WalArchive;
use crate::whole::whole;

/// Objects that are read at the same time.
const AT_ONCE: usize = 2;

/// The task's name among the leases.
const TASK: &str = "verify";

/// The longest remembered place.
const MAX_PLACE: usize = 4096;

/// Where the last run stopped.
#[derive(Debug, Default, Serialize, Deserialize)]
struct SamplePosition {
    /// The name of the object that it read last.
    after: String,
}

/// One object to be read.
#[derive(Clone)]
enum Item {
    Pack(BackupId, u32, Key),
    Segment(WalArchive, SegmentName, Key),
}

impl Item {
    /// Its place among all: packs before segments, each by their names.
    fn order(&self) -> (bool, &Key) {
        (matches!(self, Self::Segment(..)), self.key())
    }

    fn key(&self) -> &Key {
        match self {
            Self::Pack(_, _, key) | Self::Segment(_, _, key) => key,
        }
    }
}

impl Run<'_> {
    /// Reads some objects.
    pub(super) async fn sample(&mut self, needed: &[NeededWal]) -> Result<()> {
        let mut items = self.items(needed);
        let (last, place) = self.place().await?;
        // What was read last may have been deleted since: the next one is what comes behind its name.
        let paths = ClusterPaths::new(self.cluster);
        let after = place.after.parse::<Key>().ok();
        let is_pack = |key: &Key| matches!(paths.parse(key), Some(ClusterObject::Pack(..)));
        let begin = after.map_or(0, |after| {
            let after = (!is_pack(&after), &after);
            items.partition_point(|item| item.order() <= after)
        });
        items.rotate_left(begin);
        let (count, until) = match self.options.depth {
            Depth::Sample(share) => (wanted(items.len(), share), None),
            // A time that the clock cannot count to is no limit.
            Depth::Budget(span) => (items.len(), Instant::now().checked_add(span)),
            _ => (items.len(), None),
        };
        let all = items.len();
        let check = std::sync::Arc::clone(&self.check);
        let sealer = self.repository.sealer().clone();
        let store = self.repository.store().clone();
        let in_time = move || until.is_none_or(|until| Instant::now() < until);
        let chosen = items.into_iter().take(count).take_while(move |_| in_time());
        let read = stream::iter(chosen).map(|item| {
            let (sealer, store, check) = (sealer.clone(), store.clone(), std::sync::Arc::clone(&check));
            async move {
                let result = match &item {
                    Item::Pack(_, _, key) => match store.get(key).await {
                        Ok(bytes) => whole(sealer, ObjectKind::Pack, key.clone(), bytes).await,
                        Err(error) => Err(error),
                    },
                    Item::Segment(archive, name, key) => segment(archive, *name, key, check.wal()).await,
                };
                (item, result)
            }
        });
        let mut read = read.buffered(AT_ONCE);
        let mut place = None;
        while let Some((item, result)) = read.next().await {
            place = Some(item.key().to_string());
            match result {
                Ok(bytes) => {
                    self.report.read_object_count += 1;
                    self.report.verified_bytes += bytes;
                }
                Err(error @ (RepoError::Corrupt { .. } | RepoError::NotFound { .. })) => match &item {
                    Item::Pack(owner, pack, _)
                        if error.is_not_found() && !self.is_still_used(*owner, *pack).await? => {}
                    Item::Pack(owner, pack, _) if error.is_not_found() => {
                        self.bad_pack(*owner, *pack, FindingKind::Damaged, error.to_string())
                    }
                    Item::Pack(owner, pack, _) => self.damaged_pack(*owner, *pack, error.to_string()).await?,
                    // Absent is a finding only while something needs it: retention may have deleted it meanwhile.
                    Item::Segment(archive, name, _) if error.is_not_found() => {
                        if self.is_needed_now(archive, *name).await? {
                            self.bad_segment(archive, *name, FindingKind::Missing, error.to_string());
                        }
                    }
                    Item::Segment(archive, name, _) if self.was_deleted(archive, *name).await? => {}
                    Item::Segment(archive, name, _) => {
                        self.bad_segment(archive, *name, FindingKind::Damaged, error.to_string());
                    }
                },
                Err(error) => return Err(error),
            }
        }
        drop(read);
        self.report.notes.push(format!("{} of {all} objects were read", self.report.read_object_count));
        // What was found is told even where nothing can be written.
        if let Some(after) = place
            && let Err(error) = self.remember(last, &SamplePosition { after }).await
        {
            let error = error_chain(&error);
            self.report.notes.push(format!("the next run starts where this one started: {error}"));
        }
        Ok(())
    }

    fn items(&self, needed: &[NeededWal]) -> Vec<Item> {
        let paths = ClusterPaths::new(self.cluster);
        let packs = self.packs.keys().filter(|pack| !self.damaged.contains(pack));
        let mut items: Vec<Item> =
            packs.map(|(owner, pack)| Item::Pack(*owner, *pack, paths.pack(*owner, *pack))).collect();
        for NeededWal { lineage, timelines } in needed {
            let archive = self.repository.wal(lineage);
            for (timeline, runs) in timelines {
                for run in runs.iter() {
                    items.extend((run.first.0..=run.last.0).map(|number| {
                        let name = SegmentNo(number).name(*timeline, lineage.segment_size);
                        Item::Segment(archive.clone(), name, archive.paths().segment(name))
                    }));
                }
            }
        }
        items.sort_by(|a, b| a.order().cmp(&b.order()));
        items
    }

    /// The number of the last entry, and what it says.
    async fn place(&self) -> Result<(u64, SamplePosition)> {
        let paths = ClusterPaths::new(self.cluster);
        let Ok(prefix) = paths.sequence(&format!("leases/{TASK}")) else {
            return Ok((0, SamplePosition::default()));
        };
        let store = self.repository.store();
        let entries = store.list_all(&prefix).await?;
        let numbers = entries.iter().filter_map(|entry| entry.key.below(&prefix)?.parse::<u64>().ok());
        let Some(last) = numbers.max() else { return Ok((0, SamplePosition::default())) };
        let Ok(key) = paths.lease(TASK, last) else { return Ok((last, SamplePosition::default())) };
        let Some(bytes) = found(store.get(&key).await)? else { return Ok((last, SamplePosition::default())) };
        let mut json = Vec::new();
        let read = ObjectReader::open(self.repository.sealer(), &[ObjectKind::Lease], &key, bytes)
            .and_then(|reader| reader.read_all(MAX_PLACE, &mut json));
        // A place that cannot be read is a beginning.
        let place = read.ok().and_then(|_| serde_json::from_slice(&json).ok()).unwrap_or_default();
        Ok((last, place))
    }

    /// Writes the next entry and deletes the one before. A run that may only read begins at the beginning each time. An error says
    /// that it was not written.
    async fn remember(&mut self, last: u64, place: &SamplePosition) -> Result<()> {
        let paths = ClusterPaths::new(self.cluster);
        let internal =
            |what: String| RepoError::Internal(format!("could not record where the run stopped: {what}"));
        let key = paths.lease(TASK, last + 1).map_err(|e| internal(e.to_string()))?;
        let json = serde_json::to_vec(place).map_err(|e| internal(e.to_string()))?;
        let sealed =
            ObjectWriter::new(self.repository.sealer(), ObjectKind::Lease, &key).and_then(|mut writer| {
                writer.frame(&json)?;
                writer.finish()
            });
        let store = self.repository.store();
        match store.claim(&sealed.map_err(|e| internal(e.to_string()))?).await {
            Ok(NumberClaim::Won) if last > 0 => {
                // The highest number counts, whatever else is there.
                if let Ok(key) = paths.lease(TASK, last)
                    && let Err(error) = store.delete(&key).await
                    && !matches!(error, RepoError::Denied { .. })
                {
                    let error = error_chain(&error);
                    self.report
                        .notes
                        .push(format!("\"{key}\" is no longer needed and could not be deleted: {error}"));
                }
                Ok(())
            }
            // Somebody else verifies too: theirs is as good a place.
            Ok(_) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// A share of a number of objects, rounded up.
fn wanted(objects: usize, share: f64) -> usize {
    // In parts of a million, so that no float is cut to an integer.
    let parts = (0..=1_000_000u32).rev().find(|n| f64::from(*n) <= share * 1e6).unwrap_or(0);
    let wanted =
        u64::try_from(objects).unwrap_or(u64::MAX).saturating_mul(u64::from(parts)).div_ceil(1_000_000);
    usize::try_from(wanted).unwrap_or(usize::MAX).max(1).min(objects)
}

/// Reads a segment and its records; a long one a part at a time, and by its hashes alone, as the full verification does.
pub(super) async fn segment(
    archive: &WalArchive,
    name: SegmentName,
    key: &Key,
    mut check: Box<dyn super::WalCheck>,
) -> Result<u64> {
    let missing =
        || RepoError::NotFound { key: key.clone(), store: archive.repository().store().name().to_owned() };
    let size = archive.lineage().segment_size.bytes();
    if size > LONGEST {
        hashed(archive, name).await?.ok_or_else(missing)?;
        return Ok(size);
    }
    let file = archive.get(WalFileName::Segment(name)).await?.ok_or_else(missing)?;
    let key = key.clone();
    crate::cpu::run(move || {
        check.segment(name, &file.content).map_err(|what| RepoError::corrupt(&key, what))?;
        Ok(u64::try_from(file.content.len()).unwrap_or(0))
    })
    .await?
}
