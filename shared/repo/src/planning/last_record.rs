//! Where recovery to the end of the archive ends.

use std::sync::Arc;

use walpoint_base::{Lsn, RecoveryTarget, SegmentNo};
use walpoint_plan::restore::restore_plan::RestorePlan;
use walpoint_plan::restore::stop::SegmentDecoder;
use walpoint_plan::restore::{ExtentQuestion, Path};
use walpoint_storage::error::Result;

use crate::catalog::LineageCatalog;

/// Where the last complete record starts that recovery under a plan to the end of the archive replays, if that is known; nothing for
/// another target.
pub async fn last_record(
    lineage: &mut LineageCatalog,
    plan: &RestorePlan,
    decoder: &Arc<dyn SegmentDecoder>,
) -> Result<Option<Lsn>> {
    if plan.target != RecoveryTarget::Latest || plan.stop.is_some() {
        return Ok(None);
    }
    let first = SegmentNo::of(plan.backup.start(), lineage.lineage().segment_size);
    let until = plan.until.min(plan.end());
    let extent = lineage.ask(Some(decoder), |facts| {
        let Some(path) = Path::to(facts, plan.timeline) else { return Ok(None) };
        let coverage = path.coverage(first)?;
        if until > coverage.until {
            path.with_tail(coverage)?;
        }
        facts.extent(ExtentQuestion { path: plan.timeline, first, until }).map(Some)
    });
    Ok(extent.await?.and_then(|extent| extent.last_record))
}
