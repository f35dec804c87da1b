//! Which timelines of a lineage are written beside each other: none of them makes what another one needs expire.

use std::collections::BTreeMap;

use jiff::Timestamp;
use walpoint_base::{TimelineId, WalFileName};
use walpoint_storage::error::Result;
use walpoint_storage::layout::WalEntry;
use walpoint_storage::store::ListedObject;

use super::gather::Gathered;
use crate::catalog::{Catalog, TimelineUse};
use crate::wal::WalArchive;

/// Finds them.
pub(super) async fn find(gathered: &mut Gathered, catalog: &mut Catalog) -> Result<()> {
    for lineage in catalog.lineages_mut() {
        let id = lineage.id();
        let Some(life) = gathered.facts.lives.iter_mut().find(|life| life.lineage == id) else { continue };
        let written = life.timelines.iter().filter(|(_, life)| life.written.is_some());
        let written: Vec<TimelineId> = written.map(|(timeline, _)| *timeline).collect();
        if written.len() < 2 {
            continue;
        }
        let began: BTreeMap<_, _> = histories(lineage.archive()).await?.into_iter().collect();
        let own = gathered.facts.backups.iter().filter(|backup| backup.lineage == id);
        let own: Vec<_> = own.map(|backup| (backup.id, backup.ended)).collect();
        let used = written.into_iter().map(|timeline| {
            let backups = own.iter().filter(|(id, _)| id.timeline() == timeline);
            let last_backup =
                backups.max_by_key(|(id, _)| id.start()).map(|(id, ended)| (id.start(), *ended));
            (timeline, TimelineUse { began: began.get(&timeline).copied(), last_backup })
        });
        life.beside = lineage.written_beside(&used.collect()).await?;
    }
    Ok(())
}

/// The timelines that have a history, and when it was stored.
pub(super) async fn histories(archive: &WalArchive) -> Result<Vec<(TimelineId, Timestamp)>> {
    let entries = archive.repository().store().list_all(&archive.paths().histories()).await?;
    let history = |entry: &ListedObject| match archive.paths().parse(&entry.key)? {
        WalEntry::File(WalFileName::History(timeline)) => Some((timeline, entry.modified)),
        _ => None,
    };
    Ok(entries.iter().filter_map(history).collect())
}
