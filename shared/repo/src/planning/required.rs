//! The settings that recovery under a plan needs.

use std::sync::Arc;

use walpoint_base::Lsn;
use walpoint_plan::restore::required::{RequiredSearch, RequiredSettings};
use walpoint_plan::restore::restore_plan::RestorePlan;
use walpoint_plan::restore::stop::SegmentDecoder;
use walpoint_storage::error::Result;

use super::marked::{self, Mark};
use crate::wal::WalCopies;

/// Segments with such a record.
const MARKED: Mark = Mark { segment: |marks| marks.parameters, group: |counts| counts.parameters > 0 };

/// What recovery under a plan requires, beginning at `from`. `copies`: the WAL of the plan's lineage, in the plan's repository first. What is
/// damaged in all repositories is an error: recovery would stop there.
pub async fn required_settings(
    copies: &WalCopies,
    plan: &RestorePlan,
    from: Lsn,
    decoder: &Arc<dyn SegmentDecoder>,
) -> Result<RequiredSettings> {
    let needed = marked::read(copies, plan, &MARKED).await?;
    let begin = || decoder.required();
    let feed = |search: &mut Box<dyn RequiredSearch>, name, content: &[u8]| search.feed(name, content);
    let mut found = marked::records(copies, plan, &needed, begin, feed).await?;
    found.extend(marked::in_built(copies, plan, begin, feed).await?);
    let until = plan.replayed_until();
    let counts = |record: &Lsn| from <= *record && *record < until;
    let replayed = found.into_iter().filter(|(record, _)| counts(record));
    Ok(replayed.fold(RequiredSettings::default(), |all, (_, one)| all.and(one)))
}
