//! Whether what is stored under the name of a dropped segment can be read to its end: its damage may be why the segment was dropped.
//!
//! A daemon reads such objects, one at a time and beside the looks that find them ([`super::dropped`]): an object may take minutes, and
//! what is not read yet is reported meanwhile. An object is read once, not at every look. That it is sound is remembered as long as the
//! process lasts and the server runs, and that it is damaged for a while: another object may be put in its place. What could not be read for another reason
//! is read again once the next look has found it. A crash forgets everything here.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;
use walpoint_base::{SegmentName, WalFileName};
use walpoint_pg::wal::WalIdentity;
use walpoint_repo::wal::{WalArchive, WalHeader};
use walpoint_storage::RepoError;
use walpoint_storage::object::ContentHash;

use super::archiver::Archiver;
use super::damaged_copy;
use super::target::WalTarget;
use super::upload::Uploader;

/// How long a damaged object is not read again.
const READ_AGAIN: Duration = Duration::from_secs(600);

/// Objects remembered, more than are looked for.
const KEPT: usize = 256;

/// What came of reading an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reading {
    /// It is this server's, and was read to its end.
    Sound,
    /// It is damaged, or another server's.
    Damaged {
        /// Whether it is time to read what has its name again.
        again: bool,
    },
}

/// An object that was read.
#[derive(Debug, Clone, Copy)]
struct Read {
    /// Of its content, as its header says.
    hash: ContentHash,
    sound: bool,
    at: Instant,
}

/// The objects of a lineage in one repository that were read.
#[derive(Debug, Default)]
pub(super) struct ReadBack(BTreeMap<SegmentName, Read>);

impl ReadBack {
    /// What came of reading the object with that header, if it was read.
    fn get(&self, name: SegmentName, hash: ContentHash, now: Instant) -> Option<Reading> {
        let read = self.0.get(&name).filter(|read| read.hash == hash)?;
        let again = now.duration_since(read.at) >= READ_AGAIN;
        Some(if read.sound { Reading::Sound } else { Reading::Damaged { again } })
    }

    fn add(&mut self, name: SegmentName, read: Read) {
        self.0.insert(name, read);
        if self.0.len() > KEPT {
            self.0.pop_first();
        }
    }

    fn remove(&mut self, name: SegmentName) {
        self.0.remove(&name);
    }
}

/// An object that has the name of a dropped segment.
#[derive(Debug)]
pub(crate) struct Object {
    /// The repository's name.
    target: String,
    archive: WalArchive,
    name: SegmentName,
    /// Of its content, as its header says.
    hash: ContentHash,
    /// The server and its directory of WAL whose file it is compared with, if only its content shows whose it is.
    compared: Option<(WalIdentity, PathBuf)>,
}

impl Object {
    pub(super) fn new(
        (target, archive): (&WalTarget, &WalArchive),
        header: &WalHeader,
        compared: Option<(WalIdentity, PathBuf)>,
    ) -> Self {
        let (target, archive) = (target.name().to_owned(), archive.clone());
        Self { target, archive, name: header.name(), hash: header.hash, compared }
    }

    /// What came of reading it, if it was read.
    pub(super) fn reading(&self, target: &WalTarget) -> Option<Reading> {
        let lineage = self.archive.lineage().id;
        target.known(lineage, |known| known.read_back.get(self.name, self.hash, Instant::now()))
    }

    fn is_same(&self, other: &Self) -> bool {
        (&self.target, self.name, self.hash) == (&other.target, other.name, other.hash)
    }

    /// Reads it, unless that was done meanwhile.
    pub(super) async fn read(self, uploader: &Uploader) {
        let target = uploader.targets().iter().find(|target| target.name() == self.target);
        let Some(target) = target else { return };
        if matches!(self.reading(target), Some(Reading::Sound | Reading::Damaged { again: false })) {
            return;
        }
        let sound = match read(uploader, &self.archive, self.name).await {
            Ok(Some(header)) => header.hash == self.hash && !header.damaged,
            Err(error @ RepoError::Corrupt { .. }) => {
                let error = walpoint_words::error(&error);
                tracing::warn!(repository = self.target, "what is stored of a dropped segment: {error}");
                false
            }
            Ok(None) | Err(_) => return,
        };
        let own = match &self.compared {
            Some((cluster, wal)) if sound => {
                damaged_copy::is_damaged_copy(&self.archive, cluster, wal, self.name).await
            }
            _ => true,
        };
        let read = Read { hash: self.hash, sound: sound && own, at: Instant::now() };
        target.known(self.archive.lineage().id, |known| known.read_back.add(self.name, read));
    }
}

