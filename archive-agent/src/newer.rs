//! What is said of a timeline that a restore to the latest moment follows instead of the server's.

use walpoint_base::TimelineId;
use walpoint_repo::catalog::Newer;

/// What was found, without a final full stop.
pub(crate) fn found(newer: &Newer) -> String {
    let Newer { timeline, common, until } = newer;
    format!(
        "timeline {timeline}, forked from this server's timeline {common} at {until}, is in the archive: a restore to the latest \
         moment follows it, not this server"
    )
}

/// What to do about it on the server that is on timeline `own`.
pub(crate) fn advice(newer: &Newer, own: TimelineId) -> String {
    let timeline = newer.timeline;
    format!(
        "If nothing of timeline {timeline} is needed, stop that server's archiving and run \"archive-agent lineage settle --timeline \
         {timeline} --reason …\". If that server is to be archived too, run \"archive-agent init --new-lineage\" there first. Until \
         then --target-timeline {own} restores this server."
    )
}
