//! What the tests of archiving share: a cluster that archives into a repository which knows it, and the way back.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use walpoint_base::{SegmentNo, TimelineId};
use walpoint_pg::control::{CONTROL_FILE, ControlFile};
use walpoint_repo::index::{SegmentEntry, TimelineIndex, gather};
use walpoint_repo::lineage::AckMember;
use walpoint_repo::repository::{NewLineage, Repository};
use walpoint_repo::wal::WalArchive;
use walpoint_tests::agent::Agent;
use walpoint_tests::builder::ClusterBuilder;
use walpoint_tests::cluster::{Cluster, Shutdown};
use walpoint_tests::store::Store;
use walpoint_tests::{user, wait};

/// A cluster with `archive_command` set, a repository that it is registered in, and the programs' configuration. Neither the
/// cluster nor a daemon runs yet.
pub(crate) struct Bed {
    pub(crate) agent: Agent,
    pub(crate) cluster: Cluster,
    pub(crate) store: Store,
}

impl Bed {
    /// In a local directory.
    pub(crate) fn local(builder: ClusterBuilder) -> Bed {
        Bed::new(builder, Store::local())
    }

    pub(crate) fn new(builder: ClusterBuilder, store: Store) -> Bed {
        let cluster = builder.init();
        register(&store, cluster.pgdata(), cluster.major());
        let agent = Agent::with(&cluster, &store);
        agent.archive_from(&cluster);
        Bed { agent, cluster, store }
    }

    /// `archive-agent push`: without a daemon, from any directory.
    #[track_caller]
    pub(crate) fn direct(&self, path: &Path) -> walpoint_tests::process::Output {
        self.agent.run(&["push", path.to_str().unwrap()])
    }

    /// Pushes one file of every kind but a whole segment, and gives their names.
    pub(crate) fn push_other_files(&self, agent: &Agent, segment: &str) -> Vec<String> {
        self.cluster.base_backup(&["-X", "fetch"]);
        let others = std::fs::read_dir(self.cluster.wal_dir()).unwrap().flatten();
        let others = others.filter_map(|entry| entry.file_name().into_string().ok());
        let mut others: Vec<String> = others.filter(|name| name.ends_with(".backup")).collect();
        assert_eq!(others.len(), 1);
        others.extend(["00000002.history".to_owned(), format!("{segment}.partial")]);
        let wal_dir = self.cluster.wal_dir();
        std::fs::write(wal_dir.join(&others[1]), "1\t0/3000000\tno recovery target specified\n").unwrap();
        std::fs::copy(wal_dir.join(segment), wal_dir.join(&others[2])).unwrap();
        for other in &others {
            user::give(&wal_dir.join(other));
            agent.push(format!("pg_wal/{other}")).expect_success();
        }
        others
    }

    /// The repository seen from outside.
    pub(crate) fn archive(&self) -> Archive {
        Archive::of(&self.store, self.cluster.pgdata())
    }

    /// A copy of a file of `pg_wal` in a directory of its own, under the same name.
    pub(crate) fn copy(&self, name: &str, to: &str) -> PathBuf {
        let target = self.cluster.dir().mkdir(to).join(name);
        std::fs::copy(self.cluster.wal_dir().join(name), &target).unwrap();
        user::give(&target);
        target
    }

    /// Segments that `archive_status` marks as finished and not archived.
    pub(crate) fn ready(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.cluster.wal_dir().join("archive_status")).unwrap().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        let mut ready: Vec<String> =
            names.filter_map(|name| name.strip_suffix(".ready").map(str::to_owned)).collect();
        ready.sort();
        ready
    }
}

/// PostgreSQL tries again a minute after it failed.
pub(crate) const SOON: Duration = Duration::from_secs(150);

/// Longer than the look-ahead needs to find what is ready without a hint.
pub(crate) const SCANNED: Duration = Duration::from_secs(12);

