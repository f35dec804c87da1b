//! An archive filled with the library, past the programs: what a test of fetching finds there is exactly what it put.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use walpoint_base::{SegmentName, WalFileName};
use walpoint_pg::control::{CONTROL_FILE, ControlFile};
use walpoint_repo::lineage::AckMember;
use walpoint_repo::repository::{NewLineage, Repository};
use walpoint_repo::wal::{WalArchive, WalFlags};
use walpoint_tests::store::Store;
use walpoint_tests::user;

/// The same archive in one or more stores, all of which acknowledge.
pub(crate) struct Archive<'a> {
    runtime: tokio::runtime::Runtime,
    copies: Vec<(&'a Store, WalArchive)>,
}

impl<'a> Archive<'a> {
    /// Makes repositories and registers the cluster of a data directory in them as `main`.
    pub(crate) fn create(pgdata: &Path, stores: &[(&str, &'a Store)]) -> Archive<'a> {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let control = std::fs::read(pgdata.join(CONTROL_FILE)).unwrap();
        let control = ControlFile::parse(&control).unwrap();
        let copies = runtime.block_on(async {
            let mut repositories = Vec::new();
            for (name, store) in stores {
                let made = Repository::init(name, &store.settings(), None).await.unwrap();
                repositories.push((*store, made.repository));
            }
            let ack: Vec<AckMember> = repositories
                .iter()
                .map(|(_, r)| AckMember { name: r.name().to_owned(), repository: r.id() })
                .collect();
            let mut copies = Vec::new();
            for (store, repository) in repositories {
                let lineage = NewLineage {
                    system_id: control.system_id,
                    major: control.major,
                    segment_size: control.wal_segment_size,
                    wal_block_size: control.wal_block_size,
                    block_size: control.block_size,
                    relation_segment_blocks: control.relation_segment_blocks,
                    ack: ack.clone(),
                };
                let lineage = repository.create_lineage(&"main".parse().unwrap(), lineage).await.unwrap();
                copies.push((store, repository.wal(&lineage)));
            }
            copies
        });
        let archive = Archive { runtime, copies };
        archive.give();
        archive
    }

    /// Stores every file of WAL in a directory, or those that `wanted` takes.
    pub(crate) fn put_all(&self, directory: &Path, wanted: impl Fn(&str) -> bool) {
        for at in 0..self.copies.len() {
            self.put_into(at, directory, &wanted);
        }
    }

    /// The same in one of the stores.
    pub(crate) fn put_into(&self, at: usize, directory: &Path, wanted: impl Fn(&str) -> bool) {
        let mut paths: Vec<PathBuf> =
            std::fs::read_dir(directory).unwrap().map(|e| e.unwrap().path()).collect();
        paths.sort();
        for path in paths {
            let name = path.file_name().unwrap().to_str().unwrap();
            if let Ok(name) = name.parse::<WalFileName>()
                && wanted(&name.to_string())
            {
                self.put_file(at, &path, name);
            }
        }
        self.give();
    }

    /// Stores a segment in one of the stores as `push --accept-damaged` does: with this content instead of the file's.
    pub(crate) fn put_flagged(&self, at: usize, path: &Path, content: Vec<u8>) {
        let name: SegmentName = path.file_name().unwrap().to_str().unwrap().parse().unwrap();
        let facts = walpoint_pg::wal::inspect(name, &std::fs::read(path).unwrap()).unwrap();
        let flags = WalFlags { damaged: true, ..WalFlags::default() };
        let (_, wal) = &self.copies[at];
        self.runtime.block_on(wal.put_segment(&facts, Bytes::from(content), flags)).unwrap();
        self.give();
    }

    fn put_file(&self, at: usize, path: &Path, name: WalFileName) {
        let content = Bytes::from(std::fs::read(path).unwrap());
        let (_, wal) = &self.copies[at];
        let stored = self.runtime.block_on(async {
            match name {
                WalFileName::Segment(segment) => {
                    let facts = walpoint_pg::wal::inspect(segment, &content).unwrap();
                    wal.put_segment(&facts, content.clone(), WalFlags::default()).await
                }
                _ => wal.put_file(name, content.clone()).await,
            }
        });
        stored.unwrap_or_else(|error| panic!("{name}: {error}"));
    }

    /// The key of a file's object.
    pub(crate) fn key(&self, name: &str) -> String {
        let (_, wal) = &self.copies[0];
        wal.paths().file(name.parse().unwrap()).to_string()
    }

    /// What root stored in a local directory is the servers' user's.
    fn give(&self) {
        for (store, _) in &self.copies {
            if let Some(root) = store.root() {
                user::give_tree(root);
            }
        }
    }
}
