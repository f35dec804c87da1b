//! What `--delta` keeps of the data directory that it repairs, because it is nowhere else: WAL that no archive has, and
//! tablespaces that replay would overwrite.
//!
//! WAL goes to `<pgdata>.walpoint-kept-<time>`, a directory with a record, [`RECORD`], of what was kept; a tablespace's
//! directory gets another name where it is. The record is durable before anything is moved or removed, so a crash leaves
//! everything under the old name or under the one in the record. It is written before the repair takes `pg_control` away, so a
//! failure leaves the data directory as it was; directories are renamed afterwards. Nothing is ever deleted here. `rollback` names what it
//! finds.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, fchown};
use std::path::{Path, PathBuf};

use anyhow::Context;
use jiff::Timestamp;
use rustix::fs::{Access, AtFlags, CWD, Mode, OFlags};
use serde::{Deserialize, Serialize};

use super::beneath::Anchor;
use super::identity;
use super::owners::Owner;
use super::previous;
use super::reach;
use super::respelled::Respelled;

/// The file in a directory of what was kept.
const RECORD: &str = "walpoint-kept.json";

/// Its name until it is written.
const UNNAMED: &str = "walpoint-kept.json.new";

/// What the name of the directory gets, before the time.
const SUFFIX: &str = ".walpoint-kept-";

/// Bytes of a record that are read.
const LONGEST: u64 = 64 << 20;

/// What was kept of a data directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Kept {
    /// The data directory.
    pub(crate) pgdata: PathBuf,
    /// Where it lies.
    pub(crate) directory: PathBuf,
    /// Its inode.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    inode: Option<u64>,
    /// Names of the files of WAL in it.
    pub(crate) wal: Vec<String>,
    /// Those of them that waited to be archived.
    pub(crate) waiting: Vec<String>,
    /// Directories that were renamed: their names before and now.
    pub(crate) renamed: Vec<(PathBuf, PathBuf)>,
    /// What showed that they are another server's, if anything did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) apart: Option<Apart>,
    /// What shows which stored segments are the same server's, as lines of its record of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) vouched: Vec<String>,
}

/// What is known of whose files of WAL are.
#[derive(Debug, Clone, Default)]
pub(crate) struct Whose {
    /// What shows that they are another server's.
    pub(crate) apart: Option<Apart>,
    /// What shows which stored segments are the same server's.
    pub(crate) vouched: Vec<String>,
}

/// What shows that files of WAL are another server's than that of a lineage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Apart {
    /// The lineage. They may be of another one, and are replayed behind that.
    pub(crate) lineage: String,
    /// In words.
    pub(crate) why: String,
}

impl Kept {
    /// Refuses, before anything is changed, what [`Kept::keep`] could not keep, because nothing can be made beside the data directory.
    /// `wal`: the names of the files. `user`: for whom root acts.
    pub(crate) fn prove_place(pgdata: &Path, wal: &[String], user: Option<Owner>) -> anyhow::Result<()> {
        let place = pgdata.parent().unwrap_or(pgdata);
        let can_be_written = || -> io::Result<()> {
            reach::parent(pgdata, true, user)?;
            Ok(rustix::fs::access(place, Access::WRITE_OK | Access::EXEC_OK)?)
        };
        let archived = wal.first().map(|first| {
            format!(
                " Or archive what no repository has, in order, for example with \"archive-agent push {}\": then nothing has to be \
                 kept.",
                pgdata.join("pg_wal").join(first).display()
            )
        });
        can_be_written().with_context(|| {
            format!(
                "{} has WAL or tablespaces that exist nowhere else, and they cannot be kept beside it, because nothing can be \
                 made in {}: nothing was changed\nHINT: Let this user write to {}, or run the same command as root.{}",
                pgdata.display(),
                place.display(),
                place.display(),
                archived.unwrap_or_default()
            )
        })
    }