/// Writes `rows` rows and switches, so many times; the segments. Loads of another length end elsewhere in their segments.
pub(crate) fn segments(cluster: &Cluster, count: usize, rows: usize) -> Vec<String> {
    cluster.psql("create table if not exists t (n int, at timestamptz)");
    let one = |_| {
        cluster.psql(&format!("insert into t select n, clock_timestamp() from generate_series(1, {rows}) n"));
        cluster.switch_wal()
    };
    (0..count).map(one).collect()
}

/// Waits until PostgreSQL archived all of these, or removed what it had archived.
#[track_caller]
pub(crate) fn all_done(cluster: &Cluster, names: &[String]) {
    let status = cluster.wal_dir().join("archive_status");
    wait::until_true(SOON, &format!("{names:?} are archived\n{}", cluster.log()), || {
        let done = |name: &String| status.join(format!("{name}.done")).exists();
        names.iter().all(|name| done(name) || !cluster.wal_dir().join(name).exists())
    });
}

/// A running copy of a server on the same timeline, which does not archive, and its own configuration for the archive.
pub(crate) fn clone(bed: &Bed) -> (Cluster, Agent) {
    let place = bed.cluster.base_backup(&["-X", "stream"]);
    let mut copy = Cluster::adopt(Arc::clone(bed.cluster.dir()), bed.cluster.major(), place, None);
    let agent = Agent::with(&copy, &bed.store);
    agent.archive_from(&copy);
    copy.set("archive_mode", "off");
    copy.start();
    (copy, agent)
}

/// A copy of all files of a stopped server's data directory, `pg_wal` included.
pub(crate) fn snapshot(bed: &Bed, name: &str) -> Cluster {
    let place = bed.cluster.dir().join(name);
    let copied = std::process::Command::new("cp").arg("-a").arg(bed.cluster.pgdata()).arg(&place).status();
    assert!(copied.unwrap().success());
    Cluster::adopt(Arc::clone(bed.cluster.dir()), bed.cluster.major(), place, None)
}

/// Starts a server anew, with archiving.
pub(crate) fn archive_again(cluster: &mut Cluster) {
    cluster.set("archive_mode", "on");
    cluster.stop(Shutdown::Fast);
    cluster.start();
}

/// Restarts a server that ran by itself as a standby that archives, and promotes it.
pub(crate) fn promote_from_standby(copy: &mut Cluster) {
    copy.stop(Shutdown::Fast);
    copy.set("archive_mode", "on");
    let signal = copy.pgdata().join("standby.signal");
    std::fs::write(&signal, "").unwrap();
    user::give(&signal);
    copy.start();
    copy.promote();
}

/// Waits until a server hears of another one, and longer than anything of it would be stored ahead.
#[track_caller]
pub(crate) fn refused(cluster: &Cluster) {
    wait::until_true(SOON, &format!("it hears of it\n{}", cluster.log()), || {
        cluster.log().contains("split brain")
    });
    std::thread::sleep(SCANNED);
}

/// Waits until finished segments are no longer in `pg_wal`, under no name, as in every server in time.
pub(crate) fn forget(cluster: &Cluster, name: &str) {
    let start = std::fs::read(cluster.wal_dir().join(name)).map(|content| content[..16].to_vec());
    wait::until_true(SOON, &format!("{name} is recycled"), || {
        cluster.psql("checkpoint");
        !cluster.wal_dir().join(name).exists()
    });
    for file in std::fs::read_dir(cluster.wal_dir()).unwrap().flatten() {
        let content = std::fs::read(file.path()).unwrap_or_default();
        if start.as_ref().is_ok_and(|start| content.starts_with(start)) {
            let recycled = std::fs::OpenOptions::new().write(true).open(file.path());
            recycled.unwrap().write_all_at(&[0; 16], 0).unwrap();
        }
    }
}

/// The repository of a cluster, read with the library and past the programs.
pub(crate) struct Archive {
    runtime: tokio::runtime::Runtime,
    archive: WalArchive,
}

