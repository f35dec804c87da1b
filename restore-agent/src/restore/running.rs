//! Whether a server runs on a data directory.
//!
//! A `postmaster.pid` means that one does, although a crashed server leaves the file too: the process that it names may
//! live in another PID namespace or on another machine. The file is disbelieved in two cases only. Either nothing could
//! hide a server: this is the host's initial PID namespace, every process that could be the server shows where it works,
//! the filesystem belongs to this machine alone, and no process works in the directory. Or the person who restores vouches
//! for it (`--server-is-down`), and no process that is visible contradicts. A postmaster and all its children work in
//! their data directory; one that is seen there runs, whether its file is there or not. Where a server could hide, it could
//! also use directories to which the links of a copy of its data directory lead. Nothing is changed here.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::identity::Identity;
use super::{reach, workdir};

/// The inode of the initial PID namespace, `PROC_PID_INIT_INO` in Linux's `include/linux/proc_ns.h`.
const INITIAL_NAMESPACE: u64 = 0xEFFF_FFFC;

/// How long a crashed server's children, and a prefetcher, may take to notice that the server is gone.
const AFTERMATH: Duration = Duration::from_secs(5);

/// What the names of PostgreSQL's programs contain: `postgres`, `edb-postgres`, `.postgres-wrapped`.
const SERVERS: [&str; 2] = ["postgres", "postmaster"];

/// Bytes of a `postmaster.pid` that are read; a server's has some hundred.
const LONGEST: u64 = 64 << 10;

/// Types of filesystems that no other machine can be writing to, as `statfs` gives them.
const LOCAL: [(u32, &str); 10] = [
    (0xEF53, "ext4"),
    (0x5846_5342, "XFS"),
    (0x9123_683E, "Btrfs"),
    (0x2FC1_2FC1, "ZFS"),
    (0xF2F5_2010, "F2FS"),
    (0xCA45_1A4E, "bcachefs"),
    (0x3153_464A, "JFS"),
    (0x794C_7630, "overlayfs"),
    (0x0102_1994, "tmpfs"),
    (0x8584_58F6, "ramfs"),
];

/// What a `postmaster.pid` says of the server that wrote it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct LockFile {
    content: Vec<u8>,
    /// The server's process in its own PID namespace; `None` if the file does not say.
    pid: Option<u32>,
    started: Option<Timestamp>,
}

/// Why a server may be running.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Reason {
    /// A process works in the directory.
    Works(Process),
    /// A process works in another directory with the same file: perhaps the same one, seen through another mount.
    SameFile(Process),
    /// A server could be running where it cannot be seen.
    Hidden(Hiding),
}

/// A process, as a person can find it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Process {
    pid: u32,
    /// What it calls itself.
    name: String,
    /// The name of its program's file; empty if this user may not see it.
    program: String,
}

/// Where a server could hide.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Hiding {
    /// This is not the initial PID namespace.
    Namespace,
    /// `/proc` does not show every process.
    Proc,
    /// This process of a container does not show where it works.
    Unseen(Process),
    /// The directory in which this process works does not answer.
    Silent(Process),
    /// The filesystem may be another machine's as well; its type.
    Filesystem(u32),
}

/// What is known of a data directory's server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum RunningServer {
    /// None runs, and none left its file.
    None,
    /// None runs, although the file is there.
    Crashed(LockFile),
    /// One runs, or may be running; its file may be gone.
    Running(Option<LockFile>, Reason),
}

/// Finds out whether a server runs on a directory; `vouched`: the person who restores says that none does.
pub(crate) fn find(pgdata: &Path, vouched: bool) -> io::Result<RunningServer> {
    let mut file = LockFile::read(pgdata)?;
    let pid = file.as_ref().and_then(|file| file.pid);
    let until = Instant::now() + AFTERMATH;
    loop {
        let reason = match &file {
            Some(file) => reason(pgdata, file, vouched, Path::new("/proc"))?,
            // The file may have been removed under the server.
            None => server_in(pgdata, Path::new("/proc"))?.map(Reason::Works),
        };
        return Ok(match (reason, file) {
            (None, None) => RunningServer::None,
            (None, Some(file)) => RunningServer::Crashed(file),
            // The server that wrote the file does not end by itself; what it left does.
            (Some(Reason::Works(process)), left) if Some(process.pid) != pid && Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(100));
                file = left;
                continue;
            }
            (Some(reason), file) => RunningServer::Running(file, reason),
        });
    }
}

