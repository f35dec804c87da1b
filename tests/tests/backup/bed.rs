//! What the tests of backups share: a cluster that archives, its backups, and a way back that is not the restore under test.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;
use walpoint_base::BackupId;
use walpoint_repo::Repository;
use walpoint_repo::backup::{
    BackupReader, Backups, EntryContent, FileEntry, ListedBackup, ListedState, Root, WindowLimits,
};
use walpoint_storage::RepoError;
use walpoint_storage::store::Store as Opened;
use walpoint_tests::agent::{Agent, Daemon};
use walpoint_tests::builder::ClusterBuilder;
use walpoint_tests::cluster::Cluster;
use walpoint_tests::process::{Background, Output};
use walpoint_tests::store::Store;
use walpoint_tests::user;

/// A running cluster that archives into a repository by a daemon.
pub(crate) struct Bed {
    pub(crate) cluster: Cluster,
    pub(crate) agent: Agent,
    pub(crate) store: Store,
    pub(crate) daemon: Daemon,
}

impl Bed {
    pub(crate) fn local(builder: ClusterBuilder) -> Bed {
        Bed::new(builder, Store::local(), |agent| agent)
    }

    /// `change` adds to the configuration.
    pub(crate) fn new(builder: ClusterBuilder, store: Store, change: impl FnOnce(Agent) -> Agent) -> Bed {
        let mut cluster = builder.init();
        let agent = change(Agent::with(&cluster, &store));
        agent.archive_from(&cluster);
        agent.init(&[]).expect_success();
        let daemon = agent.daemon();
        cluster.start();
        Bed { cluster, agent, store, daemon }
    }

    /// Makes a backup; what it prints as JSON.
    #[track_caller]
    pub(crate) fn backup(&self, arguments: &[&str]) -> Value {
        let mut all = vec!["backup", "--json"];
        all.extend(arguments);
        report(&self.agent.run(&all).expect_success())
    }

    /// The repository seen from outside.
    pub(crate) fn repository(&self) -> Backed {
        Backed::in_store(&self.store)
    }

    /// Recovers a backup to the end of the archive and waits until it takes writes.
    pub(crate) fn recover(&self, id: &str) -> Cluster {
        let target = self.repository().unpack(id, &self.cluster);
        let conf = format!(
            "archive_mode = off\nrestore_command = '{}'\nrecovery_target_timeline = 'latest'\n",
            self.restored_agent(&target).restore_command().replace('\'', "''")
        );
        append(&target.join("postgresql.auto.conf"), &conf);
        // A standby's own signal would make the copy follow the primary.
        drop(fs::remove_file(target.join("standby.signal")));
        append(&target.join("recovery.signal"), "");
        user::give_tree(&target);
        let restored = Cluster::start_restored(self.cluster.dir(), self.cluster.major(), target);
        restored.wait_for("select pg_is_in_recovery()", "f");
        restored
    }

    /// The same by `restore-agent restore`.
    pub(crate) fn restore(&self, id: &str) -> Cluster {
        let dir = self.cluster.dir();
        let (target, spaces) = (dir.join(format!("restored-{id}")), dir.join(format!("spaces-{id}")));
        dir.mkdir(&spaces);
        let (place, spaces) = (target.display().to_string(), spaces.display().to_string());
        let arguments = ["restore", "--backup", id, "--pgdata", &place, "--tablespace-dir", &spaces];
        self.agent.restore(&arguments).expect_success();
        let restored = Cluster::start_restored(dir, self.cluster.major(), target);
        restored.wait_for("select pg_is_in_recovery()", "f");
        restored
    }

    /// Waits for a standby's backup to succeed: nobody switches a segment for it, so the primary goes on writing.
    #[track_caller]
    pub(crate) fn let_standby_end(&self, backup: &mut Background) {
        let began = Instant::now();
        let status = loop {
            if backup.try_status().is_some() {
                break backup.wait(Duration::ZERO);
            }
            self.cluster.psql("insert into t values (7)");
            self.cluster.switch_wal();
            assert!(began.elapsed() < Duration::from_secs(120), "{}", backup.log());
            std::thread::sleep(Duration::from_millis(300));
        };
        assert_eq!(status, 0, "{}", backup.log());
    }

    fn restored_agent(&self, target: &Path) -> Agent {
        let agent = Agent::at(self.cluster.dir(), target, "host=/nowhere").repository("main", &self.store);
        agent.write();
        agent
    }
}

fn append(path: &Path, text: &str) {
    use std::io::Write;
    let mut file = fs::OpenOptions::new().create(true).append(true).open(path).unwrap();
    file.write_all(text.as_bytes()).unwrap();
}

/// Makes a file of bytes that do not compress.
pub(crate) fn noise(path: &Path, mib: usize) {
    use std::io::Write;
    let mut file = File::create(path).unwrap();
    let (mut seed, mut noise) = (1u64, vec![0u8; 1 << 20]);
    for _ in 0..mib {
        for word in noise.chunks_exact_mut(8) {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            word.copy_from_slice(&seed.to_le_bytes());
        }
        file.write_all(&noise).unwrap();
    }
    user::give(path);
}

