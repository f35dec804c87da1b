//! Tablespaces that recovery under a plan creates. Replay of `CREATE TABLESPACE` uses the location in the record, whatever
//! lies there on the machine where it runs: a restore has to know of it beforehand.

use std::collections::BTreeSet;
use std::sync::Arc;

use walpoint_base::{CreatedTablespace, Lsn};
use walpoint_plan::restore::created::{PlannedSegment, TablespaceSearch};
use walpoint_plan::restore::restore_plan::RestorePlan;
use walpoint_plan::restore::stop::SegmentDecoder;
use walpoint_storage::error::Result;

use super::marked::{self, Mark};
use crate::catalog::{LineageCatalog, TimelineWal};
use crate::wal::WalCopies;

/// Segments with such a record.
const MARKED: Mark = Mark { segment: |marks| marks.tablespace, group: |counts| counts.tablespace > 0 };

/// The segments that a plan replays and that hold such a record by their marks, from what was read for the plan.
pub async fn creating_segments(
    lineage: &mut LineageCatalog,
    plan: &RestorePlan,
) -> Result<Vec<PlannedSegment>> {
    let mut creating = Vec::new();
    for (at, range) in plan.wal.iter().enumerate() {
        if let Some(wal) = lineage.wal_mut(range.timeline) {
            creating
                .extend(marked::segments(wal, *range, &MARKED).await?.into_iter().map(|number| (at, number)));
        } else {
            let mut wal = TimelineWal::load(lineage.archive(), range.timeline).await?;
            creating.extend(
                marked::segments(&mut wal, *range, &MARKED).await?.into_iter().map(|number| (at, number)),
            );
        }
    }
    Ok(creating)
}

/// What recovery under a plan creates, in LSN order. `copies`: the WAL of the plan's lineage, in the plan's repository first.
/// `from`: where replay begins. `creating`: what [`creating_segments`] found; without it the index is read again.
/// What is damaged in all repositories is an error: recovery would stop there.
pub async fn created_tablespaces(
    copies: &WalCopies,
    plan: &RestorePlan,
    creating: Option<&[PlannedSegment]>,
    from: Lsn,
    decoder: &Arc<dyn SegmentDecoder>,
) -> Result<Vec<CreatedTablespace>> {
    let needed: BTreeSet<PlannedSegment> = match creating {
        Some(creating) => creating.iter().copied().collect(),
        None => marked::read(copies, plan, &MARKED).await?,
    };
    let begin = || decoder.tablespaces();
    let feed = |search: &mut Box<dyn TablespaceSearch>, name, content: &[u8]| search.feed(name, content);
    let mut found = marked::records(copies, plan, &needed, begin, feed).await?;
    for created in marked::in_built(copies, plan, begin, feed).await? {
        if !found.iter().any(|known: &CreatedTablespace| known.record == created.record) {
            found.push(created);
        }
    }
    let until = plan.replayed_until();
    found.retain(|created| from <= created.record && created.record < until);
    Ok(found)
}
