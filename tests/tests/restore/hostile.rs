//! R9: a repository that lies. Nothing is written outside the target, no memory is taken that a length asks for, and the
//! reason is told.

use std::cell::Cell;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use walpoint_base::BackupId;
use walpoint_repo::Repository;
use walpoint_repo::backup::{
    Attributes, BackupDescription, BackupTablespace, Backups, EntryContent, FileEntry, HexBytes, Intent,
    PackStream, Root, TablePath, WriteOptions, fixtures,
};
use walpoint_tests::archived::Archived;
use walpoint_tests::cluster::Cluster;
use walpoint_tests::process::{self, Output};
use walpoint_tests::store::Store;
use walpoint_tests::{faults, needs_root, user};

use crate::tree::snapshot;

/// An archive with an honest backup, and what must not be touched.
struct Scene {
    bed: Archived,
    honest: BackupId,
    control: Vec<u8>,
    outside: PathBuf,
    forged: Cell<u32>,
}

impl Scene {
    fn new() -> Scene {
        let bed = Archived::start(Cluster::builder().segment_size_mb(1), Store::local());
        bed.cluster.psql("checkpoint");
        let honest = bed.backup().parse().unwrap();
        bed.settle();
        let control = std::fs::read(bed.cluster.pgdata().join("global/pg_control")).unwrap();
        let outside = bed.cluster.dir().mkdir("outside");
        bed.cluster.dir().write("outside/victim", "untouched");
        bed.cluster.dir().mkdir("outside/empty");
        Scene { bed, honest, control, outside, forged: Cell::new(0) }
    }

    /// Publishes a backup that says of itself what the honest one does, with changes, and holds the least that a restore
    /// finishes with, and `fill`.
    #[track_caller]
    fn forge(
        &self,
        change: impl FnOnce(&mut BackupDescription),
        fill: impl FnOnce(&mut PackStream),
    ) -> String {
        self.forge_table(change, fill, |_| {})
    }

    /// The same, with another file table than the writer would make.
    #[track_caller]
    fn forge_table(
        &self,
        change: impl FnOnce(&mut BackupDescription),
        fill: impl FnOnce(&mut PackStream),
        edit: impl FnOnce(&mut Vec<FileEntry>),
    ) -> String {
        self.forged.set(self.forged.get() + 1);
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let id = runtime.block_on(async {
            let repository = Repository::open("test", &self.bed.store.settings()).await.unwrap();
            let backups = Backups::of(&repository, &"main".parse().unwrap());
            let mut facts = backups.open(self.honest).await.unwrap().manifest().summary.facts.clone();
            let size = facts.blocks().unwrap();
            let started = self.honest.started().unwrap();
            let id = BackupId::new(started, self.honest.timeline(), self.honest.start(), self.forged.get());
            let intent = Intent {
                id,
                lineage: facts.lineage,
                started,
                host: String::new(),
                agent: String::new(),
                label: String::new(),
                parents: vec![],
                resumed: vec![],
            };
            change(&mut facts);
            let writer = backups.begin(intent, size, &WriteOptions::default()).await.unwrap();
            let mut stream = writer.stream();
            tokio::task::block_in_place(|| {
                for path in ["", "global", "pg_wal", "pg_tblspc"] {
                    directory(&mut stream, Root::Data, path);
                }
                file(&mut stream, Root::Data, "global/pg_control", &self.control);
                file(&mut stream, Root::Data, "PG_VERSION", b"17\n");
                fill(&mut stream);
                stream.finish().unwrap();
            });
            let draft = writer.finish(facts).await.unwrap();
            fixtures::publish(&backups, &draft, edit, |bytes| bytes).await.unwrap();
            id.to_string()
        });
        user::give_tree(self.bed.store.root().unwrap());
        id
    }

    /// Restores it within 2 GB of address space; whatever comes of it, nothing outside the target has changed.
    #[track_caller]
    fn restore(&self, id: &str, arguments: &[&str], as_root: bool) -> Output {
        let pgdata = self.bed.place("target");
        let all = [&["restore", "--backup", id, "--pgdata", pgdata.to_str().unwrap()], arguments].concat();
        let inner = self.bed.agent.command("restore-agent", all);
        let mut command = faults::limit_memory(&inner, 2_000_000_000);
        if as_root {
            command.uid(0).gid(0);
        }
        let before = (snapshot(&self.outside), self.names());
        let output = process::run(&mut command, Duration::from_secs(60));
        assert!(!output.stderr.contains("panicked"), "{output:#?}");
        assert_eq!(
            (snapshot(&self.outside), self.names()),
            before,
            "something outside was touched: {output:#?}"
        );
        for place in ["target", "target.extra"] {
            drop(std::fs::remove_dir_all(self.bed.place(place)));
        }
        output
    }