/// A process of PostgreSQL that works in a directory. Other programs may: a shell, for example. One whose directory does not answer
/// works in another one, because this one does.
fn server_in(pgdata: &Path, proc: &Path) -> io::Result<Option<Process>> {
    let Some(here) = Identity::of(pgdata) else { return Ok(None) };
    for (pid, directory) in processes(proc)? {
        let process = Process::at(pid, &directory);
        if process.is_a_server()
            && !workdir::is_elsewhere(&directory, pgdata, proc)
            && workdir::look(&directory, Identity::of).flatten() == Some(here)
        {
            return Ok(Some(process));
        }
    }
    Ok(None)
}

/// Why a server could be running that uses a directory and shows itself nowhere; `None` if none can.
pub(crate) fn hidden(directory: &Path) -> io::Result<Option<Reason>> {
    let proc = Path::new("/proc");
    let mut unseen = None;
    for (pid, process) in processes(proc)? {
        // Where another program works need only be seen.
        let seen = match Process::at(pid, &process).is_a_server() {
            true => workdir::look(&process, |cwd| fs::metadata(cwd).map(drop)),
            false => Some(fs::read_link(process.join("cwd")).map(drop)),
        };
        match seen {
            // Another user's server of this namespace could not use a directory of this user's.
            Some(Err(error))
                if error.kind() == io::ErrorKind::PermissionDenied && !is_of_this_namespace(&process) =>
            {
                unseen = Some(Hiding::Unseen(Process::at(pid, &process)));
            }
            Some(_) => {}
            // Where its links lead is not known.
            None => unseen = Some(Hiding::Silent(Process::at(pid, &process))),
        }
    }
    Ok(hiding(directory, unseen, proc)?.map(Reason::Hidden))
}

/// A process whose directory does not answer, if it may be a server.
fn silent(pid: u32, directory: &Path) -> Option<Hiding> {
    Some(Process::at(pid, directory)).filter(Process::is_a_server).map(Hiding::Silent)
}

/// Where a server that uses a directory could hide. `unseen`: in a process that does not show where it works.
fn hiding(directory: &Path, unseen: Option<Hiding>, proc: &Path) -> io::Result<Option<Hiding>> {
    let namespace = fs::metadata(proc.join("self/ns/pid")).map(|meta| meta.ino());
    if !namespace.is_ok_and(|inode| inode == INITIAL_NAMESPACE) {
        Ok(Some(Hiding::Namespace))
    } else if fs::read(proc.join("1/status")).is_err() {
        // A mount of /proc with hidepid shows a user only his own processes.
        Ok(Some(Hiding::Proc))
    } else if unseen.is_some() {
        Ok(unseen)
    } else {
        Ok(shared_filesystem(directory)?.map(Hiding::Filesystem))
    }
}

/// The directories in `/proc` of all processes that may work in a data directory that has to do with one of these directories.
pub(super) fn processes_around(directories: &[&Path]) -> Vec<PathBuf> {
    let proc = Path::new("/proc");
    let processes = processes(proc).unwrap_or_default().into_iter();
    let asked = processes
        .filter(|(pid, directory)| is_asked(&Process::at(*pid, directory), directory, directories, proc));
    asked.map(|(_, directory)| directory).collect()
}

/// Whether it is asked what lies where a process works. Another program than a server's is not where it works on another filesystem than
/// all that is asked about: that may hang, and some filesystems keep a program from ending while one of its threads waits for them.
fn is_asked(process: &Process, directory: &Path, about: &[&Path], proc: &Path) -> bool {
    process.is_a_server() || about.iter().any(|about| !workdir::is_elsewhere(directory, about, proc))
}

