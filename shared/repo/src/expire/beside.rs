//! Which timelines of a lineage are written beside each other: none of them makes what another one needs expire.

use std::collections::{BTreeMap, BTreeSet};

use walpoint_base::TimelineId;
use walpoint_storage::error::Result;

use super::gather::Gathered;
use crate::catalog::{Catalog, TimelineUses, stored_histories};

/// Finds them.
pub(super) async fn find(gathered: &mut Gathered, catalog: &mut Catalog) -> Result<()> {
    for lineage in catalog.lineages_mut() {
        let id = lineage.id();
        let Some(life) = gathered.facts.lives.iter_mut().find(|life| life.lineage == id) else { continue };
        let written = life.timelines.iter().filter(|(_, life)| life.written.is_some());
        let written: BTreeSet<TimelineId> = written.map(|(timeline, _)| *timeline).collect();
        if written.len() < 2 {
            continue;
        }
        let began = stored_histories(lineage.archive()).await?.into_iter().collect();
        let mut last_backups = BTreeMap::new();
        for backup in gathered.facts.backups.iter().filter(|backup| backup.lineage == id) {
            let this = (backup.id.start(), backup.ended);
            let last = last_backups.entry(backup.id.timeline()).or_insert(this);
            *last = this.max(*last);
        }
        life.beside = lineage.written_beside(&TimelineUses { written, began, last_backups }).await?;
    }
    Ok(())
}
