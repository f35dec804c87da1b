//! What the index says about a timeline: the newest readable generation of each object.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::TryStreamExt;
use walpoint_base::{SegmentNo, TimelineId};

use super::entry::GroupSummary;
use super::page::{Directory, Group};
use super::{DIRECTORY_LEVEL, FANOUT, GROUP_LEVEL, first_of, gather, last_of};
use crate::error::{RepoError, Result};
use crate::wal::WalArchive;

/// Sealed groups that are kept in memory, about 130 KB each.
const CACHED: usize = 16;

/// The index of one timeline.
///
/// A damaged or vanished index object is passed over for its older generations, and in the end for the segments' own
/// headers: the index is never the only place where something is written.
#[derive(Debug)]
pub struct TimelineIndex {
    archive: WalArchive,
    timeline: TimelineId,
    directories: BTreeMap<u64, Directory>,
    /// Groups that no directory has yet.
    open: BTreeMap<u64, Arc<Group>>,
    cache: BTreeMap<u64, Arc<Group>>,
    /// The highest generation listed of each directory and each open group, readable or not.
    listed: BTreeMap<(u8, u64), u32>,
    /// Index objects that could not be read, for people.
    problems: Vec<String>,
}

impl TimelineIndex {
    /// Reads what is known of a timeline: two listings, and one object for each directory and each open group.
    pub async fn load(archive: &WalArchive, timeline: TimelineId) -> Result<Self> {
        let mut index = Self {
            archive: archive.clone(),
            timeline,
            directories: BTreeMap::new(),
            open: BTreeMap::new(),
            cache: BTreeMap::new(),
            listed: BTreeMap::new(),
            problems: Vec::new(),
        };
        for (n, generations) in index.generations(DIRECTORY_LEVEL, None, None).await? {
            if let Some(directory) = index.newest_directory(n, &generations).await? {
                index.directories.insert(n, directory);
            }
        }
        let sealed = index.sealed_through();
        for (n, generations) in index.generations(GROUP_LEVEL, sealed, None).await? {
            if let Some(group) = index.newest_group(n, &generations).await? {
                index.open.insert(n, Arc::new(group));
            }
        }
        Ok(index)
    }

    /// The timeline.
    pub fn timeline(&self) -> TimelineId {
        self.timeline
    }

    /// The last group that a directory has.
    pub fn sealed_through(&self) -> Option<u64> {
        self.directories.values().filter_map(|d| d.iter().last().map(|(n, _)| n)).max()
    }

    /// The first segment of which only a listing tells whether it is there.
    pub fn first_unsealed(&self) -> SegmentNo {
        self.sealed_through().map_or(SegmentNo(0), |n| first_of(n.saturating_add(1)))
    }

    /// The sealed groups, in order.
    pub fn sealed(&self) -> impl Iterator<Item = (u64, &GroupSummary)> {
        self.directories.values().flat_map(Directory::iter)
    }

    /// What is known of a sealed group.
    pub fn summary(&self, n: u64) -> Option<&GroupSummary> {
        self.directories.get(&(n / FANOUT))?.iter().find(|(group, _)| *group == n).map(|(_, s)| s)
    }

    /// The groups that are not sealed, as far as they are known.
    pub fn open_groups(&self) -> impl Iterator<Item = &Arc<Group>> {
        self.open.values()
    }

    /// The highest segment that it names: one that was stored, whatever has become of it.
    pub fn last(&self) -> Option<SegmentNo> {
        let open = self.open.values().filter_map(|group| group.iter().next_back());
        let sealed = self.sealed().map(|(_, summary)| summary.last);
        open.map(|(number, _)| number).chain(sealed).max()
    }

    /// The directories.
    pub(super) fn directories(&self) -> &BTreeMap<u64, Directory> {
        &self.directories
    }

    /// Index objects that could not be read, for people.
    pub fn problems(&self) -> &[String] {
        &self.problems
    }

    /// A group's entries. An open group may lack its last segments; a sealed one that cannot be read is put together from
    /// the segments' headers.
    pub async fn group(&mut self, n: u64) -> Result<Arc<Group>> {
        if let Some(group) = self.open.get(&n).or_else(|| self.cache.get(&n)) {
            return Ok(group.clone());
        }
        let Some(summary) = self.summary(n).copied() else {
            return Ok(Arc::new(Group::empty(self.timeline, n)));
        };
        let read = self.newest_group(n, &[summary.generation]).await?;
        let group = Arc::new(match read {
            Some(group) => group,
            None => self.gathered(n).await?,
        });
        if self.cache.len() >= CACHED {
            self.cache.pop_first();
        }
        self.cache.insert(n, group.clone());
        Ok(group)
    }