    /// What lies beside the target.
    fn names(&self) -> Vec<std::ffi::OsString> {
        let entries = std::fs::read_dir(self.bed.cluster.dir().path()).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
        names.retain(|name| name != "target" && name != "target.extra");
        names.sort();
        names
    }
}

fn attributes(mode: u16) -> Attributes {
    Attributes { mode, uid: user::ids().uid, gid: user::ids().gid, mtime: 0 }
}

fn directory(stream: &mut PackStream, root: Root, path: &str) {
    stream.directory(TablePath::unchecked(root, path), attributes(0o700)).unwrap();
}

fn link(stream: &mut PackStream, path: &str, target: &Path) {
    let target = target.to_str().unwrap();
    stream.link(TablePath::unchecked(Root::Data, path), attributes(0o777), target.as_bytes()).unwrap();
}

fn file(stream: &mut PackStream, root: Root, path: &str, content: &[u8]) {
    let mut file = stream.file(TablePath::unchecked(root, path));
    file.write(content).unwrap();
    file.finish(attributes(0o600)).unwrap();
}

/// R9: the forgery itself is sound: without a lie it is restored.
#[test]
fn paths_that_lead_out_are_refused() {
    let scene = Scene::new();
    let honest = scene.forge(|_| {}, |stream| file(stream, Root::Data, "file", b"fine"));
    scene.restore(&honest, &[], false).expect_success();

    let outside = scene.outside.to_str().unwrap();
    let place = scene.bed.cluster.dir().path().to_str().unwrap();
    for path in [
        "../outside/evil",
        "../outside/victim",
        "../outside",
        "../evil",
        "..",
        ".",
        "x/../../outside/evil",
        "x/./evil",
        "./../outside/evil",
        "x//../../outside/evil",
        "x/\0/evil",
        "x/",
        &format!("{outside}/evil"),
        &format!("{outside}/victim"),
        &format!("/{outside}/evil"),
        &format!("{place}/evil"),
        &(format!("{}/", "x".repeat(250)).repeat(20) + "evil"),
        &"x".repeat(256),
    ] {
        for root in [Root::Data, Root::Extra(0)] {
            let id = scene.forge_table(
                |facts| facts.extra_paths = vec![HexBytes::from(Path::new("/etc"))],
                |stream| file(stream, Root::Data, "file", b"evil"),
                |entries| {
                    let evil = entries
                        .iter()
                        .find(|e| matches!(e.content, EntryContent::File(_)))
                        .unwrap()
                        .content
                        .clone();
                    let mut add = |path: &str, content: &EntryContent| {
                        let path = TablePath::unchecked(root, path);
                        entries.push(FileEntry {
                            path,
                            attributes: attributes(0o700),
                            content: content.clone(),
                        });
                    };
                    if root != Root::Data {
                        add("", &EntryContent::Directory);
                    }
                    for (at, _) in path.match_indices('/').filter(|(at, _)| *at > 0) {
                        add(&path[..at], &EntryContent::Directory);
                    }
                    add(path, &evil);
                    entries.sort_by(|a, b| a.path.cmp(&b.path));
                },
            );
            let output = scene.restore(&id, &[], false);
            assert_eq!(output.status, 1, "{path:?} in {root:?}: {output:#?}");
            assert!(output.stderr.contains("the path"), "{path:?} in {root:?}: {output:#?}");
        }
    }
    // An extra path that the backup does not list.
    let id = scene.forge_table(
        |_| {},
        |_| {},
        |entries| {
            let path = TablePath::unchecked(Root::Extra(7), "");
            entries.push(FileEntry { path, attributes: attributes(0o700), content: EntryContent::Directory });
        },
    );
    scene.restore(&id, &[], false).expect_status(1);
}

/// Links where a restore writes files of its own, or PostgreSQL's.
fn linked_places(scene: &Scene, as_root: bool) {
    let victim = scene.outside.join("victim");
    for name in [
        "postgresql.auto.conf",
        "backup_label",
        "tablespace_map",
        "recovery.signal",
        "standby.signal",
        "postmaster.pid",
        "walpoint-restore.json",
        "global/.walpoint-tmp-pg_control",
        "pg_wal/RECOVERYXLOG",
        "global/x",
    ] {
        let id = scene.forge(|_| {}, |stream| link(stream, name, &victim));
        scene.restore(&id, &[], as_root);
    }
    for name in ["pg_wal/walpoint-spool", "pg_wal/archive_status", "base"] {
        for target in [scene.outside.clone(), scene.outside.join("empty"), scene.outside.join("new")] {
            let id = scene.forge(|_| {}, |stream| link(stream, name, &target));
            scene.restore(&id, &[], as_root);
            // A linked directory may have content.
            let id = scene.forge(
                |_| {},
                |stream| {
                    let path = TablePath::unchecked(Root::Data, name);
                    stream
                        .linked_directory(path, attributes(0o777), target.to_str().unwrap().as_bytes())
                        .unwrap();
                    file(stream, Root::Data, &format!("{name}/evil"), b"evil");
                },
            );
            scene.restore(&id, &[], as_root);
        }
    }
    // A file where the restore wants a directory, and the reverse.
    for name in ["pg_wal/walpoint-spool", "walpoint-restore.json", "global/.walpoint-tmp-pg_control"] {
        let id = scene.forge(|_| {}, |stream| file(stream, Root::Data, name, b"evil"));
        scene.restore(&id, &[], as_root);
        let id = scene.forge(|_| {}, |stream| directory(stream, Root::Data, name));
        scene.restore(&id, &[], as_root);
    }
}

