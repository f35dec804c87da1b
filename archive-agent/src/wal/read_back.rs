//! Whether what is stored under the name of a dropped segment can be read to its end: its damage may be why the segment was dropped.
//!
//! An object is read once, not at every look. That it is sound is remembered as long as the process lasts, and that it is damaged for
//! a while: another object may be put in its place. What could not be read for another reason is read at the next look. A crash
//! forgets everything here.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use tokio::time::Instant;
use walpoint_base::{SegmentName, WalFileName};
use walpoint_repo::wal::{WalArchive, WalHeader};
use walpoint_storage::RepoError;
use walpoint_storage::object::ContentHash;

use super::target::WalTarget;
use super::upload::Uploader;

/// How long a damaged object is not read again.
const READ_AGAIN: Duration = Duration::from_secs(600);

/// How long to wait for the memory to read an object. A write that hangs may keep it, and the gap has to be reported.
const MEMORY_LIMIT: Duration = Duration::from_secs(10);

/// Objects remembered, more than are looked for.
const KEPT: usize = 256;

/// What came of reading an object.
#[derive(Debug, Clone, Copy)]
struct Reading {
    /// Of its content, as its header says.
    hash: ContentHash,
    sound: bool,
    at: Instant,
}

/// The objects of a lineage in one repository that were read.
#[derive(Debug, Default)]
pub(super) struct ReadBack(BTreeMap<SegmentName, Reading>);

impl ReadBack {
    /// Whether the object with that header is sound, if that is known.
    fn get(&self, name: SegmentName, hash: ContentHash, now: Instant) -> Option<bool> {
        let reading = self.0.get(&name).filter(|reading| reading.hash == hash)?;
        (reading.sound || now.duration_since(reading.at) < READ_AGAIN).then_some(reading.sound)
    }

    fn add(&mut self, name: SegmentName, reading: Reading) {
        self.0.insert(name, reading);
        if self.0.len() > KEPT {
            self.0.pop_first();
        }
    }

    fn remove(&mut self, name: SegmentName) {
        self.0.remove(&name);
    }
}

/// Whether the segment that an archive has with this header can be read to its end.
pub(super) async fn is_sound(
    uploader: &Uploader,
    (target, archive): (&WalTarget, &WalArchive),
    header: &WalHeader,
) -> bool {
    let (name, hash, lineage) = (header.name(), header.hash, archive.lineage().id);
    let known = target.known(lineage, |known| known.read_back.get(name, hash, Instant::now()));
    if let Some(sound) = known {
        return sound;
    }
    let sound = match read(uploader, archive, name).await {
        Ok(Some(read)) => read.hash == hash && !read.damaged,
        Err(RepoError::Corrupt { .. }) => false,
        Ok(None) | Err(_) => return false,
    };
    let reading = Reading { hash, sound, at: Instant::now() };
    target.known(lineage, |known| known.read_back.add(name, reading));
    sound
}

/// There is no such segment, or none that counts.
pub(super) fn forget((target, archive): (&WalTarget, &WalArchive), name: SegmentName) {
    target.known(archive.lineage().id, |known| known.read_back.remove(name));
}

/// Reads a segment to its end: what is stored about it. `None` if there is none, or no memory to read it.
async fn read(
    uploader: &Uploader,
    archive: &WalArchive,
    name: SegmentName,
) -> Result<Option<WalHeader>, RepoError> {
    let memory = uploader.memory_to_read(archive.lineage().segment_size);
    let Ok(_memory) = tokio::time::timeout(MEMORY_LIMIT, memory).await else { return Ok(None) };
    let Some(reader) = archive.read(WalFileName::Segment(name)).await? else { return Ok(None) };
    let (_, header) = reader.write_to(io::sink()).await?;
    Ok(header)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_object_is_read_again_after_a_while() {
        let (now, hash) = (Instant::now(), ContentHash([7; 32]));
        let names = [5, 6].map(|n| format!("0000000100000000{n:08X}").parse::<SegmentName>().unwrap());
        let mut read_back = ReadBack::default();
        read_back.add(names[0], Reading { hash, sound: true, at: now });
        read_back.add(names[1], Reading { hash, sound: false, at: now });
        let get = |n: usize, hash, after| read_back.get(names[n], hash, now + after);
        let (before, after) = (READ_AGAIN - Duration::from_secs(1), READ_AGAIN);
        assert_eq!((get(0, hash, before), get(1, hash, before)), (Some(true), Some(false)));
        assert_eq!((get(0, hash, after), get(1, hash, after)), (Some(true), None));
        assert_eq!(get(0, ContentHash([8; 32]), before), None, "it is another object");
    }
}