/// Why a server may be running on the directory; `None` if none does.
fn reason(pgdata: &Path, file: &LockFile, vouched: bool, proc: &Path) -> io::Result<Option<Reason>> {
    let here = Identity::from(&fs::metadata(pgdata)?);
    let (mut same, mut unseen) = (None, None);
    for (pid, directory) in processes(proc)? {
        if !is_asked(&Process::at(pid, &directory), &directory, &[pgdata], proc) {
            continue;
        }
        let content = file.content.clone();
        let found = workdir::look(&directory, move |cwd| {
            let is_here = Identity::from(&fs::metadata(cwd)?) == here;
            let other = LockFile::read(cwd).ok().flatten();
            io::Result::Ok((is_here, other.is_some_and(|other| other.content == content)))
        });
        match found {
            Some(Ok((true, _))) => return Ok(Some(Reason::Works(Process::at(pid, &directory)))),
            Some(Ok((false, true))) => same = Some(Process::at(pid, &directory)),
            Some(Ok((false, false))) => {}
            Some(Err(e)) if e.kind() == io::ErrorKind::PermissionDenied => {
                if Some(pid) == file.pid || !is_of_this_namespace(&directory) {
                    unseen = Some(Hiding::Unseen(Process::at(pid, &directory)));
                }
            }
            // It ended meanwhile.
            Some(Err(_)) => {}
            // On another filesystem it has other files.
            None if workdir::is_elsewhere(&directory, pgdata, proc) => {}
            None => unseen = silent(pid, &directory).or(unseen),
        }
    }
    if vouched {
        return Ok(None);
    }
    if let Some(process) = same {
        return Ok(Some(Reason::SameFile(process)));
    }
    Ok(hiding(pgdata, unseen, proc)?.map(Reason::Hidden))
}

/// All processes but this one, each with its directory in `/proc`.
fn processes(proc: &Path) -> io::Result<Vec<(u32, PathBuf)>> {
    let own = fs::read_link(proc.join("self")).ok();
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(proc)? {
        let entry = entry?;
        if own.as_ref().is_some_and(|own| own.as_os_str() == entry.file_name()) {
            continue;
        }
        if let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) {
            found.insert((pid, entry.path()));
        }
    }
    Ok(found.into_iter().collect())
}

/// Whether a process has no number but the one that is seen here. Then it is the server that wrote a `postmaster.pid` only
/// if that is the number in the file.
fn is_of_this_namespace(directory: &Path) -> bool {
    let status = fs::read_to_string(directory.join("status")).unwrap_or_default();
    let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    numbers.is_some_and(|numbers| numbers.split_ascii_whitespace().count() == 1)
}

/// The type of the filesystem, if another machine may be writing to it.
fn shared_filesystem(pgdata: &Path) -> io::Result<Option<u32>> {
    #[allow(clippy::unnecessary_cast, reason = "its width depends on the machine")]
    let kind = rustix::fs::statfs(pgdata)?.f_type as i64;
    let local = LOCAL.iter().any(|(known, _)| i64::from(*known) == kind);
    Ok((!local).then(|| u32::try_from(kind & 0xFFFF_FFFF).unwrap_or(u32::MAX)))
}

impl LockFile {
    /// Reads it, if it is there.
    ///
    /// Source: `CreateLockFile` in `src/backend/utils/init/miscinit.c`; the pid of a single-user server is negative.
    fn read(pgdata: &Path) -> io::Result<Option<Self>> {
        let mut content = Vec::new();
        match reach::plain(&pgdata.join("postmaster.pid")) {
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Ok(None);
            }
            // A link or a FIFO is no server's: none can start over it, and one that runs is seen at work.
            Err(e) if e.kind() == io::ErrorKind::InvalidInput => {}
            file => drop(file?.take(LONGEST).read_to_end(&mut content)?),
        }
        let text = String::from_utf8_lossy(&content);
        let mut lines = text.lines().map(str::trim);
        let pid = lines.next().and_then(|pid| pid.trim_start_matches('-').parse().ok());
        let started = lines.nth(1).and_then(|time| Timestamp::from_second(time.parse().ok()?).ok());
        Ok(Some(Self { pid, started, content }))
    }
}

