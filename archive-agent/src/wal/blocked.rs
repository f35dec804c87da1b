//! Files that a repository which does not have to acknowledge lacks although it lists them: the object of that name is damaged, and nothing
//! is stored in its place.
//!
//! What always holds: an object that was found damaged when its file was to be stored is looked at by every comparison
//! ([`catch_up`](super::catch_up)), until it was moved away or can be read to its end. As long as one is left, the repository is not caught
//! up. Commands and the next daemon know them from `pg_wal` ([`complete`]). A crash may lose what was found in the last moment, and so does
//! a daemon that may only read there: then `verify` finds it. No more than [`LIMIT`] are kept.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context, anyhow};
use walpoint_base::WalFileName;
use walpoint_repo::wal::WalArchive;
use walpoint_runtime::human;
use walpoint_storage::RepoError;
use walpoint_storage::error::Remedy;
use walpoint_storage::layout::{Key, WalEntry};

use super::target::{TargetError, WalTarget, in_the_way};
use super::upload::Uploader;
use super::{complete, disk, unreadable};

/// Objects that are kept. With more of them, a repository has to be verified anyway.
const LIMIT: usize = 4096;

#[derive(Debug, Default)]
struct State {
    /// The objects, and the files that they keep from being stored.
    files: BTreeMap<Key, WalFileName>,
    /// Objects that were moved away or can be read, and may be noted still.
    cleared: Vec<Key>,
}

/// The damaged objects of one repository that keep files from being stored.
#[derive(Debug, Default)]
pub(super) struct Blocked(Mutex<State>);

impl Blocked {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers what a file could not be stored for, if that is a damaged object: one that is said to be in the way, or any of the file.
    pub(super) fn add(&self, name: WalFileName, error: &TargetError) {
        if let TargetError::Repository(RepoError::Corrupt { key, remedy, .. }) = error
            && (*remedy == Some(Remedy::MoveAway) || is_of(key, name))
        {
            self.put(key.clone(), name);
        }
    }

    fn put(&self, key: Key, name: WalFileName) {
        let mut state = self.state();
        if state.files.len() < LIMIT {
            state.cleared.retain(|cleared| *cleared != key);
            state.files.insert(key, name);
        }
    }

    fn first(&self) -> Option<(Key, WalFileName)> {
        self.state().files.first_key_value().map(|(key, name)| (key.clone(), *name))
    }

    fn clear(&self, key: Key) {
        let mut state = self.state();
        state.files.remove(&key);
        state.cleared.push(key);
    }

    /// Another repository or lineage has other objects.
    pub(super) fn forget(&self) {
        *self.state() = State::default();
    }
}

impl Uploader {
    /// Remembers what processes before this one noted of a lineage in a repository. While that cannot be read, it is not known what is left.
    pub(super) async fn take_blocked(&self, target: &WalTarget, archive: &WalArchive) -> anyhow::Result<()> {
        let (wal, place) =
            (self.wal_directory(), complete::place(archive.repository().id(), archive.lineage()));
        let read = disk::look(self.pgdata(), move || complete::read_damaged(&wal, &place)).await?;
        let read = read.with_context(|| {
            format!("{} cannot be read", self.wal_directory().join(complete::FILE).display())
        })?;
        read.into_iter().for_each(|(key, name)| target.blocked.put(key, name));
        Ok(())
    }

    /// Notes for commands and the next daemon what keeps files from being stored in a repository. A note that is refused is left out.
    pub(super) async fn note_blocked(&self, target: &WalTarget) {
        let (files, cleared) = {
            let state = target.blocked.state();
            (state.files.clone(), state.cleared.clone())
        };
        let Some(place) = target.presence.place().filter(|_| !files.is_empty() || !cleared.is_empty()) else {
            return;
        };
        let wal = self.wal_directory();
        let gone = cleared.clone();
        let note = move || complete::note_damaged(&wal, &place, files, &gone);
        match disk::look(self.pgdata(), note).await {
            Ok(Ok(())) => target.blocked.state().cleared.retain(|key| !cleared.contains(key)),
            failed => tracing::debug!(repository = target.name(), "{}: {failed:?}", complete::FILE),
        }
    }
}

