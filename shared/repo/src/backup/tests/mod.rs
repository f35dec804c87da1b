//! Whole backups, written through streams and read back through windows, in a store in memory.

use std::collections::BTreeMap;
use std::sync::Arc;

use object_store::memory::InMemory;
use walpoint_base::{BackupId, Lsn};

mod announcements;
mod incremental;
mod lies;
mod lifecycle;
mod round_trip;
mod summaries;

use walpoint_storage::error::{Remedy, RepoError};
use walpoint_storage::object::Sealer;
use walpoint_storage::object::testing::sealers;
use walpoint_storage::store::Store;

use super::blocks::tests::id;
pub(crate) use super::facts::tests::facts;
use super::*;

/// What a file is to hold: pieces of content and of holes.
#[derive(Clone, Debug)]
enum Piece {
    /// That many bytes that do not compress, made from a seed.
    Noise(u32, usize),
    /// That many bytes of the same value.
    Same(u8, usize),
    /// A hole.
    Hole(u64),
}

impl Piece {
    fn bytes(&self) -> Vec<u8> {
        match *self {
            Self::Noise(seed, len) => {
                let mut bytes = vec![0; len];
                blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
                bytes
            }
            Self::Same(value, len) => vec![value; len],
            Self::Hole(len) => vec![0; usize::try_from(len).unwrap()],
        }
    }
}

/// A cluster in miniature: paths and what is there.
#[derive(Clone, Default, Debug)]
struct Tree {
    directories: Vec<Vec<u8>>,
    links: Vec<(Vec<u8>, Vec<u8>)>,
    files: BTreeMap<Vec<u8>, Vec<Piece>>,
}

impl Tree {
    /// With every directory that the files need.
    fn new(files: impl IntoIterator<Item = (Vec<u8>, Vec<Piece>)>) -> Self {
        let files: BTreeMap<_, _> = files.into_iter().collect();
        let mut directories = std::collections::BTreeSet::from([Vec::new()]);
        for path in files.keys() {
            for (at, _) in path.iter().enumerate().filter(|(_, b)| **b == b'/') {
                directories.insert(path[..at].to_vec());
            }
        }
        Self { directories: directories.into_iter().collect(), links: Vec::new(), files }
    }
}

struct Scene {
    backups: Backups,
    store: Store,
    memory: Arc<InMemory>,
}

fn scene(sealer: &Sealer) -> Scene {
    let memory = Arc::new(InMemory::new());
    let store = Store::over("memory", memory.clone());
    Scene { backups: Backups::new(&store, sealer, &"main".parse().unwrap()), store, memory }
}

fn intent(id: BackupId) -> Intent {
    Intent {
        id,
        lineage: "7400000000000000001-1".parse().unwrap(),
        started: "2026-11-21T10:15:00Z".parse().unwrap(),
        host: "db1".to_owned(),
        agent: "0.1.0".to_owned(),
        label: String::new(),
        parents: vec![],
        resumed: vec![],
    }
}

pub(crate) fn attributes(path: &[u8]) -> Attributes {
    Attributes { mode: 0o600, uid: 26, gid: 27, mtime: i64::try_from(path.len()).unwrap() }
}

fn small_packs() -> WriteOptions {
    WriteOptions { packs: PackLimits { pack: 300_000, in_flight: 700_000 }, ..WriteOptions::default() }
}

fn write_file(stream: &mut PackStream, path: &[u8], pieces: &[Piece], step: usize) -> FileSummary {
    let mut file = stream.file(TablePath::data(path).unwrap());
    for piece in pieces {
        match piece {
            Piece::Hole(len) => file.zeros(*len).unwrap(),
            piece => piece.bytes().chunks(step).for_each(|bytes| file.write(bytes).unwrap()),
        }
    }
    file.finish(attributes(path)).unwrap()
}

async fn write(scene: &Scene, id: BackupId, tree: &Tree, block_size: u32, step: usize) -> Draft {
    let size = BlockSize::new(block_size).unwrap();
    let writer = scene.backups.begin(intent(id), size, &small_packs()).await.unwrap();
    fill(&writer, tree, step).await;
    writer.finish(facts(block_size)).await.unwrap()
}

/// Writes a whole tree.
async fn fill(writer: &BackupWriter, tree: &Tree, step: usize) {
    // Two streams at once, and in no order, as the threads of a real backup.
    let (mut one, mut two) = (writer.stream(), writer.stream());
    for (path, target) in &tree.links {
        one.link(TablePath::data(path.clone()).unwrap(), attributes(path), target).unwrap();
    }
    let (files, others) = (tree.clone(), tree.clone());
    let first = tokio::task::spawn_blocking(move || {
        for (path, pieces) in files.files.iter().rev().step_by(2) {
            write_file(&mut one, path, pieces, step);
        }
        one.finish()
    });
    let second = tokio::task::spawn_blocking(move || {
        for (path, pieces) in others.files.iter().rev().skip(1).step_by(2) {
            write_file(&mut two, path, pieces, step);
        }
        for path in &others.directories {
            two.directory(TablePath::data(path.clone()).unwrap(), attributes(path)).unwrap();
        }
        two.finish()
    });
    first.await.unwrap().unwrap();
    second.await.unwrap().unwrap();
}

fn wal(draft: &Draft) -> WalStored {
    let (first, last) = draft.needs_wal().unwrap();
    WalStored { first, last }
}

