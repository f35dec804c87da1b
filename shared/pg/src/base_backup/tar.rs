//! The entries of a tar archive, from pieces of any size.
//!
//! Source: `pax` in POSIX.1-2017, "Basic Tar Format" in GNU tar's manual, `src/port/tar.c`. PostgreSQL writes ustar headers
//! with numbers that may be base-256; long names it refuses to send. Headers are read by the crate `tar`, whose checksum is
//! verified first. Always holds: what is held is one header and, of an extension, at most 64 KiB; contents pass through.

use ::tar::{EntryType, Header};

use super::error::{BaseBackupError, shown};
use super::extension::Extension;

/// Bytes of a header, and what every content is padded to.
const BLOCK: usize = 512;

/// The longest name or link that is believed; Linux has no longer ones.
const MAX_NAME: usize = 4095;

/// No entry is longer: 256 TiB.
const MAX_SIZE: u64 = 1 << 48;

/// Owner, mode and time of an entry.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Status {
    /// The access rights, without the kind of file.
    pub mode: u16,
    /// The owner's number.
    pub uid: u32,
    /// The group's number.
    pub gid: u32,
    /// Seconds since 1970.
    pub mtime: u64,
}

/// What an entry is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum EntryKind {
    /// A regular file of so many bytes, which follow.
    File(u64),
    /// A directory.
    Directory,
    /// A symbolic link and where it leads.
    Link(Vec<u8>),
}

/// An entry of an archive.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TarEntry {
    /// Its name, as it stands in the archive but for slashes at its end.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: EntryKind,
    /// Owner, mode and time.
    pub status: Status,
}

/// What comes out of an archive.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Item<'a> {
    /// An entry begins.
    Entry(TarEntry),
    /// The next bytes of the file that began last.
    Data(&'a [u8]),
    /// That file is complete. Also comes for an empty one.
    FileEnd,
}

/// Where in the archive the next byte belongs.
#[derive(Debug)]
enum State {
    /// In a header, of which so many bytes are there.
    Header(usize),
    /// In the content of a file: bytes left of it.
    Content(u64),
    /// In the content of an entry that describes the next one: bytes left of it.
    Extension(u64),
    /// In the padding after a content.
    Padding(u64),
    /// After the end: only zeros.
    Ended,
}

/// Reads an archive.
#[derive(Debug)]
pub struct Tar {
    state: State,
    header: Box<[u8; BLOCK]>,
    extension: Extension,
    /// How much padding follows the content.
    padding: u64,
}

impl Default for Tar {
    fn default() -> Self {
        Self {
            state: State::Header(0),
            header: Box::new([0; BLOCK]),
            extension: Extension::default(),
            padding: 0,
        }
    }
}

