//! Whose WAL a push without a daemon is given.
//!
//! A copy of a data directory brings production's `archive_command` along, and with it production's configuration: its WAL has
//! production's system identifier and timeline, and fits behind production's. Only the directory that it lies in tells them apart. With a
//! daemon the file's identity does; here what PostgreSQL hands over has to lie in the `pg_wal` of the configured data directory, by
//! what the directories are and not by how they are spelled. A person may archive what a dead server left anywhere, but nothing of
//! another server that runs: that one goes on writing.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use walpoint_base::socket::PUSH_OUTCOME;
use walpoint_runtime::args::Selection;
use walpoint_storage::store::StoreSettings;

use super::disk;

/// How long a directory may take to say which one it is.
const LOOK: Duration = Duration::from_secs(3);

/// What a copy does instead.
const HINT: &str = "Set archive_mode = off in a copy, or archive it under a name of its own, with an archive_command and a \
                    configuration of its own (archive-agent init --cluster NAME --config FILE). One that has replaced its original \
                    needs its own pgdata in the configuration, and archive-agent init --new-lineage.";

/// Device and inode of a directory.
type Identity = (u64, u64);

/// Who gives a file to a push.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Giver {
    /// PostgreSQL, through `archive-push`.
    Server,
    /// A person.
    Person,
}

impl Giver {
    /// Who started this process: `archive-push` says so in its environment.
    pub(crate) fn of_this_process() -> Self {
        if std::env::var_os(PUSH_OUTCOME).is_some() { Self::Server } else { Self::Person }
    }
}

/// Refuses a file that may be another server's: `path` is absolute and need not exist.
pub(crate) async fn require_own(
    giver: Giver,
    selection: &Selection<StoreSettings>,
    pgdata: &Path,
    path: &Path,
) -> anyhow::Result<()> {
    let directory = path.parent().unwrap_or(path);
    let file = path.file_name().unwrap_or_default().to_string_lossy();
    let wal = pgdata.join("pg_wal");
    let unknown = |place: &Path| {
        format!("could not archive \"{file}\": whether it is this cluster's is unknown: {}", place.display())
    };
    let given = match identity(directory).await {
        // Nothing lies there that could be another's, and what reads the file says so.
        Err(error) if error.kind() == io::ErrorKind::NotFound && giver == Giver::Person => return Ok(()),
        given => given.with_context(|| unknown(directory))?,
    };
    let own = match identity(&wal).await {
        // A restored directory may have no pg_wal yet while a person archives what the lost one left.
        Err(error) if error.kind() == io::ErrorKind::NotFound && giver == Giver::Person => None,
        own => Some(own.with_context(|| unknown(&wal))?),
    };
    if own == Some(given) {
        return Ok(());
    }
    let configured = format!("The configuration gives [cluster.{}] pgdata = {pgdata:?}", selection.cluster);
    match giver {
        Giver::Server => Err(anyhow!(
            "could not archive \"{file}\": the file in {} is not the one that PostgreSQL archives, which is in {}\nDETAIL: \
             {configured}, which is not the data directory of this server.\nHINT: {HINT}",
            wal.display(),
            directory.display()
        )),
        Giver::Person => match running(given).await {
            None => Ok(()),
            Some((server, process)) => Err(anyhow!(
                "could not archive \"{file}\": {} is the pg_wal of a server that runs, and not of this cluster's\nDETAIL: It runs \
                 in {} (process {process}). {configured}.\nHINT: {HINT}",
                directory.display(),
                server.display()
            )),
        },
    }
}

/// What a directory is, wherever its name leads.
async fn identity(directory: &Path) -> io::Result<Identity> {
    let asked = directory.to_owned();
    let look = move || asked.metadata().map(|meta| (meta.dev(), meta.ino()));
    disk::look_within(LOOK, directory, look).await.map_err(io::Error::other)?
}

/// The data directory and the process of the server that runs with this `pg_wal`, as far as can be seen: each server works in its
/// data directory, which a `postmaster.pid` alone does not show, because a crash leaves one. A directory that does not answer in time
/// is left out, so that another cluster's keeps nobody from archiving.
async fn running(wal: Identity) -> Option<(PathBuf, u32)> {
    let list = || {
        let processes = std::fs::read_dir("/proc").ok().into_iter().flatten().flatten();
        let numbers = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        // Reading the link asks no filesystem but /proc.
        let works_in = |number: u32| Some((std::fs::read_link(format!("/proc/{number}/cwd")).ok()?, number));
        numbers.filter_map(works_in).collect::<Vec<_>>()
    };
    let processes = disk::look_within(LOOK, Path::new("/proc"), list).await.ok()?;
    let directories: BTreeSet<&PathBuf> = processes.iter().map(|(directory, _)| directory).collect();
    let look = async |directory: PathBuf| {
        let of: BTreeSet<u32> = processes.iter().filter(|(d, _)| *d == directory).map(|(_, n)| *n).collect();
        let look = move || of.into_iter().find(|process| is_server(*process, wal));
        let found = disk::look_within(LOOK, &directory, look).await.ok()??;
        Some((directory, found))
    };
    let mut looks: FuturesUnordered<_> = directories.into_iter().cloned().map(look).collect();
    while let Some(found) = looks.next().await {
        if found.is_some() {
            return found;
        }
    }
    None
}

