//! The record on disk: written durably before anything is moved, and an error where it cannot be read.
//!
//! Root's stays root's, and only that is believed of root.

use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::Context;
use walpoint_base::durable;

use super::{Move, RECORD, Record, remove_abandoned};
use crate::restore::identity;
use crate::restore::owners::Owner;
use crate::restore::reach;
use crate::restore::respelled::Respelled;

impl Record {
    /// Writes it into the data directory, where that lies now. Root's stays root's: so its word counts when root puts things
    /// back. The directory's owner, who may want that too, can read it.
    pub(super) fn write(&self, directory: &Path, user: Option<Owner>) -> anyhow::Result<()> {
        let data = self.data(directory, user)?;
        let anchor = data.anchor(directory).with_context(|| directory.display().to_string())?;
        remove_abandoned(anchor.path())?;
        let path = anchor.path().join(RECORD);
        let json = serde_json::to_vec_pretty(self)?;
        let mode = if user.is_some() && self.trusted { 0o644 } else { 0o600 };
        let written = durable::replace(&path, &json, mode).and_then(|()| match user {
            // Written by hand is what its owner wrote.
            Some(user) if !self.trusted => user.give(&path),
            _ => Ok(()),
        });
        written.with_context(|| format!("{} cannot be written", directory.join(RECORD).display()))
    }

    /// Whether a directory is the one that was moved, whatever it is called.
    pub(super) fn is_at(&self, directory: &Path) -> bool {
        self.inode.is_some() && self.inode == identity::inode(directory)
    }

    /// The same with the paths that lead there now; `None` if it is of another data directory. `at`: the directory where it was found.
    pub(super) fn respelled(self, pgdata: &Path, at: &Path) -> Option<Self> {
        let known = self.is_at(at);
        let paths = Respelled::of(&self.pgdata, pgdata, known)
            .filter(|paths| paths.covers(self.moves.iter().map(|moved| moved.from.as_path())))?;
        let aside = paths.path(&self.aside);
        let successor = self.successor.as_deref().map(|successor| paths.path(successor));
        let respell = |moved: &Move| Move {
            from: paths.outside(&moved.from),
            to: paths.outside(&moved.to),
            ..moved.clone()
        };
        let moves = self.moves.iter().map(respell).collect();
        Some(Self { pgdata: pgdata.to_owned(), aside, successor, moves, ..self })
    }

    /// The record in a directory, if there is one. One that does not say what it should is not skipped: an older one
    /// would be taken for the latest.
    pub(super) fn read(directory: &Path) -> anyhow::Result<Option<Self>> {
        let path = directory.join(RECORD);
        let mut bytes = Vec::new();
        let read = reach::plain(&path).and_then(|mut file| {
            file.read_to_end(&mut bytes)?;
            file.metadata()
        });
        let meta = match read {
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Ok(None);
            }
            meta => meta.with_context(|| {
                format!(
                    "{}, which says where that directory and its tablespaces belong, cannot be read: nothing was \
                     changed\nHINT: Give the file to the directory's owner, or run this as root.",
                    path.display()
                )
            })?,
        };
        let trusted = !rustix::process::geteuid().is_root() || meta.uid() == 0;
        let record = serde_json::from_slice(&bytes).with_context(|| {
            format!(
                "{}, which says where that directory and its tablespaces belong, is damaged: nothing was changed\nHINT: Put \
                 them there by hand. To put an older one back, rename that directory first.",
                path.display()
            )
        });
        record.map(|record: Self| Some(Self { trusted, ..record }))
    }
}