impl Tar {
    /// Takes the next bytes and gives what they complete, in order. After an error the archive is of no more use.
    pub fn feed<E: From<BaseBackupError>>(
        &mut self,
        mut bytes: &[u8],
        act: &mut dyn FnMut(Item<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        while !bytes.is_empty() {
            let room = match &self.state {
                State::Header(filled) => BLOCK - filled,
                State::Content(left) | State::Extension(left) | State::Padding(left) => {
                    usize::try_from(*left).unwrap_or(usize::MAX)
                }
                State::Ended => usize::MAX,
            };
            let (now, rest) = bytes.split_at(room.min(bytes.len()));
            bytes = rest;
            let complete = now.len() == room;
            let taken = u64::try_from(now.len()).unwrap_or(u64::MAX);
            match &mut self.state {
                State::Header(filled) => {
                    let end = *filled + now.len();
                    if let Some(place) = self.header.get_mut(*filled..end) {
                        place.copy_from_slice(now);
                    }
                    *filled = end;
                    if complete {
                        self.header(act)?;
                    }
                }
                State::Content(left) => {
                    *left -= taken;
                    act(Item::Data(now))?;
                    if complete {
                        self.pad();
                        act(Item::FileEnd)?;
                    }
                }
                State::Extension(left) => {
                    *left -= taken;
                    self.extension.push(now);
                    if complete {
                        self.extension.complete().map_err(malformed)?;
                        self.pad();
                    }
                }
                State::Padding(left) => {
                    *left -= taken;
                    if complete {
                        self.state = State::Header(0);
                    }
                }
                State::Ended if now.iter().any(|byte| *byte != 0) => {
                    return Err(malformed("data after the end of an archive"));
                }
                State::Ended => {}
            }
        }
        Ok(())
    }

    /// A content is complete.
    fn pad(&mut self) {
        self.state = if self.padding == 0 { State::Header(0) } else { State::Padding(self.padding) };
    }

    /// The archive has no more bytes: whether it may end here. 13 and 14 leave out the zeros at its end.
    pub fn finish(&self) -> Result<(), BaseBackupError> {
        match self.state {
            State::Ended => Ok(()),
            State::Header(0) if self.extension.is_empty() => Ok(()),
            _ => Err(malformed("an archive ends in the middle of an entry")),
        }
    }

    /// A header is complete.
    fn header<E: From<BaseBackupError>>(
        &mut self,
        act: &mut dyn FnMut(Item<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        if self.header.iter().all(|byte| *byte == 0) {
            self.state = State::Ended;
            return Ok(());
        }
        let header = Header::from_byte_slice(&self.header[..]);
        let bad = |what: &str| malformed::<E>(format!("{what} in {}", shown(&header.path_bytes())));
        let mut summed = header.clone();
        summed.set_cksum();
        if !matches!((header.cksum(), summed.cksum()), (Ok(stored), Ok(computed)) if stored == computed) {
            return Err(malformed("a header of an archive has a wrong checksum"));
        }
        let number = |value: std::io::Result<u64>| value.map_err(|e| bad(&e.to_string()));
        let kind = header.entry_type();
        let size = match self.extension.size {
            Some(size) if !Extension::is_one(kind) => size,
            _ => number(header.entry_size())?,
        };
        if size > MAX_SIZE {
            return Err(bad("a size that no file has"));
        }
        let block = u64::try_from(BLOCK).unwrap_or(u64::MAX);
        self.padding = size.next_multiple_of(block) - size;
        if Extension::is_one(kind) {
            self.extension.begin(kind, size).map_err(malformed)?;
            self.state = if size == 0 { State::Header(0) } else { State::Extension(size) };
            return Ok(());
        }
        let extension = std::mem::take(&mut self.extension);
        let mut path = extension.path.unwrap_or_else(|| header.path_bytes().into_owned());
        while path.len() > 1 && path.ends_with(b"/") {
            path.pop();
        }
        let kind = match kind {
            EntryType::Regular | EntryType::Continuous => EntryKind::File(size),
            EntryType::Directory => EntryKind::Directory,
            EntryType::Symlink => {
                let target = header.link_name_bytes().map(|target| target.into_owned());
                EntryKind::Link(extension.link.or(target).unwrap_or_default())
            }
            other => {
                let what = format!("an entry of kind \"{}\"", other.as_byte().escape_ascii());
                return Err(bad(&what));
            }
        };
        let long = |name: &[u8]| name.is_empty() || name.len() > MAX_NAME;
        if long(&path) || matches!(&kind, EntryKind::Link(target) if long(target)) {
            return Err(bad("a name or link of no or too many bytes"));
        }
        if size > 0 && !matches!(kind, EntryKind::File(_)) {
            return Err(bad("content of something that is no file"));
        }
        let mode = u64::from(header.mode().map_err(|e| bad(&e.to_string()))?) & 0o7777;
        let narrow = |value: u64| u32::try_from(value).map_err(|_| bad("an owner that does not exist"));
        let status = Status {
            mode: u16::try_from(mode).unwrap_or(0),
            uid: narrow(number(header.uid())?)?,
            gid: narrow(number(header.gid())?)?,
            mtime: number(header.mtime())?,
        };
        self.state = if size == 0 { State::Header(0) } else { State::Content(size) };
        let empty_file = kind == EntryKind::File(0);
        act(Item::Entry(TarEntry { path, kind, status }))?;
        if empty_file { act(Item::FileEnd) } else { Ok(()) }
    }
}

fn malformed<E: From<BaseBackupError>>(what: impl Into<String>) -> E {
    E::from(BaseBackupError::malformed(what))
}

#[cfg(test)]
mod tests;