/// Whether a process is the server that its working directory's `postmaster.pid` names, with this `pg_wal`. By the link and not by
/// its name, which says nothing of a directory in another mount namespace.
fn is_server(process: u32, wal: Identity) -> bool {
    let directory = PathBuf::from(format!("/proc/{process}/cwd"));
    let own = directory.join("pg_wal").metadata().is_ok_and(|meta| (meta.dev(), meta.ino()) == wal);
    own && std::fs::read_to_string(directory.join("postmaster.pid"))
        .ok()
        .and_then(|text| text.lines().next()?.trim().parse().ok())
        .is_some_and(|named| numbers(process).contains(&named))
}

/// The numbers of a process: the one here, and the ones in its own pid namespaces.
fn numbers(process: u32) -> Vec<u32> {
    let status = std::fs::read(format!("/proc/{process}/status")).unwrap_or_default();
    let status = String::from_utf8_lossy(&status);
    let line = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap_or_default();
    let inner = line.split_whitespace().filter_map(|number| number.parse().ok());
    std::iter::once(process).chain(inner).collect()
}

/// Whether a path names a directory at all, as against the bare name of a file that need not exist.
pub(crate) fn names_a_directory(path: &Path) -> bool {
    path.parent().is_some_and(|parent| parent.as_os_str() != OsStr::new(""))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::process::{Child, Command};

    use walpoint_base::durable;
    use walpoint_runtime::config::ClusterSettings;

    use super::*;

    const NAME: &str = "000000010000000000000001";

    struct Bed {
        dir: tempfile::TempDir,
    }

    impl Bed {
        /// A data directory `data` whose `pg_wal` lies elsewhere, a copy of it, and a file in each.
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            for server in ["data", "copy"] {
                let wal = dir.path().join(format!("wal-of-{server}"));
                fs::create_dir_all(dir.path().join(server)).unwrap();
                fs::create_dir(&wal).unwrap();
                durable::create(&wal.join(NAME), b"WAL").unwrap();
                symlink(&wal, dir.path().join(server).join("pg_wal")).unwrap();
            }
            Self { dir }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.dir.path().join(name)
        }

        async fn push(&self, giver: Giver, directory: &str) -> anyhow::Result<()> {
            let selection = Selection {
                cluster: "main".parse().unwrap(),
                settings: ClusterSettings::with_repositories(Vec::new()),
                repositories: Vec::new(),
                chosen: false,
                config: None,
            };
            require_own(giver, &selection, &self.path("data"), &self.path(directory).join(NAME)).await
        }

        /// A process that looks like the server of the copy.
        fn serve_the_copy(&self) -> Child {
            let server = Command::new("sleep").arg("60").current_dir(self.path("copy")).spawn().unwrap();
            let text = format!("{}\n", server.id());
            durable::replace(&self.path("copy/postmaster.pid"), text.as_bytes(), 0o600).unwrap();
            server
        }
    }

    #[tokio::test]
    async fn what_postgresql_hands_over_lies_in_the_configured_directory_however_it_is_spelled() {
        let bed = Bed::new();
        symlink(bed.path("data"), bed.path("link")).unwrap();
        for directory in ["data/pg_wal", "wal-of-data", "link/pg_wal", "copy/../data/pg_wal"] {
            bed.push(Giver::Server, directory).await.unwrap();
        }
        for directory in ["copy/pg_wal", "wal-of-copy"] {
            let refused = bed.push(Giver::Server, directory).await.unwrap_err().to_string();
            for says in
                ["is not the one that PostgreSQL archives", "DETAIL: The configuration", "--new-lineage"]
            {
                assert!(refused.contains(says), "{directory}: {refused}");
            }
        }
        assert!(
            bed.push(Giver::Server, "nowhere").await.is_err(),
            "what cannot be seen is not this server's"
        );
    }

    #[tokio::test]
    async fn a_person_archives_what_a_dead_server_left_and_nothing_of_one_that_runs() {
        let bed = Bed::new();
        durable::create(&bed.path("copy/postmaster.pid"), b"4194305\n").unwrap();
        for directory in ["copy/pg_wal", "wal-of-copy", "data/pg_wal", "nowhere"] {
            bed.push(Giver::Person, directory).await.unwrap();
        }
        let mut server = bed.serve_the_copy();
        let refused =
            [bed.push(Giver::Person, "copy/pg_wal").await, bed.push(Giver::Person, "wal-of-copy").await];
        let own = bed.push(Giver::Person, "data/pg_wal").await;
        server.kill().unwrap();
        server.wait().unwrap();
        for refused in refused {
            let refused = refused.unwrap_err().to_string();
            assert!(refused.contains("of a server that runs"), "{refused}");
        }
        own.unwrap();
        bed.push(Giver::Person, "copy/pg_wal").await.unwrap();
    }
}