/// Why files are not stored in a repository, if damaged objects are in their places still. Up to the first one of them, those that can be
/// read, or are another lineage's, are forgotten, and the files of those that were moved away are missed like any other.
pub(super) async fn left(
    uploader: &Uploader,
    target: &WalTarget,
    archive: &WalArchive,
) -> Result<Option<anyhow::Error>, RepoError> {
    while let Some((key, name)) = target.blocked.first() {
        // The parent's, for example, into which WAL went before: it has another place.
        if !archive.paths().holds(&key) {
            target.blocked.clear(key);
            continue;
        }
        let read = {
            let _memory = uploader.memory_to_read(archive.lineage().segment_size).await;
            read(archive, &key, name).await
        };
        match unreadable::settled(archive, read).await {
            Ok(there) => {
                target.blocked.clear(key);
                if !there {
                    target.note_missed(name);
                }
            }
            Err(error @ RepoError::Corrupt { .. }) => {
                let files = target.blocked.state().files.len() as u64;
                let problem = walpoint_words::error(&in_the_way(error));
                let what = format!("{} cannot be stored", human::count(files, "file"));
                return Ok(Some(anyhow!("{problem}").context(what)));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

/// Whether an object is one of a file, or of the segment that the file belongs to.
fn is_of(key: &Key, name: WalFileName) -> bool {
    let stem = match name {
        WalFileName::Segment(segment) | WalFileName::Partial(segment) | WalFileName::Backup(segment, _) => {
            segment.to_string()
        }
        WalFileName::History(_) => name.to_string(),
    };
    let goes_with = |rest: &str| rest.is_empty() || rest.starts_with('.');
    key.as_str().split('/').any(|part| part.strip_prefix(&stem).is_some_and(goes_with))
}

/// Reads an object, which kept a file from being stored, to its end; `false` if there is none, or nothing of the file that it is a part of.
async fn read(archive: &WalArchive, key: &Key, name: WalFileName) -> Result<bool, RepoError> {
    let there = archive.can_be_read(key).await?;
    if !matches!(archive.paths().parse(key), Some(WalEntry::Part(_))) {
        return Ok(there);
    }
    // A part means nothing without the object that names it.
    match archive.read(name).await? {
        Some(reader) => reader.write_to(io::sink()).await.map(|_| true),
        None => Ok(false),
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::{Bed, two, uploader};
    use super::*;

    const NAMES: [&str; 2] = ["000000010000000000000005", "000000010000000000000006"];

    /// What is left of the files that `far` could not store, and whether it misses any besides, by another process each time.
    async fn left_after_a_start((main, far): (&Bed, &Bed)) -> (Option<String>, bool) {
        let uploader = uploader(&[main, far], &["main"]);
        let (target, archive) = (&uploader.targets()[1], &far.archive);
        target.presence.opened(archive.repository(), std::time::Instant::now());
        target.presence.archives_into(archive.lineage());
        uploader.take_blocked(target, archive).await.unwrap();
        let left = left(&uploader, target, archive).await.unwrap();
        uploader.note_blocked(target).await;
        (left.map(|left| walpoint_words::format_chain(&left)), target.missed_any())
    }

    #[test]
    fn any_damaged_object_of_a_file_keeps_it_from_being_stored() {
        let file: WalFileName = NAMES[0].parse().unwrap();
        let kept_by = |key: &str, remedy| {
            let (blocked, key) = (Blocked::default(), key.parse().unwrap());
            let error = RepoError::Corrupt { key, what: "its header is invalid".to_owned(), remedy };
            blocked.add(file, &TargetError::Repository(error));
            blocked.first().is_some()
        };
        let wal = "clusters/main/7-1/wal/00000001/00000000";
        assert!(kept_by(&format!("{wal}/{}", NAMES[0]), None));
        assert!(kept_by(&format!("{wal}/{}.parts/00-0001", NAMES[0]), None));
        assert!(!kept_by(&format!("{wal}/{}", NAMES[1]), None), "another file's");
        assert!(!kept_by(&format!("{wal}/{}0", NAMES[0]), None));
        assert!(kept_by("clusters/main/7-1/points/6162/00000001-0000000005000028", Some(Remedy::MoveAway)));
        let file = WalFileName::History(walpoint_base::TimelineId::new(2).unwrap());
        assert!(is_of(&"clusters/main/7-1/history/00000002.history".parse().unwrap(), file));
    }

    /// A copy's lineage begins with the names of its parent's.
    #[tokio::test]
    async fn a_damaged_object_of_the_parent_lineage_keeps_nothing_from_being_stored() {
        let (_main, far, uploader, _) = two().await;
        let (target, parent, file) = (&uploader.targets()[1], &far.archive, NAMES[0].parse().unwrap());
        far.put(NAMES[0], 1).await;
        far.damage(NAMES[0]);
        let error = read(parent, &parent.paths().file(file), file).await.unwrap_err();
        target.blocked.add(file, &TargetError::Repository(in_the_way(error)));
        assert!(left(&uploader, target, parent).await.unwrap().is_some());
        let child = parent.repository().wal(&far.next_lineage().await);
        assert!(left(&uploader, target, &child).await.unwrap().is_none());
        assert!(!target.missed_any(), "it lacks nothing for that");
    }

    #[tokio::test]
    async fn what_was_noted_and_cannot_be_read_is_not_taken_for_nothing() {
        let (main, far, uploader, _) = two().await;
        let target = &uploader.targets()[1];
        uploader.take_blocked(target, &far.archive).await.unwrap();
        std::fs::create_dir(main.pgdata().join("pg_wal").join(complete::FILE)).unwrap();
        let error = uploader.take_blocked(target, &far.archive).await.unwrap_err();
        assert!(error.to_string().contains(complete::FILE), "{error}");
    }

    #[tokio::test]
    async fn a_damaged_object_keeps_its_file_missing_until_it_is_moved_away_or_sound() {
        let (main, far, uploader, _) = two().await;
        let (target, archive) = (&uploader.targets()[1], &far.archive);
        let both = (&main, &far);
        target.presence.opened(archive.repository(), std::time::Instant::now());
        target.presence.archives_into(archive.lineage());
        let mut sound = Vec::new();
        for name in NAMES {
            far.put(name, 1).await;
            sound.push(std::fs::read(far.stored(name)).unwrap());
            far.damage(name);
            let file: WalFileName = name.parse().unwrap();
            let error = read(archive, &archive.paths().file(file), file).await.unwrap_err();
            target.blocked.add(file, &TargetError::Repository(in_the_way(error)));
        }
        let says = |(left, misses): (Option<String>, bool), files: &str, name: &str| {
            let left = left.unwrap_or_default();
            assert!(left.starts_with(files) && left.contains(name), "{left}");
            assert!(left.ends_with("\nHINT: Move that object away. The next attempt then stores the file."));
            misses
        };
        uploader.note_blocked(target).await;
        assert!(!says(left_after_a_start(both).await, "2 files cannot be stored: ", NAMES[0]));

        std::fs::remove_file(far.stored(NAMES[0])).unwrap();
        let misses = says(left_after_a_start(both).await, "1 file cannot be stored: ", NAMES[1]);
        assert!(misses, "what was moved away is to be copied");
        walpoint_base::durable::replace(&far.stored(NAMES[1]), &sound[1], 0o600).unwrap();
        assert_eq!(left_after_a_start(both).await, (None, false));
        // Nothing is noted any more.
        far.damage(NAMES[1]);
        assert_eq!(left_after_a_start(both).await, (None, false));
    }
}