    /// Keeps files of `pg_wal` of a data directory, and notes directories that [`Kept::rename`] will rename. `None` if there
    /// is nothing to keep. Nothing is changed in the data directory. `user`: for whom root acts.
    pub(crate) fn keep(
        pgdata: &Path,
        (wal, whose): (&[String], Whose),
        directories: &[PathBuf],
        now: Timestamp,
        user: Option<Owner>,
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
                && directories
                    .iter()
                    .all(|d| fs::symlink_metadata(beside(d, previous::SUFFIX, name)).is_err())
        };
        let name = { names }.find(free).context("no name is free to keep what is there")?;
        let waits = |name: &&String| pgdata.join(format!("pg_wal/archive_status/{name}.ready")).exists();
        let kept = Self {
            pgdata: pgdata.to_owned(),
            directory: beside(pgdata, SUFFIX, &name),
            inode: None,
            wal: wal.to_vec(),
            waiting: wal.iter().filter(|name| waits(name)).cloned().collect(),
            renamed: directories.iter().map(|d| (d.clone(), beside(d, previous::SUFFIX, &name))).collect(),
            apart: whose.apart,
            vouched: whose.vouched,
        };
        for (from, _) in &kept.renamed {
            reach::parent(from, true, user)
                .with_context(|| format!("{} cannot be renamed: nothing was changed", from.display()))?;
        }
        let place = kept.directory.clone();
        let kept = kept
            .write(user)
            .with_context(|| format!("{} cannot be written: nothing was changed", place.display()))?;
        Ok(Some(kept))
    }

    /// Gives the directories their other names.
    pub(crate) fn rename(&self, user: Option<Owner>) -> anyhow::Result<()> {
        for (from, to) in &self.renamed {
            reach::rename(from, to, true, user)
                .with_context(|| format!("{} cannot be renamed to {}", from.display(), to.display()))?;
        }
        Ok(())
    }

    fn write(mut self, user: Option<Owner>) -> io::Result<Self> {
        let (parent, name) = reach::parent(&self.directory, true, user)?;
        rustix::fs::mkdirat(&parent, name, Mode::RWXU)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = File::from(rustix::fs::openat(&parent, name, flags, Mode::empty())?);
        // Who owns the parent may have put another directory in its place.
        let meta = directory.metadata()?;
        if meta.uid() != rustix::process::geteuid().as_raw() {
            return Err(io::Error::other("another user replaced it"));
        }
        self.inode = Some(meta.ino());
        let wal = Anchor::open(&self.pgdata.join("pg_wal"))?;
        for name in &self.wal {
            keep_file(wal.directory(), &directory, name, user)?;
        }
        let json = serde_json::to_vec_pretty(&self).map_err(io::Error::from)?;
        // Under its name it is whole, whenever this is interrupted.
        let mut record = new_file(&directory, UNNAMED)?;
        record.write_all(&json)?;
        give(&record, user)?;
        rustix::fs::renameat(&directory, UNNAMED, &directory, RECORD)?;
        give(&directory, user)?;
        rustix::fs::fsync(&parent)?;
        Ok(self)
    }

    /// The same with the paths that lead there now; `None` if it is of another data directory. `directory`: where it was found.
    fn respelled(self, pgdata: &Path, directory: PathBuf) -> Option<Self> {
        let known = self.inode.is_some() && self.inode == identity::inode(&directory);
        let paths = Respelled::of(&self.pgdata, pgdata, known)?;
        let mut renamed: Vec<_> =
            self.renamed.iter().map(|(from, to)| (paths.outside(from), paths.outside(to))).collect();
        // The WAL is here in any case. Where something else is at the old path, what has the names of the others may be another server's.
        let by_path = Respelled::of(&self.pgdata, pgdata, false).is_some();
        if !by_path && !paths.covers(self.renamed.iter().map(|(from, _)| from.as_path())) {
            renamed.clear();
        }
        Some(Self { pgdata: pgdata.to_owned(), directory, renamed, ..self })
    }

    /// Where it is: the directory with the WAL and the record, and the new names of the others.
    pub(crate) fn paths(&self) -> impl Iterator<Item = &Path> {
        std::iter::once(self.directory.as_path()).chain(self.renamed.iter().map(|(_, to)| to.as_path()))
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

/// Gives a file of WAL a second name in a directory that only we can write to, or copies it there.
fn keep_file(wal: &File, directory: &File, name: &str, user: Option<Owner>) -> io::Result<()> {
    let mut source = reach::plain_at(wal, Path::new(name))?;
    let meta = source.metadata()?;
    // An interrupted restore leaves files of root's, in a directory that root took from its owner.
    let ours = meta.uid() == 0 && wal.metadata()?.uid() == 0;
    if user.is_some_and(|user| meta.uid() != user.uid) {
        if !ours {
            return Err(io::Error::other(format!("\"{name}\" in pg_wal belongs to uid {}", meta.uid())));
        }
        give(&source, user)?;
    }
    // A second name costs nothing; across filesystems it takes a copy. The name may lead elsewhere by then: what is open is
    // linked.
    let open = format!("/proc/self/fd/{}", source.as_raw_fd());
    if rustix::fs::linkat(CWD, open, directory, name, AtFlags::SYMLINK_FOLLOW).is_ok() {
        return source.sync_all();
    }
    let mut copy = new_file(directory, name)?;
    io::copy(&mut source, &mut copy)?;
    give(&copy, user)
}

fn new_file(directory: &File, name: &str) -> io::Result<File> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(File::from(rustix::fs::openat(directory, name, flags, Mode::RUSR | Mode::WUSR)?))
}

