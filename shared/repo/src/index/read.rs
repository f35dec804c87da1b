//! What the index says about a timeline: the newest readable generation of each object.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::future::try_join;
use futures_util::stream::{self, BoxStream};
use futures_util::{StreamExt, TryStreamExt};
use walpoint_base::{SegmentNo, TimelineId};
use walpoint_storage::error::{RepoError, Result};

use super::entry::GroupSummary;
use super::page::{Directory, Group};
use super::{DIRECTORY_LEVEL, FANOUT, GROUP_LEVEL, first_of, gather, last_of};
use crate::wal::WalArchive;

/// Sealed groups that are kept in memory, about 130 KB each.
const CACHED: usize = 16;

/// Objects that are read at the same time.
const AT_ONCE: usize = 8;

/// A listing of groups that begins at a guess is given up when it is longer: one request.
const AHEAD: usize = 1000;

/// The groups at the end of such a listing that are read before it is known which ones are open: mostly one is.
const NEWEST: usize = 1;

/// The generations of objects of a level, by number, highest first.
type Generations = BTreeMap<u64, Vec<u32>>;

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
        Self::load_near(archive, timeline, None).await
    }

    /// The same with fewer requests that wait for one another, if it is guessed right that no group before `near` is open.
    /// The guess costs at most three requests, and decides nothing.
    pub async fn load_near(archive: &WalArchive, timeline: TimelineId, near: Option<u64>) -> Result<Self> {
        let mut index = Self {
            archive: archive.clone(),
            timeline,
            directories: BTreeMap::new(),
            open: BTreeMap::new(),
            cache: BTreeMap::new(),
            listed: BTreeMap::new(),
            problems: Vec::new(),
        };
        let (directories, ahead) =
            try_join(index.generations(DIRECTORY_LEVEL, None, None), index.groups_ahead(near)).await?;
        index.note_listed(DIRECTORY_LEVEL, &directories);
        let newest: Generations =
            ahead.iter().flatten().rev().take(NEWEST).map(|(n, g)| (*n, g.clone())).collect();
        let (directories, groups) =
            try_join(index.read_directories(directories), index.read_groups(newest)).await?;
        for (n, read) in directories {
            index.problems.extend(read.problems);
            index.directories.extend(read.object.map(|directory| (n, directory)));
        }
        let sealed = index.sealed_through();
        let first = sealed.map_or(0, |n| n.saturating_add(1));
        let mut open = match ahead.filter(|_| near.is_some_and(|near| near <= first)) {
            Some(mut ahead) => ahead.split_off(&first),
            None => index.generations(GROUP_LEVEL, sealed, None).await?,
        };
        index.note_listed(GROUP_LEVEL, &open);
        let read: BTreeMap<u64, Read<Group>> =
            groups.into_iter().filter(|(n, _)| open.remove(n).is_some()).collect();
        let rest = index.read_groups(open).await?;
        for (n, read) in read.into_iter().chain(rest) {
            index.problems.extend(read.problems);
            index.open.extend(read.object.map(|group| (n, Arc::new(group))));
        }
        Ok(index)
    }

    /// The generations of the groups from `near` on; nothing if there is no guess, or a bad one.
    async fn groups_ahead(&self, near: Option<u64>) -> Result<Option<Generations>> {
        let Some(near) = near else { return Ok(None) };
        let mut listing = self.list_generations(GROUP_LEVEL, near.checked_sub(1));
        let (mut found, mut count) = (Generations::new(), 0);
        while let Some((n, generation)) = listing.try_next().await? {
            count += 1;
            if count > AHEAD {
                return Ok(None);
            }
            found.entry(n).or_default().push(generation);
        }
        highest_first(&mut found);
        Ok(Some(found))
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
        self.problems.extend(read.problems);
        let group = Arc::new(match read.object {
            Some(group) => group,
            None => self.gathered(n).await?,
        });
        self.keep([group.clone()]);
        Ok(group)
    }

    /// Reads sealed groups at the same time, as many as [`Self::keep`] keeps. One that cannot be read is left to
    /// [`Self::group`].
    pub async fn fetch(&self, groups: impl IntoIterator<Item = u64>) -> Result<Vec<Arc<Group>>> {
        let unread = groups.into_iter().filter(|n| !self.cache.contains_key(n));
        let unread = unread.filter_map(|n| Some((n, vec![self.summary(n)?.generation])));
        let read = self.read_groups(unread.take(CACHED).collect()).await?;
        Ok(read.into_iter().filter_map(|(_, read)| read.object.map(Arc::new)).collect())
    }

    /// Keeps sealed groups in memory, instead of others if they are too many.
    pub fn keep(&mut self, groups: impl IntoIterator<Item = Arc<Group>>) {
        for group in groups {
            if self.cache.len() >= CACHED {
                self.cache.pop_first();
            }
            self.cache.insert(group.n, group);
        }
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
            let mut generations = self.generations(GROUP_LEVEL, after, Some(n)).await?;
            self.note_listed(GROUP_LEVEL, &generations);
            let read = self.newest_group(n, &generations.remove(&n).unwrap_or_default()).await?;
            self.problems.extend(read.problems);
            match read.object {
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
    async fn generations(&self, level: u8, after: Option<u64>, last: Option<u64>) -> Result<Generations> {
        let mut listing = self.list_generations(level, after);
        let mut found = Generations::new();
        while let Some((n, generation)) = listing.try_next().await? {
            if last.is_some_and(|last| n > last) {
                break;
            }
            found.entry(n).or_default().push(generation);
        }
        highest_first(&mut found);
        Ok(found)
    }

    /// Number and generation of each object of a level behind number `after`.
    fn list_generations(&self, level: u8, after: Option<u64>) -> BoxStream<'static, Result<(u64, u32)>> {
        let prefix = self.archive.paths().index(self.timeline, level);
        // '/' sorts behind '.', so every generation of `after` is passed over.
        let start = after.map(|n| format!("{}/{n:012}/", prefix.as_str()));
        let entries = self.archive.repository().store().list(&prefix, start.as_deref());
        entries
            .try_filter_map(move |entry| {
                let name = entry.key.below(&prefix).and_then(|name| name.split_once('.'));
                let numbers = name.and_then(|(n, g)| Some((n.parse::<u64>().ok()?, g.parse().ok()?)));
                std::future::ready(Ok(numbers))
            })
            .boxed()
    }

    fn note_listed(&mut self, level: u8, generations: &Generations) {
        let highest = generations.iter().filter_map(|(n, all)| Some(((level, *n), *all.first()?)));
        self.listed.extend(highest);
    }

    async fn read_directories(&self, all: Generations) -> Result<Vec<(u64, Read<Directory>)>> {
        let reads = all.into_iter().map(|(n, generations)| async move {
            Ok::<_, RepoError>((n, self.newest_directory(n, &generations).await?))
        });
        stream::iter(reads.collect::<Vec<_>>()).buffered(AT_ONCE).try_collect().await
    }

    async fn read_groups(&self, all: Generations) -> Result<Vec<(u64, Read<Group>)>> {
        let reads = all.into_iter().map(|(n, generations)| async move {
            Ok::<_, RepoError>((n, self.newest_group(n, &generations).await?))
        });
        stream::iter(reads.collect::<Vec<_>>()).buffered(AT_ONCE).try_collect().await
    }

    async fn newest_directory(&self, n: u64, generations: &[u32]) -> Result<Read<Directory>> {
        let mut all = Read::default();
        for &generation in generations {
            let key = self.archive.paths().index_object(self.timeline, DIRECTORY_LEVEL, n, generation);
            let read = self.archive.repository().store().get(&key).await.and_then(|bytes| {
                let at = (self.timeline, n, generation);
                Directory::open(self.archive.repository().sealer(), &key, bytes, at)
            });
            if all.takes(read)? {
                break;
            }
        }
        Ok(all)
    }

    async fn newest_group(&self, n: u64, generations: &[u32]) -> Result<Read<Group>> {
        let size = self.archive.lineage().segment_size;
        let mut all = Read::default();
        for &generation in generations {
            let key = self.archive.paths().index_object(self.timeline, GROUP_LEVEL, n, generation);
            let read = self.archive.repository().store().get(&key).await.and_then(|bytes| {
                let at = (self.timeline, n, generation);
                Group::open(self.archive.repository().sealer(), &key, bytes, at, size)
            });
            if all.takes(read)? {
                break;
            }
        }
        Ok(all)
    }
}

/// The newest readable generation of an object, and what is wrong with newer ones.
#[derive(Debug)]
struct Read<T> {
    object: Option<T>,
    problems: Vec<String>,
}

impl<T> Default for Read<T> {
    fn default() -> Self {
        Self { object: None, problems: Vec::new() }
    }
}

impl<T> Read<T> {
    /// Whether this generation can be used: one that is damaged or has vanished cannot. Any other failure is one.
    fn takes(&mut self, read: Result<T>) -> Result<bool> {
        match read {
            Ok(object) => self.object = Some(object),
            Err(error @ (RepoError::NotFound { .. } | RepoError::Corrupt { .. })) => {
                self.problems.push(error.to_string());
            }
            Err(error) => return Err(error),
        }
        Ok(self.object.is_some())
    }
}

fn highest_first(generations: &mut Generations) {
    generations.values_mut().for_each(|all| all.sort_unstable_by(|a, b| b.cmp(a)));
}