/// Restores into memory: path to content, links to their targets.
pub(crate) async fn restore(
    reader: &BackupReader,
    limits: WindowLimits,
) -> walpoint_storage::Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let mut restored: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
    let mut windows = reader.windows(limits);
    let mut delivered = 0u64;
    while let Some(window) = windows.next().await? {
        for part in window.parts() {
            let path = part.entry.path.path.as_bytes().to_vec();
            let content = match &part.entry.content {
                EntryContent::File(file) => vec![0; usize::try_from(file.length).unwrap()],
                EntryContent::Link { target } | EntryContent::LinkedDirectory { target } => target.clone(),
                EntryContent::Directory => continue,
            };
            assert_eq!(part.begins, !restored.contains_key(&path), "{part:?}");
            restored.entry(path).or_insert(content);
        }
        for unit in window.units() {
            let fetched = reader.fetch(&unit).await?;
            reader.scatter::<RepoError>(&unit, &fetched, |piece| {
                let path = window.parts()[piece.part].entry.path.path.as_bytes();
                let file = restored.get_mut(path).unwrap();
                let offset = usize::try_from(piece.offset).unwrap();
                file[offset..offset + piece.bytes.len()].copy_from_slice(piece.bytes);
                delivered += u64::try_from(piece.bytes.len()).unwrap();
                Ok(())
            })?;
        }
        for ZeroRun { part, offset, length: len } in window.zero_runs() {
            let file = &restored[window.parts()[part].entry.path.path.as_bytes()];
            let range = usize::try_from(offset).unwrap()..usize::try_from(offset + len).unwrap();
            assert!(len > 0 && file[range].iter().all(|b| *b == 0));
        }
        for part in window.parts().iter().filter(|part| part.ends) {
            if let EntryContent::File(file) = &part.entry.content {
                let mut hasher = reader.content_hasher();
                hasher.update(&restored[part.entry.path.path.as_bytes()]);
                if hasher.finish() != (file.length, file.hash) {
                    return Err(RepoError::Internal(format!("{} has another hash", part.entry.path)));
                }
            }
        }
    }
    Ok(restored)
}

async fn round_trip(sealer: &Sealer, tree: &Tree, block_size: u32, step: usize, limits: WindowLimits) {
    let scene = scene(sealer);
    let draft = write(&scene, id(1), tree, block_size, step).await;
    let wal = wal(&draft);
    let summary = draft.publish(wal).await.unwrap();
    assert_eq!(summary.totals.files, u64::try_from(tree.files.len()).unwrap());
    let reader = scene.backups.open(id(1)).await.unwrap();
    equals(&reader, tree, limits).await;
    check_live_counts(&reader).await;
    let all_live = reader.manifest().packs.packs().iter().all(|pack| pack.live == pack.units);
    assert!(all_live, "a backup of its own has nothing dead: {:?}", reader.manifest().packs);
}

/// Restores a backup and compares it.
async fn equals(reader: &BackupReader, tree: &Tree, limits: WindowLimits) {
    let restored = restore(reader, limits).await.unwrap();
    for (path, pieces) in &tree.files {
        let content: Vec<u8> = pieces.iter().flat_map(Piece::bytes).collect();
        assert!(restored[path] == content, "{:?} differs", String::from_utf8_lossy(path));
        let short = reader.short_file(&TablePath::data(path.clone()).unwrap()).await.unwrap();
        let is_short = content.len() as u64 <= 64 * reader.block_size().bytes();
        assert_eq!(short.is_some(), is_short, "{:?}", String::from_utf8_lossy(path));
        assert!(short.is_none_or(|short| short == content), "{:?} differs", String::from_utf8_lossy(path));
    }
    assert_eq!(restored.len(), tree.files.len() + tree.links.len());
}

/// Counts again what the manifest says is in use.
async fn check_live_counts(reader: &BackupReader) {
    let mut live: BTreeMap<(BackupRef, PackNo), u32> = BTreeMap::new();
    let mut count = |at: FrameRef, n: u32| *live.entry((at.backup, at.pack)).or_default() += n;
    reader.manifest().index_blocks.iter().for_each(|block| count(block.at, 1));
    let mut entries = reader.entries();
    while let Some(entry) = entries.next().await.unwrap() {
        let EntryContent::File(file) = entry.content else { continue };
        match file.blocks {
            Blocks::Inline(_) => {}
            Blocks::Leaves(runs) => runs.iter().for_each(|run| {
                if let LeafRun::Stored { at, .. } = run {
                    count(*at, 1);
                }
            }),
            Blocks::Nodes(nodes) => nodes.iter().for_each(|node| count(node.at, 1)),
        }
    }
    let mut windows = reader.windows(WindowLimits::default());
    let mut blocks = 0u32;
    while let Some(window) = windows.next().await.unwrap() {
        window.units_of(|_, _, _| {
            blocks += 1;
            true
        });
    }
    let tables: u32 = live.values().sum();
    let said: u32 = reader.manifest().packs.packs().iter().map(|pack| pack.live).sum();
    assert_eq!(said, tables + blocks);
    assert_eq!(u64::from(blocks), reader.manifest().summary.totals.blocks);
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

async fn replace(scene: &Scene, key: &walpoint_storage::layout::Key, bytes: &[u8]) {
    use object_store::ObjectStoreExt;
    let path = object_store::path::Path::from(key.as_str());
    scene.memory.put(&path, bytes.to_vec().into()).await.unwrap();
}
