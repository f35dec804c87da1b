//! Archives as what they hold of the cluster: directories, links and files by their path below the data directory.
//!
//! Always holds: what belongs into a backup is decided by the rules of [`crate::files`], as for a reader of the data
//! directory, so that both find the same. What stays out is checked against the manifest all the same. Label and map are
//! given at the end and never as files.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::error::{BaseBackupError, shown};
use super::ledger::{Received, ReceivedFiles};
use super::order::{Space, StreamArchive};
use super::tar::{EntryKind, Item, Status, Tar, TarEntry};
use crate::control::CONTROL_FILE;
use crate::files::{self, Action, Unlogged};
use crate::label::{BACKUP_LABEL_FILE, TABLESPACE_MAP_FILE};

/// A label, map or `pg_control` of more bytes is refused.
const MAX_HELD: usize = 1 << 20;

/// Where the links of tablespaces are.
const SPACES: &str = "pg_tblspc";

/// Without these no server starts; one that is a link is not sent.
const REQUIRED: [&str; 9] = [
    "base",
    "global",
    "pg_commit_ts",
    "pg_logical",
    "pg_multixact",
    "pg_stat",
    "pg_tblspc",
    "pg_twophase",
    "pg_xact",
];

/// Something that belongs into the backup. Paths are below the data directory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event<'a> {
    /// A directory.
    Directory {
        /// Its path.
        path: &'a [u8],
        /// Owner, mode and time.
        status: Status,
    },
    /// A tablespace: a link in the data directory, and the directory behind it.
    LinkedDirectory {
        /// The link's path.
        path: &'a [u8],
        /// Where it leads.
        target: &'a [u8],
        /// Owner, mode and time of the directory.
        status: Status,
    },
    /// Any other link.
    Link {
        /// Its path.
        path: &'a [u8],
        /// Where it leads.
        target: &'a [u8],
        /// Owner, mode and time.
        status: Status,
    },
    /// A regular file begins; its bytes follow.
    File {
        /// Its path.
        path: &'a [u8],
        /// Owner, mode and time.
        status: Status,
        /// Its length.
        size: u64,
    },
    /// The next bytes of that file.
    Data(&'a [u8]),
    /// That file is complete.
    FileEnd,
}

/// What is left when all archives were taken.
#[derive(Debug)]
pub struct Unpacked {
    /// `backup_label`.
    pub label: Vec<u8>,
    /// `tablespace_map`; empty if there is none.
    pub tablespace_map: Vec<u8>,
    /// The tablespaces that came, by OID: those with an archive of their own, and those inside the data directory.
    pub tablespaces: BTreeSet<u32>,
    /// `global/pg_control`, which was also given as a file.
    pub control: Vec<u8>,
    /// Owner, mode and time of the data directory, as far as those of `base` tell.
    pub root: Status,
    /// For the comparison with the manifest.
    pub ledger: ReceivedFiles,
}

/// Takes archives.
#[derive(Debug)]
pub struct Unpacker {
    tar: Tar,
    tree: Tree,
}

/// What is done with the content of a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Use {
    Give,
    LeaveOut,
    Label,
    Map,
    /// Given and held.
    Control,
}

/// The file whose content is coming.
#[derive(Debug)]
struct OpenFile {
    received: Received,
    purpose: Use,
}

#[derive(Debug)]
struct Tree {
    spaces: Vec<Space>,
    /// Directories of tablespaces that lie in the data directory, below it.
    inside: Vec<Vec<u8>>,
    archive: Option<StreamArchive>,
    /// Whether an entry of the archive has come.
    begun: bool,
    file: Option<OpenFile>,
    label: Vec<u8>,
    map: Vec<u8>,
    control: Vec<u8>,
    found: [bool; REQUIRED.len()],
    tablespaces: BTreeSet<u32>,
    root: Status,
    ledger: ReceivedFiles,
}

