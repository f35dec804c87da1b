//! Which file a client speaks of: what both sides see of it, whatever path leads them there.

use std::io;

use super::message::MessageInput;

/// What the client found at the path it was given, so that both sides know that they speak of the same file although
/// their paths may differ. Of a file that is not a segment the first three are 0.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct FileIdentity {
    /// The system identifier in the segment's first page.
    pub system_id: u64,
    /// The timeline of the first page.
    pub page_timeline: u32,
    /// The address of the first page.
    pub page_address: u64,
    /// The file's length in bytes.
    pub size: u64,
    /// The file's inode.
    pub inode: u64,
    /// Its modification time, seconds since 1970.
    pub mtime: i64,
    /// The nanoseconds of that.
    pub mtime_nsec: u32,
}

impl FileIdentity {
    /// Reads the identity of an open file from its metadata and its first page.
    ///
    /// The fields of a segment are taken from the long page header (`XLogLongPageHeaderData`): magic and info (u16
    /// each), timeline (u32), page address (u64), remaining length (u32), padding, system identifier (u64). They are zero where
    /// that page cannot be read: the file is identified all the same, and reading its content then fails with the reason.
    ///
    /// # Errors
    ///
    /// If the file has no metadata.
    pub fn of(file: &std::fs::File, is_segment: bool) -> io::Result<Self> {
        use std::os::unix::fs::{FileExt, MetadataExt};
        let meta = file.metadata()?;
        let mut identity = Self {
            size: meta.size(),
            inode: meta.ino(),
            mtime: meta.mtime(),
            mtime_nsec: u32::try_from(meta.mtime_nsec()).unwrap_or_default(),
            ..Self::default()
        };
        let mut header = [0; 32];
        if is_segment && meta.size() >= 32 && file.read_exact_at(&mut header, 0).is_ok() {
            identity.page_timeline = u32::from_le_bytes(field(&header, 4));
            identity.page_address = u64::from_le_bytes(field(&header, 8));
            identity.system_id = u64::from_le_bytes(field(&header, 24));
        }
        Ok(identity)
    }
}

fn field<const N: usize>(header: &[u8; 32], at: usize) -> [u8; N] {
    std::array::from_fn(|i| header[at + i])
}

pub(super) fn put_identity(out: &mut Vec<u8>, identity: &FileIdentity) {
    out.extend(identity.system_id.to_le_bytes());
    out.extend(identity.page_timeline.to_le_bytes());
    out.extend(identity.page_address.to_le_bytes());
    out.extend(identity.size.to_le_bytes());
    out.extend(identity.inode.to_le_bytes());
    out.extend(identity.mtime.to_le_bytes());
    out.extend(identity.mtime_nsec.to_le_bytes());
}

pub(super) fn take_identity(input: &mut MessageInput<'_>) -> Option<FileIdentity> {
    Some(FileIdentity {
        system_id: input.u64()?,
        page_timeline: input.u32()?,
        page_address: input.u64()?,
        size: input.u64()?,
        inode: input.u64()?,
        mtime: i64::from_le_bytes(input.array()?),
        mtime_nsec: input.u32()?,
    })
}