/// There is no such segment, or none that counts.
pub(super) fn forget((target, archive): (&WalTarget, &WalArchive), name: SegmentName) {
    target.known(archive.lineage().id, |known| known.read_back.remove(name));
}

/// Reads a segment to its end: what is stored about it. `None` if there is none.
async fn read(
    uploader: &Uploader,
    archive: &WalArchive,
    name: SegmentName,
) -> Result<Option<WalHeader>, RepoError> {
    let _memory = uploader.memory_to_read(archive.lineage().segment_size).await;
    let Some(reader) = archive.read(WalFileName::Segment(name)).await? else { return Ok(None) };
    let (_, header) = reader.write_to(io::sink()).await?;
    Ok(header)
}

/// Objects that are to be read, in that order.
#[derive(Debug, Default)]
pub(super) struct ReadList {
    waiting: Mutex<VecDeque<Object>>,
    more: Notify,
}

impl ReadList {
    /// Takes what a look found. What waits already keeps its place: one that fails every time comes behind the others.
    pub(super) fn set(&self, mut found: Vec<Object>) {
        let mut waiting = self.lock();
        waiting.retain(|object| found.iter().any(|found| found.is_same(object)));
        found.retain(|found| !waiting.iter().any(|object| object.is_same(found)));
        waiting.extend(found);
        if !waiting.is_empty() {
            self.more.notify_one();
        }
    }

    /// The next one, as soon as there is one.
    async fn next(&self) -> Object {
        loop {
            let next = self.lock().pop_front();
            match next {
                Some(object) => return object,
                None => self.more.notified().await,
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Object>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads what looks find, one object after the other; `working` is called before each.
pub(crate) async fn keep(archiver: Arc<Archiver>, working: impl Fn()) -> anyhow::Result<()> {
    loop {
        working();
        archiver.queue().to_read.next().await.read(archiver.uploader()).await;
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::two;
    use super::*;

    #[test]
    fn a_damaged_object_is_read_again_after_a_while() {
        let (now, hash) = (Instant::now(), ContentHash([7; 32]));
        let names = [5, 6].map(|n| format!("0000000100000000{n:08X}").parse::<SegmentName>().unwrap());
        let mut read_back = ReadBack::default();
        read_back.add(names[0], Read { hash, sound: true, at: now });
        read_back.add(names[1], Read { hash, sound: false, at: now });
        let get = |n: usize, hash, after| read_back.get(names[n], hash, now + after);
        let (before, after) = (READ_AGAIN - Duration::from_secs(1), READ_AGAIN);
        let damaged = |again| Some(Reading::Damaged { again });
        assert_eq!((get(0, hash, before), get(1, hash, before)), (Some(Reading::Sound), damaged(false)));
        assert_eq!((get(0, hash, after), get(1, hash, after)), (Some(Reading::Sound), damaged(true)));
        assert_eq!(get(0, ContentHash([8; 32]), before), None, "it is another object");
    }

    #[tokio::test]
    async fn what_is_found_again_waits_behind_the_others_and_what_no_longer_matters_is_not_read() {
        let (main, _far, _uploader, _) = two().await;
        let object = |n: u32| Object {
            target: "main".to_owned(),
            archive: main.archive.clone(),
            name: format!("0000000100000000{n:08X}").parse().unwrap(),
            hash: ContentHash([7; 32]),
            compared: None,
        };
        let list = ReadList::default();
        let next = async || list.next().await.name.segment;
        list.set(vec![object(5), object(6), object(7)]);
        assert_eq!(next().await, 5);
        list.set(vec![object(5), object(6), object(7)]);
        assert_eq!((next().await, next().await), (6, 7));
        // A backup makes up for 5; 8 was archived since.
        list.set(vec![object(8)]);
        assert_eq!(next().await, 8);
        assert!(tokio::time::timeout(Duration::from_millis(50), list.next()).await.is_err());
    }
}
