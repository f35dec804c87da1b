//! Which timelines of a lineage are written beside each other: none of them makes what another one needs expire.

use std::collections::BTreeMap;

use walpoint_base::TimelineId;
use walpoint_storage::error::Result;

use super::gather::Gathered;
use crate::catalog::{Catalog, TimelineUse, stored_histories};

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
        let began: BTreeMap<_, _> = stored_histories(lineage.archive()).await?.into_iter().collect();
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
