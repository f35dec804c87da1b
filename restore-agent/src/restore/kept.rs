//! What `--delta` keeps of the data directory that it repairs, because it is nowhere else: WAL that no archive has, and
//! tablespaces that replay would overwrite.
//!
//! WAL goes to `<pgdata>.walpoint-kept-<time>`, a directory with a record, [`RECORD`], of what was kept; a tablespace's
//! directory gets another name where it is. The record is durable before anything is moved or removed, so a crash leaves
//! everything under the old name or under the one in the record. Nothing is ever deleted here. `rollback` names what it
//! finds.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use walpoint_base::durable;

use super::aside;
use super::owners::Owner;

/// The file in a directory of what was kept.
const RECORD: &str = "walpoint-kept.json";

/// What the name of the directory gets, before the time.
const SUFFIX: &str = ".walpoint-kept-";

/// What was kept of a data directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Kept {
    /// The data directory.
    pub(crate) pgdata: PathBuf,
    /// Where it lies.
    pub(crate) directory: PathBuf,
    /// Names of the files of WAL in it.
    pub(crate) wal: Vec<String>,
    /// Directories that were renamed: their names before and now.
    pub(crate) renamed: Vec<(PathBuf, PathBuf)>,
}

impl Kept {
    /// Keeps files of `pg_wal`, and directories, of a data directory. `None` if there is nothing to keep.
    pub(crate) fn keep(
        pgdata: &Path,
        wal: &[String],
        directories: &[PathBuf],
        now: Timestamp,
    ) -> anyhow::Result<Option<Self>> {
        if wal.is_empty() && directories.is_empty() {
            return Ok(None);
        }
        let time = now.strftime("%Y%m%dT%H%M%SZ").to_string();
        let beside = |path: &Path, suffix: &str, name: &str| {
            let mut beside = path.as_os_str().to_owned();
            beside.push(format!("{suffix}{name}"));
            PathBuf::from(beside)
        };
        // One name for all, also if a second restore comes within the second.
        let names = (0u32..1000).map(|n| if n == 0 { time.clone() } else { format!("{time}-{n}") });
        let free = |name: &String| {
            fs::symlink_metadata(beside(pgdata, SUFFIX, name)).is_err()
                && directories.iter().all(|d| fs::symlink_metadata(beside(d, aside::SUFFIX, name)).is_err())
        };
        let name = { names }.find(free).context("no name is free to keep what is there")?;
        let kept = Self {
            pgdata: pgdata.to_owned(),
            directory: beside(pgdata, SUFFIX, &name),
            wal: wal.to_vec(),
            renamed: directories.iter().map(|d| (d.clone(), beside(d, aside::SUFFIX, &name))).collect(),
        };
        kept.write().with_context(|| format!("{} cannot be written", kept.directory.display()))?;
        for (from, to) in &kept.renamed {
            durable::rename(from, to)
                .with_context(|| format!("{} cannot be renamed to {}", from.display(), to.display()))?;
        }
        Ok(Some(kept))
    }

    fn write(&self) -> io::Result<()> {
        durable::create_directories(&self.directory)?;
        let mut copied = Vec::new();
        for name in &self.wal {
            let from = self.pgdata.join("pg_wal").join(name);
            let to = self.directory.join(name);
            // A second name costs nothing; across filesystems it takes a copy.
            if fs::hard_link(&from, &to).is_err() {
                fs::copy(&from, &to)?;
                copied.push(to.clone());
            }
            File::open(&to)?.sync_all()?;
        }
        let json = serde_json::to_vec_pretty(self).map_err(io::Error::from)?;
        let record = self.directory.join(RECORD);
        durable::replace(&record, &json, 0o600)?;
        if rustix::process::geteuid().is_root() {
            // Whoever owns the data directory may want it back, and is not root.
            let meta = fs::metadata(&self.pgdata)?;
            let owner = Owner { uid: meta.uid(), gid: meta.gid() };
            // A second name of a file has the file's owner already.
            for made in copied.iter().chain([&record, &self.directory]) {
                owner.give(made)?;
            }
        }
        durable::sync_directory(&self.directory)
    }

    /// What and where, for a person.
    pub(crate) fn text(&self) -> String {
        let mut parts = Vec::new();
        if let (Some(first), Some(last)) = (self.wal.first(), self.wal.last()) {
            let names = if first == last { first.clone() } else { format!("{first} to {last}") };
            parts.push(format!("WAL that no archive has ({names}) in {}", self.directory.display()));
        }
        for (from, to) in &self.renamed {
            parts.push(format!("{} as {}", from.display(), to.display()));
        }
        parts.join(", and ")
    }
}

/// All that was kept of a data directory, oldest first. Records that cannot be read are left out: nothing depends on them.
pub(crate) fn all(pgdata: &Path) -> Vec<Kept> {
    let (Some(parent), Some(name)) = (pgdata.parent(), pgdata.file_name()) else { return Vec::new() };
    let prefix = format!("{}{SUFFIX}", name.to_string_lossy());
    let entries = fs::read_dir(parent).into_iter().flatten().flatten();
    let named = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix));
    let mut found: Vec<Kept> = named
        .filter_map(|entry| serde_json::from_slice(&fs::read(entry.path().join(RECORD)).ok()?).ok())
        .filter(|kept: &Kept| kept.pgdata == pgdata)
        .collect();
    found.sort_by(|a, b| a.directory.cmp(&b.directory));
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_found_and_survives_its_first_name() {
        let dir = tempfile::tempdir().unwrap();
        let pgdata = dir.path().join("data");
        let space = dir.path().join("space/PG_17_1");
        fs::create_dir_all(pgdata.join("pg_wal")).unwrap();
        fs::create_dir_all(&space).unwrap();
        durable::create(&pgdata.join("pg_wal/a"), b"wal").unwrap();
        assert_eq!(Kept::keep(&pgdata, &[], &[], Timestamp::now()).unwrap(), None);
        let now = Timestamp::now();
        let kept = Kept::keep(&pgdata, &["a".into()], std::slice::from_ref(&space), now).unwrap().unwrap();
        fs::remove_dir_all(&pgdata).unwrap();
        assert_eq!(fs::read(kept.directory.join("a")).unwrap(), b"wal");
        assert!(!space.exists() && kept.renamed[0].1.is_dir());
        assert_eq!(all(&pgdata), [kept]);
        assert_eq!(all(&dir.path().join("dat")), []);
    }
}
