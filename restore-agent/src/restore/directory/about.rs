//! What a marker is about: the directory that it was written for, and the `pg_control` that it counts beside.
//!
//! `cp -a`, `rsync`, `pg_basebackup` and snapshots take the marker along with all else that lies in a data directory, into one of which
//! no restore knows anything. So a marker names its directory, and the `pg_control` that the restore found or wrote there:
//!
//! | in the directory lies | the marker counts if | because |
//! |---|---|---|
//! | a `pg_control` | that is the one that it names, byte by byte, and the directory has the inode that it names, and its device or its path | a server rewrites the file when it starts, so neither one that has run since nor a copy of one has it; a copy of what no server has started yet has another inode |
//! | none | the directory has the path that it names, or its inode and device | whoever moves an unfinished restore to a larger disk continues it under the same path; nothing of a server is lost there |
//!
//! The path alone does not count beside a `pg_control`: another directory may have got it. The device alone does not tell a moved
//! directory from a copied one, and it has another number after a restart of the machine, or under another mount; so it does not have to
//! be the same where the path is. Whoever moves a complete restore to another filesystem before its marker was removed has to start it, or
//! to give another directory: "not empty" is said of one that may be anybody's.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// What a marker is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct About {
    /// The directory's path without links, as a person reads it.
    path: String,
    device: u64,
    inode: u64,
    /// The hash of the `pg_control` beside which the marker counts, if it does beside any.
    control: Option<String>,
}

impl About {
    /// Of a directory. `control`: where the `pg_control` lies beside which the marker is to count.
    pub(super) fn of(directory: &Path, control: Option<&Path>) -> io::Result<Self> {
        let meta = fs::metadata(directory)?;
        let path = fs::canonicalize(directory).unwrap_or_else(|_| directory.to_owned());
        Ok(Self {
            path: path.to_string_lossy().into_owned(),
            device: meta.dev(),
            inode: meta.ino(),
            control: control.map(hash).transpose()?,
        })
    }

    /// Whether a marker that says this counts in a directory that is `found`.
    pub(super) fn counts_in(&self, found: &Self) -> bool {
        let (same_path, same_device) = (self.path == found.path, self.device == found.device);
        let same_inode = self.inode == found.inode;
        match &found.control {
            Some(control) => {
                self.control.as_ref() == Some(control) && same_inode && (same_device || same_path)
            }
            None => same_path || same_inode && same_device,
        }
    }
}

fn hash(control: &Path) -> io::Result<String> {
    Ok(blake3::hash(&fs::read(control)?).to_hex().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_marker_counts_for_what_it_names() {
        let about = |path: &str, device, inode, control: Option<&str>| About {
            path: path.into(),
            device,
            inode,
            control: control.map(str::to_owned),
        };
        let (complete, unfinished) = (about("/a", 1, 7, Some("x")), about("/a", 1, 7, None));
        for (says, found, counts, continues) in [
            ("where it was written", about("/a", 1, 7, Some("x")), true, false),
            ("moved, or mounted elsewhere", about("/b", 1, 7, Some("x")), true, false),
            ("after a restart of the machine", about("/a", 2, 7, Some("x")), true, false),
            ("a server has run", about("/a", 1, 7, Some("y")), false, false),
            ("a copy in the same place", about("/a", 1, 8, Some("x")), false, false),
            ("a copy", about("/b", 1, 8, Some("x")), false, false),
            ("a snapshot", about("/b", 2, 7, Some("x")), false, false),
            ("unfinished", about("/a", 1, 7, None), true, true),
            ("unfinished, on a larger disk", about("/a", 2, 8, None), true, true),
            ("unfinished, moved", about("/b", 1, 7, None), true, true),
            ("a copy of an unfinished one", about("/b", 1, 8, None), false, false),
            ("a snapshot of an unfinished one", about("/b", 2, 7, None), false, false),
        ] {
            assert_eq!(complete.counts_in(&found), counts, "{says}");
            assert_eq!(unfinished.counts_in(&found), continues, "{says}, and it names no pg_control");
        }
    }
}