/// Syncs what is open. The data directory's owner, for whom root acts, may want it back, and is not root.
fn give(file: &File, user: Option<Owner>) -> io::Result<()> {
    if let Some(user) = user {
        fchown(file, Some(user.uid), Some(user.gid))?;
    }
    file.sync_all()
}

/// Opens a file of WAL that was kept, to be read. `user`: for whom root acts; what belongs to neither is not read for him.
pub(crate) fn open(path: &Path, user: Option<Owner>) -> io::Result<File> {
    let file = reach::plain(path)?;
    let uid = file.metadata()?.uid();
    if user.is_some_and(|user| uid != user.uid) {
        return Err(io::Error::other(format!("it belongs to uid {uid}")));
    }
    Ok(file)
}

/// All that was kept of a data directory, oldest first. A record that cannot be read is an error: its WAL may be nowhere else.
pub(crate) fn all(pgdata: &Path) -> anyhow::Result<Vec<Kept>> {
    let (Some(parent), Some(name)) = (pgdata.parent(), pgdata.file_name()) else { return Ok(Vec::new()) };
    let prefix = format!("{}{SUFFIX}", name.to_string_lossy());
    let entries = match fs::read_dir(parent) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.and_then(Iterator::collect::<io::Result<Vec<_>>>),
    };
    let entries = entries.with_context(|| parent.display().to_string())?;
    let named = entries.iter().filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix));
    let mut found = Vec::new();
    for entry in named {
        let Some(kept) = read(&entry.path().join(RECORD))? else { continue };
        let of = kept.pgdata.clone();
        match kept.respelled(pgdata, entry.path()) {
            Some(kept) => found.push(kept),
            None => previous::tell_not_used(&entry.path(), &of),
        }
    }
    found.sort_by(|a, b| a.directory.cmp(&b.directory));
    Ok(found)
}

/// Reads a record. Where none is, keeping was interrupted before anything was moved or removed.
fn read(record: &Path) -> anyhow::Result<Option<Kept>> {
    let shown = || format!("{}, which says what an earlier restore kept", record.display());
    let mut json = Vec::new();
    let file = match reach::plain(record) {
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        file => file,
    };
    file.and_then(|file| file.take(LONGEST).read_to_end(&mut json))
        .with_context(|| format!("{}, cannot be read", shown()))?;
    serde_json::from_slice(&json).map(Some).with_context(|| format!("{}, is damaged", shown()))
}

#[cfg(test)]
mod tests {
    use walpoint_base::durable;

    use super::*;

