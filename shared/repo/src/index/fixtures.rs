//! An archive of which only the index is there, or only the headers: for tests and measurements of long archives.

use walpoint_base::{SegmentNo, TimelineId, WalFileName};
use walpoint_storage::error::{RepoError, Result};
use walpoint_storage::object::{ObjectKind, ObjectWriter, SealError};

use super::page::{Directory, Group};
use super::{DIRECTORY_LEVEL, GROUP_LEVEL, SegmentEntry, first_of, last_of};
use crate::wal::{WalArchive, WalHeader};

/// Writes the index of the first `groups` groups of a timeline, sealed, and their directory. `entry` is what it says of
/// each segment. Nothing else is written.
pub async fn sealed_groups(
    archive: &WalArchive,
    timeline: TimelineId,
    groups: u64,
    entry: impl Fn(SegmentNo) -> Option<SegmentEntry>,
) -> Result<()> {
    let (store, sealer) = (archive.repository().store(), archive.repository().sealer());
    let mut directory = Directory::empty(timeline, 0);
    directory.generation = 1;
    for n in 0..groups {
        let mut group = Group::empty(timeline, n);
        group.generation = 1;
        for number in first_of(n).0..=last_of(n).0 {
            group.set(SegmentNo(number), entry(SegmentNo(number)));
        }
        directory.set(n, group.summary());
        let key = archive.paths().index_object(timeline, GROUP_LEVEL, n, 1);
        store.create_once(&group.seal(sealer, &key)?).await?;
    }
    let key = archive.paths().index_object(timeline, DIRECTORY_LEVEL, 0, 1);
    store.create_once(&directory.seal(sealer, &key)?).await?;
    Ok(())
}

/// Stores a segment that has its header and hardly any content: whoever only plans reads nothing else.
pub async fn header_only(archive: &WalArchive, header: &WalHeader) -> Result<()> {
    with_content(archive, header, b"content").await
}

/// The same with content that may be what the header describes.
pub async fn with_content(archive: &WalArchive, header: &WalHeader, content: &[u8]) -> Result<()> {
    let key = archive.paths().file(WalFileName::Segment(header.name()));
    let sealed = (|| {
        let mut writer = ObjectWriter::new(archive.repository().sealer(), ObjectKind::Segment, &key)?;
        writer.meta(&header.encode())?;
        writer.frames(content, 1 << 20)?;
        writer.finish()
    })();
    let sealed = sealed.map_err(|e: SealError| RepoError::Internal(e.to_string()))?;
    archive.repository().store().create_once(&sealed).await?;
    Ok(())
}