impl Unpacker {
    /// Of a cluster with these tablespaces, whose data directory is there on the server.
    pub fn new(spaces: &[Space], data_directory: &Path, ledger: ReceivedFiles) -> Self {
        let inside = spaces.iter().filter_map(|space| space.location.strip_prefix(data_directory).ok());
        let inside = inside.map(|path| path.as_os_str().as_bytes().to_vec());
        let inside = inside.filter(|path| !path.is_empty() && !path.starts_with(SPACES.as_bytes())).collect();
        let tree = Tree {
            spaces: spaces.to_vec(),
            inside,
            archive: None,
            begun: false,
            file: None,
            label: Vec::new(),
            map: Vec::new(),
            control: Vec::new(),
            found: [false; REQUIRED.len()],
            tablespaces: BTreeSet::new(),
            root: Status::default(),
            ledger,
        };
        Self { tar: Tar::default(), tree }
    }

    /// The next archive begins; the one before has to be complete.
    pub fn archive(&mut self, archive: StreamArchive) -> Result<(), BaseBackupError> {
        self.tar.finish()?;
        self.tar = Tar::default();
        self.tree.archive = Some(archive);
        self.tree.begun = false;
        Ok(())
    }

    /// The next bytes of the archive; gives what they complete, in order.
    pub fn data<E: From<BaseBackupError>>(
        &mut self,
        bytes: &[u8],
        act: &mut dyn FnMut(Event<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let Self { tar, tree } = self;
        tar.feed(bytes, &mut |item| tree.item(item, act))
    }

    /// All archives were taken: nothing that a cluster needs may be missing.
    pub fn finish(self) -> Result<Unpacked, BaseBackupError> {
        self.tar.finish()?;
        let Tree { label, map, control, found, tablespaces, root, ledger, .. } = self.tree;
        if let Some((missing, _)) = REQUIRED.iter().zip(found).find(|(_, found)| !found) {
            return Err(BaseBackupError::LeftOut(missing));
        }
        for (content, name) in [(&label, BACKUP_LABEL_FILE), (&control, CONTROL_FILE)] {
            if content.is_empty() {
                return Err(BaseBackupError::malformed(format!("it holds no {name}")));
            }
        }
        Ok(Unpacked { label, tablespace_map: map, tablespaces, control, root, ledger })
    }
}

impl Tree {
    fn item<E: From<BaseBackupError>>(
        &mut self,
        item: Item<'_>,
        act: &mut dyn FnMut(Event<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        match item {
            Item::Entry(entry) => self.entry(entry, act),
            Item::Data(bytes) => {
                let Some(OpenFile { received, purpose }) = &mut self.file else { return Ok(()) };
                received.crc = crc32c::crc32c_append(received.crc, bytes);
                let held = match purpose {
                    Use::Label => Some(&mut self.label),
                    Use::Map => Some(&mut self.map),
                    Use::Control => Some(&mut self.control),
                    Use::Give | Use::LeaveOut => None,
                };
                if let Some(held) = held {
                    if held.len() + bytes.len() > MAX_HELD {
                        let what = format!("{} is longer than any", shown(&received.path));
                        return Err(BaseBackupError::malformed(what).into());
                    }
                    held.extend_from_slice(bytes);
                }
                match purpose {
                    Use::Give | Use::Control => act(Event::Data(bytes)),
                    Use::LeaveOut | Use::Label | Use::Map => Ok(()),
                }
            }
            Item::FileEnd => {
                let Some(OpenFile { received, purpose }) = self.file.take() else { return Ok(()) };
                self.ledger.note(&received).map_err(BaseBackupError::from)?;
                match purpose {
                    Use::Give | Use::Control => act(Event::FileEnd),
                    Use::LeaveOut | Use::Label | Use::Map => Ok(()),
                }
            }
        }
    }

    fn entry<E: From<BaseBackupError>>(
        &mut self,
        entry: TarEntry,
        act: &mut dyn FnMut(Event<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let TarEntry { path, kind, status } = entry;
        let path = path.strip_prefix(b"./").unwrap_or(&path);
        let archive = self.archive.ok_or_else(|| BaseBackupError::malformed("an entry of no archive"))?;
        let path = match archive {
            StreamArchive::Data => path.to_vec(),
            StreamArchive::Tablespace(oid) => {
                let link = format!("{SPACES}/{oid}").into_bytes();
                if !self.begun {
                    self.tablespaces.insert(oid);
                    self.space(oid, &link, status, act)?;
                }
                [link.as_slice(), b"/", path].concat()
            }
        };
        self.begun = true;
        match kind {
            EntryKind::Directory => {
                if archive == StreamArchive::Data {
                    self.note_directory(&path, status);
                }
                if self.has(&path) && files::directory(as_path(&path)) != Action::LeaveOut {
                    if archive == StreamArchive::Data {
                        self.tablespaces.extend(tablespace(&path));
                    }
                    act(Event::Directory { path: &path, status })?;
                }
                Ok(())
            }
            EntryKind::Link(target) => {
                match self.has(&path) && files::directory(as_path(&path)) != Action::LeaveOut {
                    true => act(Event::Link { path: &path, target: &target, status }),
                    false => Ok(()),
                }
            }
            EntryKind::File(size) => {
                let purpose = match (archive, as_path(&path)) {
                    (StreamArchive::Data, path) if path == Path::new(BACKUP_LABEL_FILE) => Use::Label,
                    (StreamArchive::Data, path) if path == Path::new(TABLESPACE_MAP_FILE) => Use::Map,
                    (StreamArchive::Data, path) if path == Path::new(CONTROL_FILE) => Use::Control,
                    (_, below)
                        if self.has(&path) && files::file(below, &Unlogged::default()) == Action::Keep =>
                    {
                        Use::Give
                    }
                    _ => Use::LeaveOut,
                };
                let given = matches!(purpose, Use::Give | Use::Control);
                if given {
                    act(Event::File { path: &path, status, size })?;
                }
                self.file = Some(OpenFile { received: Received { path, size, crc: 0 }, purpose });
                Ok(())
            }
        }
    }

    /// The first entry of a tablespace: the directory of this version, whose owner and mode are those of the tablespace.
    fn space<E: From<BaseBackupError>>(
        &self,
        oid: u32,
        path: &[u8],
        status: Status,
        act: &mut dyn FnMut(Event<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let space = self.spaces.iter().find(|space| space.archive == StreamArchive::Tablespace(oid));
        match space.map(|space| &space.location).filter(|location| location.is_absolute()) {
            Some(location) => {
                act(Event::LinkedDirectory { path, target: location.as_os_str().as_bytes(), status })
            }
            // One in place (allow_in_place_tablespaces).
            None => act(Event::Directory { path, status }),
        }
    }

    fn note_directory(&mut self, path: &[u8], status: Status) {
        if let Some(at) = REQUIRED.iter().position(|name| name.as_bytes() == path)
            && let Some(found) = self.found.get_mut(at)
        {
            *found = true;
        }
        if path == b"base" {
            self.root = status;
        }
    }

    /// Whether a backup looks into the directories that lead to this path.
    fn has(&self, path: &[u8]) -> bool {
        let below = as_path(path);
        let announced =
            |oid: u32| self.spaces.iter().any(|space| space.archive == StreamArchive::Tablespace(oid));
        // In the data directory's archive: what stands for a tablespace that has an archive of its own.
        if self.archive == Some(StreamArchive::Data) && tablespace(path).is_some_and(announced) {
            return false;
        }
        let mut ancestors = below.ancestors().skip(1).filter(|ancestor| !ancestor.as_os_str().is_empty());
        let within = |directory: &Vec<u8>| below.starts_with(as_path(directory));
        ancestors.all(|ancestor| files::directory(ancestor) == Action::Keep)
            && !self.inside.iter().any(within)
    }
}

/// The OID of the tablespace whose place in the data directory this is.
fn tablespace(path: &[u8]) -> Option<u32> {
    let path = as_path(path);
    path.file_name().filter(|_| path.parent() == Some(Path::new(SPACES)))?.to_str()?.parse().ok()
}

fn as_path(path: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(path))
}

#[cfg(test)]
mod tests;