/// The JSON that a command printed.
#[track_caller]
pub(crate) fn report(output: &Output) -> Value {
    serde_json::from_str(&output.stdout)
        .unwrap_or_else(|e| panic!("{e}: {} {}", output.stdout, output.stderr))
}

/// The backups in a store, read with the library and past the programs.
pub(crate) struct Backed {
    runtime: tokio::runtime::Runtime,
    backups: Backups,
}

impl Backed {
    pub(crate) fn in_store(store: &Store) -> Backed {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let backups = runtime.block_on(async {
            let opened = Opened::open(&store.settings()).await.unwrap();
            let repository = Repository::over("test", opened, None).await.unwrap();
            Backups::of(&repository, &"main".parse().unwrap())
        });
        Backed { runtime, backups }
    }

    pub(crate) fn list(&self) -> Vec<ListedBackup> {
        self.runtime.block_on(self.backups.list()).unwrap()
    }

    /// The backups that count as such.
    pub(crate) fn finished(&self) -> Vec<BackupId> {
        let finished = |listed: &ListedBackup| matches!(listed.state, ListedState::Finished(_));
        self.list().iter().filter(|listed| finished(listed)).map(|listed| listed.id).collect()
    }

    pub(crate) fn open(&self, id: &str) -> BackupReader {
        self.runtime.block_on(self.backups.open(id.parse().unwrap())).unwrap()
    }

    /// Every entry of a backup by its path.
    pub(crate) fn entries(&self, id: &str) -> BTreeMap<String, FileEntry> {
        let reader = self.open(id);
        self.runtime.block_on(async {
            let (mut entries, mut all) = (reader.entries(), BTreeMap::new());
            while let Some(entry) = entries.next().await.unwrap() {
                assert!(all.insert(entry.path.to_string(), entry).is_none());
            }
            all
        })
    }

    /// Writes a backup into a new directory beside the cluster's, tablespaces beside it; label and map included.
    pub(crate) fn unpack(&self, id: &str, cluster: &Cluster) -> PathBuf {
        let target =
            (0..).map(|n| cluster.dir().join(format!("unpacked{n}"))).find(|path| !path.exists()).unwrap();
        let reader = self.open(id);
        self.runtime.block_on(async {
            let mut windows = reader.windows(WindowLimits::default());
            while let Some(window) = windows.next().await.unwrap() {
                let mut files: Vec<Option<File>> = Vec::new();
                for part in window.parts() {
                    let (path, file) = place(&target, &part.entry, part.begins);
                    user::give(&path);
                    files.push(file);
                }
                for unit in window.units() {
                    let fetched = reader.fetch(&unit).await.unwrap();
                    reader
                        .scatter(&unit, &fetched, |piece| {
                            files[piece.part]
                                .as_ref()
                                .unwrap()
                                .write_all_at(piece.bytes, piece.offset)
                                .unwrap();
                            Ok::<_, RepoError>(())
                        })
                        .unwrap();
                }
            }
        });
        let facts = &reader.manifest().summary.facts;
        fs::write(target.join("backup_label"), &facts.backup_label.0).unwrap();
        let mut map = String::new();
        for space in &facts.tablespaces {
            map +=
                &format!("{} {}\n", space.oid, target.with_extension(format!("ts{}", space.oid)).display());
        }
        if !map.is_empty() {
            fs::write(target.join("tablespace_map"), map).unwrap();
        }
        target
    }
}

/// Makes what an entry says, a tablespace outside; an open file of the right length if it is one.
fn place(target: &Path, entry: &FileEntry, begins: bool) -> (PathBuf, Option<File>) {
    let root = match entry.path.root {
        Root::Data => target.to_owned(),
        Root::Extra(n) => target.with_extension(format!("extra{n}")),
    };
    let path = if entry.path.path.is_root() { root } else { root.join(entry.path.path.as_path()) };
    let mode = fs::Permissions::from_mode(entry.attributes.mode.into());
    let file = match &entry.content {
        EntryContent::File(file) => {
            let open = fs::OpenOptions::new().create(true).truncate(begins).write(true).open(&path).unwrap();
            open.set_len(file.length).unwrap();
            open.set_permissions(mode).unwrap();
            Some(open)
        }
        EntryContent::Directory => {
            fs::create_dir(&path).unwrap();
            fs::set_permissions(&path, mode).unwrap();
            None
        }
        EntryContent::LinkedDirectory { .. } => {
            let name = entry.path.path.as_path().file_name().unwrap().to_string_lossy();
            let outside = target.with_extension(format!("ts{name}"));
            fs::create_dir(&outside).unwrap();
            fs::set_permissions(&outside, mode).unwrap();
            user::give(&outside);
            std::os::unix::fs::symlink(&outside, &path).unwrap();
            None
        }
        EntryContent::Link { target } => {
            std::os::unix::fs::symlink(std::ffi::OsStr::from_bytes(target), &path).unwrap();
            None
        }
    };
    (path, file)
}