impl Archive {
    pub(crate) fn of(store: &Store, pgdata: &Path) -> Archive {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let archive = runtime.block_on(async {
            let repository = Repository::open("test", &store.settings()).await.unwrap();
            let lineage = repository.lineage_for(&name(), control(pgdata).system_id).await.unwrap().unwrap();
            repository.wal(&lineage)
        });
        Archive { runtime, archive }
    }

    /// The content of a file, verified; `None` if it is not there.
    pub(crate) fn get(&self, file: &str) -> Option<Vec<u8>> {
        let found = self.runtime.block_on(self.archive.get(file.parse().unwrap()));
        found.unwrap_or_else(|error| panic!("{file}: {error}")).map(|file| file.content)
    }

    /// Stores a history whatever it says, as other versions did.
    pub(crate) fn put_history(&self, timeline: u32, content: Vec<u8>) {
        let name = walpoint_base::WalFileName::History(TimelineId::new(timeline).unwrap());
        self.runtime.block_on(self.archive.put_file(name, content)).unwrap();
    }

    /// The timelines that have a history, and those that were refused with their content.
    pub(crate) fn histories(&self) -> (Vec<TimelineId>, Vec<(TimelineId, Vec<u8>)>) {
        self.runtime.block_on(async {
            let listed = self.archive.all_histories().await.unwrap();
            let mut refused = Vec::new();
            for (timeline, hash) in listed.refused {
                let content = self.archive.refused_history(timeline, hash).await.unwrap().unwrap();
                refused.push((timeline, content));
            }
            (listed.stored, refused)
        })
    }

    /// What the index says of each segment of the first timeline that it knows, and what the segment's own header says.
    pub(crate) fn indexed(&self) -> Vec<(SegmentEntry, Option<SegmentEntry>)> {
        let (archive, timeline) = (&self.archive, TimelineId::FIRST);
        self.runtime.block_on(async {
            let index = TimelineIndex::load(archive, timeline).await.unwrap();
            assert_eq!(index.sealed_through(), None, "only open groups are looked at here");
            let all = gather::list(archive, timeline, SegmentNo(0), SegmentNo(u64::MAX), usize::MAX);
            let own = gather::entries(archive, timeline, all.await.unwrap().0).await.unwrap();
            let known = index.open_groups().flat_map(|group| group.iter());
            known.map(|(number, entry)| (*entry, own.get(&number).copied())).collect()
        })
    }
}

/// Makes a repository in the store if there is none, and registers the cluster of a data directory in it as `main`.
pub(crate) fn register(store: &Store, pgdata: &Path, major: u32) {
    register_as("main", store, pgdata, major);
}

/// [`register`] under another name.
pub(crate) fn register_as(name: &str, store: &Store, pgdata: &Path, major: u32) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        let repository = Repository::init("main", &store.settings(), None).await.unwrap().repository;
        let control = control(pgdata);
        assert_eq!(u32::from(control.major.get()), major);
        let lineage = NewLineage {
            system_id: control.system_id,
            major: control.major,
            segment_size: control.wal_segment_size,
            wal_block_size: control.wal_block_size,
            block_size: control.block_size,
            relation_segment_blocks: control.relation_segment_blocks,
            ack: vec![AckMember { name: "main".to_owned(), repository: repository.id() }],
        };
        repository.create_lineage(&name.parse().unwrap(), lineage).await.unwrap();
    });
    if let Some(root) = store.root() {
        user::give_tree(root);
    }
}

fn name() -> walpoint_base::ClusterName {
    "main".parse().unwrap()
}

fn control(pgdata: &Path) -> ControlFile {
    ControlFile::parse(&std::fs::read(pgdata.join(CONTROL_FILE)).unwrap()).unwrap()
}

/// Turns over one bit in the middle of a file.
pub(crate) fn damage(path: &Path) {
    let mut bytes = std::fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(path, bytes).unwrap();
}
