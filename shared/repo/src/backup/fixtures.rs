//! Backups for tests and measurements: those that lie, which no writer makes and a reader has to refuse, and one that holds
//! next to nothing.

use jiff::Timestamp;
use walpoint_base::{BackupId, Lsn};
use walpoint_storage::error::{RepoError, Result};
use walpoint_storage::object::{Codec, pack};

use super::HexBytes;
use super::catalog::Backups;
use super::ending::Intent;
use super::entry::{Attributes, FileEntry};
use super::facts::{BackupDescription, Method};
use super::geometry::BlockSize;
use super::index_block::IndexBlockBuilder;
use super::location::{BackupRef, FrameRef, PackNo};
use super::manifest::IndexBlockRef;
use super::pack::{FinishedPack, FrameKind, PACK_BYTES, PackBuilder};
use super::pack_table::{PackTable, PackUse};
use super::path::TablePath;
use super::read::BackupReader;
use super::write::{Draft, WalStored, WriteOptions};
use crate::wal::WalArchive;

/// The pack that holds the other file table; no small backup has so many.
const PACK: PackNo = PackNo(99);

/// Publishes `draft` with another file table of one index block: its entries changed by `edit`, the index block's bytes by `bytes`.
/// Nothing is checked.
pub async fn publish(
    backups: &Backups,
    draft: &Draft,
    edit: impl FnOnce(&mut Vec<FileEntry>),
    bytes: impl FnOnce(Vec<u8>) -> Vec<u8>,
) -> Result<()> {
    let mut manifest = draft.manifest().clone();
    let id = manifest.summary.id;
    let mut entries = Vec::new();
    let mut truth = BackupReader::new(backups, manifest.clone()).map_err(failed)?.entries();
    while let Some(entry) = truth.next().await? {
        entries.push(entry);
    }
    edit(&mut entries);
    let mut index_block = IndexBlockBuilder::default();
    entries.iter().for_each(|entry| index_block.push(entry));
    let index_block = bytes(index_block.finish(&[id]).map_err(failed)?);

    let sealer = backups.sealer();
    let mut builder =
        PackBuilder::new(sealer, &backups.pack_key(id, PACK), PACK, PACK_BYTES).map_err(failed)?;
    let mut codec = Codec::new();
    let (no, frame) =
        builder.push(FrameKind::IndexBlock, pack(&index_block, &mut codec), &[]).map_err(failed)?;
    let FinishedPack { object, units, .. } = builder.finish().map_err(failed)?;
    backups.store().create_once(&object).await?;
    let (size, backup) = (u32::try_from(object.len()).map_err(failed)?, BackupRef::OWN);
    let mut packs = manifest.packs.packs().to_vec();
    packs.push(PackUse { backup, pack: no, size, units, live: units });
    manifest.packs = PackTable::new(packs);
    let first = entries.first().ok_or_else(|| failed("no entries"))?.path.clone();
    let at = FrameRef { backup, pack: no, frame };
    manifest.index_blocks =
        vec![IndexBlockRef { at, entries: u32::try_from(entries.len()).map_err(failed)?, first }];
    let object = manifest.seal(sealer, &backups.paths().manifest(id)).map_err(failed)?;
    backups.store().create_once(&object).await?;
    Ok(())
}

/// Publishes a backup of a cluster that has one file. It starts where its id says, on the same timeline ends at `stop` and
/// at the time `ended`. Its WAL need not be there.
pub async fn smallest(archive: &WalArchive, id: BackupId, stop: Lsn, ended: Timestamp) -> Result<()> {
    let lineage = archive.lineage();
    let backups = Backups::of(archive.repository(), &lineage.cluster);
    let started = id.started().ok_or_else(|| failed("its id holds no time"))?;
    let intent = Intent {
        id,
        lineage: lineage.id,
        started,
        host: String::new(),
        agent: String::new(),
        label: String::new(),
        parents: vec![],
        resumed: vec![],
    };
    let block_size = BlockSize::new(lineage.block_size).ok_or_else(|| failed("no block size"))?;
    let writer = backups.begin(intent, block_size, &WriteOptions::default()).await?;
    let mut stream = writer.stream();
    let written = tokio::task::spawn_blocking(move || {
        let attributes = Attributes { mode: 0o700, uid: 26, gid: 26, mtime: 0 };
        stream.directory(TablePath::data("").map_err(failed)?, attributes)?;
        let mut file = stream.file(TablePath::data("PG_VERSION").map_err(failed)?);
        file.write(b"17\n")?;
        file.finish(attributes)?;
        stream.finish()
    });
    written.await.map_err(failed)??;
    let none = HexBytes::default;
    let facts = BackupDescription {
        label: String::new(),
        agent: String::new(),
        host: String::new(),
        started,
        ended,
        method: Method::Local,
        from_standby: false,
        lineage: lineage.id,
        major: lineage.major,
        block_size: lineage.block_size,
        relation_segment_blocks: lineage.relation_segment_blocks,
        wal_segment_size: lineage.segment_size.bytes(),
        data_checksums: true,
        start_timeline: id.timeline(),
        start_lsn: id.start(),
        stop_timeline: id.timeline(),
        stop_lsn: stop,
        latest_commit: None,
        backup_label: none(),
        tablespace_map: none(),
        pgdata: none(),
        tablespaces: vec![],
        extra_paths: vec![],
        users: vec![],
        groups: vec![],
    };
    let draft = writer.finish(facts).await?;
    let (first, last) = draft.needs_wal()?;
    draft.publish(WalStored { first, last }).await?;
    Ok(())
}

fn failed(error: impl ToString) -> RepoError {
    RepoError::Internal(error.to_string())
}