impl fmt::Display for LockFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.pid {
            Some(pid) => write!(f, "pid {pid}")?,
            None => f.write_str("an unreadable pid")?,
        }
        self.started.map_or(Ok(()), |started| write!(f, ", started {started}"))
    }
}

impl Process {
    fn at(pid: u32, directory: &Path) -> Self {
        let name = fs::read_to_string(directory.join("comm")).unwrap_or_default();
        // The link is not followed: its filesystem may hang.
        let program = fs::read_link(directory.join("exe")).ok();
        let program = program.as_deref().and_then(Path::file_name).unwrap_or_default();
        Self { pid, name: name.trim_end().to_owned(), program: program.to_string_lossy().into_owned() }
    }

    /// Whether it, or its program, is called so.
    fn is_a_server(&self) -> bool {
        SERVERS.iter().any(|server| self.name.contains(server) || self.program.contains(server))
    }
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {} ({})", self.pid, self.name)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const VOUCH: &str = "If you know that it is stopped, or crashed, add --server-is-down.";
        match self {
            Self::Works(process) => {
                write!(f, "{process} works in this directory\nHINT: Stop the server, or end that process.")
            }
            Self::SameFile(process) => write!(
                f,
                "{process} works in a directory with the same postmaster.pid\nHINT: Stop that server. If this is a copy of \
                 its directory, add --server-is-down."
            ),
            Self::Hidden(Hiding::Namespace) => write!(
                f,
                "this container (PID namespace) does not show the processes of others\nHINT: Stop the server. {VOUCH}"
            ),
            Self::Hidden(Hiding::Proc) => {
                write!(f, "/proc does not show every process here\nHINT: Run this as root. {VOUCH}")
            }
            Self::Hidden(Hiding::Unseen(process)) => write!(
                f,
                "{process} runs in a container and hides its working directory from this user\nHINT: Run this as root. {VOUCH}"
            ),
            Self::Hidden(Hiding::Silent(process)) => write!(
                f,
                "{process} is on a filesystem that does not respond, so what it uses is unknown\nHINT: End that \
                 process. {VOUCH}"
            ),
            Self::Hidden(Hiding::Filesystem(kind)) => write!(
                f,
                "another machine may use its filesystem (type {kind:#x})\nHINT: Stop the server wherever it runs. {VOUCH}"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use walpoint_base::durable;

    use super::*;

    /// A `/proc` of this machine's making, and a data directory with the file of a server with the pid 77.
    struct Bed {
        dir: tempfile::TempDir,
    }

    impl Bed {
        fn new() -> Self {
            let bed = Self { dir: tempfile::tempdir().unwrap() };
            fs::create_dir(bed.pgdata()).unwrap();
            fs::create_dir(bed.path("other")).unwrap();
            let file = b"77\n/data\n1700000000\n5432\n";
            durable::create(&bed.pgdata().join("postmaster.pid"), file).unwrap();
            bed
        }

        fn path(&self, name: &str) -> PathBuf {
            self.dir.path().join(name)
        }

        fn pgdata(&self) -> PathBuf {
            self.path("data")
        }

        fn process(&self, pid: u32, cwd: &str, numbers: &str) {
            let directory = self.path(&format!("proc/{pid}"));
            fs::create_dir_all(&directory).unwrap();
            symlink(self.path(cwd), directory.join("cwd")).unwrap();
            durable::create(&directory.join("comm"), b"postgres\n").unwrap();
            let status = format!("Name:\tpostgres\nNSpid:\t{numbers}\n");
            durable::create(&directory.join("status"), status.as_bytes()).unwrap();
        }

        fn reason(&self, vouched: bool) -> Option<Reason> {
            let file = LockFile::read(&self.pgdata()).unwrap().unwrap();
            reason(&self.pgdata(), &file, vouched, &self.path("proc")).unwrap()
        }
    }

    #[test]
    fn a_process_in_the_directory_is_a_server_whatever_anyone_says() {
        let bed = Bed::new();
        bed.process(1, "other", "1");
        bed.process(30, "other/../data", "30");
        for vouched in [false, true] {
            assert!(matches!(bed.reason(vouched), Some(Reason::Works(Process { pid: 30, .. }))));
        }
    }

    #[test]
    fn outside_the_hosts_namespace_the_file_is_believed_unless_someone_vouches() {
        let bed = Bed::new();
        // No link self/ns/pid leads to the initial namespace here.
        bed.process(1, "other", "1");
        assert_eq!(bed.reason(false), Some(Reason::Hidden(Hiding::Namespace)));
        assert_eq!(bed.reason(true), None);
    }

    #[test]
    fn the_same_file_elsewhere_is_the_same_server() {
        let bed = Bed::new();
        bed.process(1, "other", "1");
        fs::copy(bed.pgdata().join("postmaster.pid"), bed.path("other/postmaster.pid")).unwrap();
        assert!(matches!(bed.reason(false), Some(Reason::SameFile(Process { pid: 1, .. }))));
        assert_eq!(bed.reason(true), None);
    }

    #[test]
    fn a_process_of_a_container_has_several_numbers() {
        let bed = Bed::new();
        bed.process(5, "other", "5\t1");
        bed.process(6, "other", "6");
        assert!(!is_of_this_namespace(&bed.path("proc/5")) && is_of_this_namespace(&bed.path("proc/6")));
        assert!(!is_of_this_namespace(&bed.path("proc/7")), "what cannot be read proves nothing");
    }

    #[test]
    fn pid_and_start_time_are_read_from_the_file() {
        let bed = Bed::new();
        let shown = |content: &[u8]| {
            durable::replace(&bed.pgdata().join("postmaster.pid"), content, 0o600).unwrap();
            LockFile::read(&bed.pgdata()).unwrap().unwrap().to_string()
        };
        assert_eq!(shown(b"-77\n/data\n1700000000\n"), "pid 77, started 2023-11-14T22:13:20Z");
        assert_eq!(shown(b"77"), "pid 77");
        assert_eq!(shown(b"\xff\n"), "an unreadable pid");
        fs::remove_file(bed.pgdata().join("postmaster.pid")).unwrap();
        assert_eq!(LockFile::read(&bed.pgdata()).unwrap(), None);
    }

    #[test]
    fn a_server_is_known_by_its_name_or_by_its_program() {
        let bed = Bed::new();
        for (pid, name, program, is_a_server) in [
            (2, "postmaster", "/gone", true),
            (3, "edb-postgres", "/usr/edb/as17/bin/edb-postgres", true),
            (4, "main", "/nix/store/x/bin/.postgres-wrapped", true),
            (5, "bash", "/var/lib/postgres/bash", false),
        ] {
            let directory = bed.path(&format!("proc/{pid}"));
            fs::create_dir_all(&directory).unwrap();
            durable::create(&directory.join("comm"), name.as_bytes()).unwrap();
            symlink(program, directory.join("exe")).unwrap();
            assert_eq!(Process::at(pid, &directory).is_a_server(), is_a_server, "{name} {program}");
        }
    }

    #[test]
    fn a_program_is_asked_that_works_where_something_lies_that_is_asked_about() {
        let bed = Bed::new();
        let [data, other] = ["data", "other"].map(|name| bed.path(name).canonicalize().unwrap());
        let mounts = format!("1 0 8:1 / / rw - ext4 a rw\n2 1 8:2 / {} rw - ext4 b rw\n", other.display());
        let (proc, directory) = (bed.path("proc"), bed.path("proc/7"));
        for process in [&proc.join("self"), &directory] {
            fs::create_dir_all(process).unwrap();
            durable::create(&process.join("mountinfo"), mounts.as_bytes()).unwrap();
        }
        symlink(&other, directory.join("cwd")).unwrap();
        let is_asked = |about: &[&Path]| is_asked(&Process::at(7, &directory), &directory, about, &proc);
        assert!(!is_asked(&[data.as_path()]) && is_asked(&[data.as_path(), other.as_path()]));
    }

    #[test]
    fn filesystems_of_other_machines_are_told_from_local_ones() {
        assert!(shared_filesystem(Path::new("/proc")).unwrap().is_some(), "not known to be local");
    }
}