    /// The generation that a directory or an open group gets next.
    pub(super) fn next_generation(&self, level: u8, n: u64) -> u32 {
        self.listed.get(&(level, n)).map_or(1, |g| g.saturating_add(1))
    }

    /// Takes over a group whose next generation was stored.
    pub(super) fn wrote_group(&mut self, group: Group) {
        self.listed.insert((GROUP_LEVEL, group.n), group.generation);
        self.cache.remove(&group.n);
        self.open.insert(group.n, Arc::new(group));
    }

    /// Takes over a directory whose next generation was stored: what it has is not open any more.
    pub(super) fn wrote_directory(&mut self, directory: Directory) {
        self.listed.insert((DIRECTORY_LEVEL, directory.n), directory.generation);
        for (n, _) in directory.iter() {
            self.open.remove(&n);
        }
        self.directories.insert(directory.n, directory);
    }

    /// A group to be written again, with its next generation in it. A sealed one may have generations that its directory
    /// does not know yet, so they are listed.
    pub(super) async fn group_to_write(&mut self, n: u64) -> Result<Group> {
        let mut group = if self.summary(n).is_some() {
            let after = n.checked_sub(1);
            let generations =
                self.generations(GROUP_LEVEL, after, Some(n)).await?.remove(&n).unwrap_or_default();
            match self.newest_group(n, &generations).await? {
                Some(group) => group,
                None => self.gathered(n).await?,
            }
        } else {
            Group::clone(&*self.group(n).await?)
        };
        group.generation = self.next_generation(GROUP_LEVEL, n);
        Ok(group)
    }

    /// A group put together from the headers of its segments.
    async fn gathered(&self, n: u64) -> Result<Group> {
        let mut group = Group::empty(self.timeline, n);
        let (listed, _) =
            gather::list(&self.archive, self.timeline, first_of(n), last_of(n), usize::MAX).await?;
        for (number, entry) in gather::entries(&self.archive, self.timeline, listed).await? {
            group.set(number, Some(entry));
        }
        Ok(group)
    }

    /// The generations of each object of a level behind number `after`, up to number `last`, highest first.
    async fn generations(
        &mut self,
        level: u8,
        after: Option<u64>,
        last: Option<u64>,
    ) -> Result<BTreeMap<u64, Vec<u32>>> {
        let prefix = self.archive.paths().index(self.timeline, level);
        // '/' sorts behind '.', so every generation of `after` is passed over.
        let start = after.map(|n| format!("{}/{n:012}/", prefix.as_str()));
        let mut entries = self.archive.repository().store().list(&prefix, start.as_deref());
        let mut found: BTreeMap<u64, Vec<u32>> = BTreeMap::new();
        while let Some(entry) = entries.try_next().await? {
            let name = entry.key.below(&prefix).and_then(|name| name.split_once('.'));
            let numbers = name.and_then(|(n, g)| Some((n.parse::<u64>().ok()?, g.parse().ok()?)));
            if let Some((n, generation)) = numbers {
                if last.is_some_and(|last| n > last) {
                    break;
                }
                found.entry(n).or_default().push(generation);
            }
        }
        for (&n, generations) in &mut found {
            generations.sort_unstable_by(|a, b| b.cmp(a));
            self.listed.extend(generations.first().map(|&highest| ((level, n), highest)));
        }
        Ok(found)
    }

    async fn newest_directory(&mut self, n: u64, generations: &[u32]) -> Result<Option<Directory>> {
        for &generation in generations {
            let key = self.archive.paths().index_object(self.timeline, DIRECTORY_LEVEL, n, generation);
            let read = self.archive.repository().store().get(&key).await.and_then(|bytes| {
                let at = (self.timeline, n, generation);
                Directory::open(self.archive.repository().sealer(), &key, bytes, at)
            });
            if let Some(directory) = self.usable(read)? {
                return Ok(Some(directory));
            }
        }
        Ok(None)
    }

    async fn newest_group(&mut self, n: u64, generations: &[u32]) -> Result<Option<Group>> {
        let size = self.archive.lineage().segment_size;
        for &generation in generations {
            let key = self.archive.paths().index_object(self.timeline, GROUP_LEVEL, n, generation);
            let read = self.archive.repository().store().get(&key).await.and_then(|bytes| {
                let at = (self.timeline, n, generation);
                Group::open(self.archive.repository().sealer(), &key, bytes, at, size)
            });
            if let Some(group) = self.usable(read)? {
                return Ok(Some(group));
            }
        }
        Ok(None)
    }

    /// `None` for an object that is damaged or has vanished; any other failure is one.
    fn usable<T>(&mut self, read: Result<T>) -> Result<Option<T>> {
        match read {
            Ok(value) => Ok(Some(value)),
            Err(error @ (RepoError::NotFound { .. } | RepoError::Corrupt { .. })) => {
                self.problems.push(error.to_string());
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}