/// R9: nothing is written through a link that the backup brought.
#[test]
fn links_lead_nothing_out() {
    linked_places(&Scene::new(), false);
}

/// R9: nor does root give anything away that a link leads to.
#[test]
fn root_gives_nothing_away_through_links() {
    needs_root!();
    let scene = Scene::new();
    // Root's own: a changed owner would show.
    for name in ["", "victim", "empty"] {
        std::os::unix::fs::chown(scene.outside.join(name), Some(0), Some(0)).unwrap();
    }
    linked_places(&scene, true);
}

/// R9: tablespaces with locations that lead elsewhere.
#[test]
fn hostile_tablespaces_are_refused() {
    let scene = Scene::new();
    let pgdata = scene.bed.place("target");
    let outside = scene.outside.to_str().unwrap();
    for location in [
        outside.to_owned(),
        "../outside/empty".to_owned(),
        format!("{outside}/empty/../empty"),
        format!("{}/base", pgdata.display()),
        pgdata.parent().unwrap().to_str().unwrap().to_owned(),
        "/".to_owned(),
    ] {
        let id = scene.forge(
            |facts| {
                let path = HexBytes::from(Path::new(&location));
                facts.tablespaces = vec![BackupTablespace { oid: 16400, path }];
            },
            |stream| {
                let path = TablePath::unchecked(Root::Data, "pg_tblspc/16400");
                stream.linked_directory(path, attributes(0o777), location.as_bytes()).unwrap();
                file(stream, Root::Data, "pg_tblspc/16400/evil", b"evil");
            },
        );
        let output = scene.restore(&id, &[], false);
        assert_eq!(output.status, 1, "{location}: {output:#?}");
    }
    // A place that is free may be taken, but not by files that no tablespace holds.
    let free = scene.bed.place("target.extra");
    let path = HexBytes::from(free.as_path());
    let id = scene.forge(
        |facts| facts.tablespaces = vec![BackupTablespace { oid: 16400, path }],
        |stream| {
            directory(stream, Root::Data, "pg_tblspc/16400");
            file(stream, Root::Data, "pg_tblspc/16400/authorized_keys", b"evil");
        },
    );
    let output = scene.restore(&id, &[], false).expect_status(1);
    assert!(output.stderr.contains("nothing that lies in a tablespace"), "{output:#?}");
    // One that no list names becomes a directory in its place.
    for name in ["pg_tblspc/16400", "pg_tblspc/x", "pg_tblspc/99999999999999999999"] {
        let id = scene.forge(
            |_| {},
            |stream| {
                let path = TablePath::unchecked(Root::Data, name);
                let target = scene.outside.join("empty");
                stream
                    .linked_directory(path, attributes(0o777), target.to_str().unwrap().as_bytes())
                    .unwrap();
                file(stream, Root::Data, &format!("{name}/evil"), b"evil");
            },
        );
        scene.restore(&id, &[], false);
    }
}

/// R9: lengths and counts that no machine has room for.
#[test]
fn huge_lengths_take_no_memory() {
    let scene = Scene::new();
    for length in [1u64 << 40, (1 << 48) - 8192] {
        let id = scene.forge(
            |_| {},
            |stream| {
                let mut file = stream.file(TablePath::unchecked(Root::Data, "huge"));
                file.zeros(length).unwrap();
                file.finish(attributes(0o600)).unwrap();
            },
        );
        let output = scene.restore(&id, &[], false);
        assert!(output.took < Duration::from_secs(20), "{length}: {output:#?}");
    }
    for change in [
        |facts: &mut BackupDescription| facts.backup_label = HexBytes(vec![b'x'; 300_000]),
        |facts: &mut BackupDescription| facts.tablespace_map = HexBytes(vec![b'9'; 300_000]),
        |facts: &mut BackupDescription| facts.extra_paths = vec![HexBytes::from(Path::new("/..")); 2000],
        |facts: &mut BackupDescription| facts.label = "x".repeat(500_000),
        |facts: &mut BackupDescription| facts.pgdata = HexBytes(vec![0; 4000]),
    ] {
        let id = scene.forge(change, |_| {});
        let output = scene.restore(&id, &[], false);
        assert!(output.took < Duration::from_secs(20), "{output:#?}");
    }
}