    #[test]
    fn what_is_kept_is_found_and_survives_its_first_name() {
        let dir = tempfile::tempdir().unwrap();
        let pgdata = dir.path().join("data");
        let space = dir.path().join("space/PG_17_1");
        fs::create_dir_all(pgdata.join("pg_wal")).unwrap();
        fs::create_dir_all(&space).unwrap();
        durable::create(&pgdata.join("pg_wal/a"), b"wal").unwrap();
        assert_eq!(Kept::keep(&pgdata, (&[], Whose::default()), &[], Timestamp::now(), None).unwrap(), None);
        let now = Timestamp::now();
        let apart = Some(Apart { lineage: "7-1".into(), why: "it differs".into() });
        let whose = Whose { apart, vouched: vec!["a line".into()] };
        let kept = Kept::keep(&pgdata, (&["a".into()], whose), std::slice::from_ref(&space), now, None)
            .unwrap()
            .unwrap();
        assert!(space.exists(), "it is not renamed yet");
        kept.rename(None).unwrap();
        fs::remove_dir_all(&pgdata).unwrap();
        assert_eq!(fs::read(kept.directory.join("a")).unwrap(), b"wal");
        assert!(!space.exists() && kept.renamed[0].1.is_dir());
        assert!(kept.paths().all(Path::is_dir) && kept.paths().count() == 2, "{kept:?}");
        assert_eq!(all(&pgdata).unwrap(), std::slice::from_ref(&kept));
        assert_eq!(all(&dir.path().join("dat")).unwrap(), []);
        assert_eq!(all(&dir.path().join("missing/data")).unwrap(), []);
    }

    #[test]
    fn where_nothing_can_be_kept_is_found_out_and_named() {
        use std::os::unix::fs::{PermissionsExt, chown, symlink};
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        let path = |name: &str| root.join(name);
        fs::create_dir_all(path("closed/data")).unwrap();
        fs::create_dir_all(path("open/data")).unwrap();
        let wal = ["000000010000000000000007".to_owned()];
        // Root writes anywhere, but not where another user's link leads it.
        let (closed, user) = if rustix::process::geteuid().is_root() {
            fs::create_dir(path("users")).unwrap();
            chown(path("users"), Some(4711), Some(4711)).unwrap();
            symlink(path("closed"), path("users/link")).unwrap();
            (path("users/link/data"), Some(Owner { uid: 4711, gid: 4711 }))
        } else {
            fs::set_permissions(path("closed"), fs::Permissions::from_mode(0o500)).unwrap();
            (path("closed/data"), None)
        };
        let why = format!("{:#}", Kept::prove_place(&closed, &wal, user).unwrap_err());
        fs::set_permissions(path("closed"), fs::Permissions::from_mode(0o700)).unwrap();
        let parent = closed.parent().unwrap().display().to_string();
        assert!(why.contains(&parent) && why.contains("nothing was changed\nHINT: "), "{why}");
        assert!(why.contains(&format!("push {}/pg_wal/{}", closed.display(), wal[0])), "{why}");
        Kept::prove_place(&path("open/data"), &wal, user).unwrap();
    }

    #[test]
    fn a_record_that_cannot_be_read_is_not_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let pgdata = dir.path().join("data");
        fs::create_dir_all(pgdata.join("pg_wal")).unwrap();
        durable::create(&pgdata.join("pg_wal/a"), b"wal").unwrap();
        let kept = Kept::keep(&pgdata, (&["a".into()], Whose::default()), &[], Timestamp::now(), None)
            .unwrap()
            .unwrap();
        let record = kept.directory.join(RECORD);
        durable::replace(&record, b"", 0o600).unwrap();
        let damaged = format!("{:#}", all(&pgdata).unwrap_err());
        assert!(damaged.contains(record.to_str().unwrap()) && damaged.contains("is damaged"), "{damaged}");
        // Not even root reads a directory as a file.
        fs::remove_file(&record).unwrap();
        fs::create_dir(&record).unwrap();
        assert!(format!("{:#}", all(&pgdata).unwrap_err()).contains("cannot be read"));
        // Nothing was removed yet when keeping was interrupted before it had one.
        fs::remove_dir(&record).unwrap();
        assert_eq!(all(&pgdata).unwrap(), []);
    }
}
