//! Whether neighboring segments continue each other: two servers that archived under one timeline number show here, though
//! each segment by itself is sound.

use std::collections::BTreeMap;

use walpoint_base::{SegmentName, SegmentNo, TimelineId};
use walpoint_plan::restore::SegmentRange;
use walpoint_plan::runs::Runs;
use walpoint_storage::error::Result;

use super::report::FindingKind;
use super::{Cure, Run};
use crate::catalog::{BrokenChain, LineageCatalog};

/// What to do about a gap between segments of one server.
const GAP: &str = "Take a backup: recovery from an earlier one ends before this segment.";

/// What to do behind pg_resetwal.
const RESET: &str = "Take a backup: recovery from an earlier one ends before this segment.";

impl Run<'_> {
    /// Compares the segments that are needed, each run with the segment before it, which may lie on another timeline.
    pub(super) async fn chain(
        &mut self,
        catalog: &mut LineageCatalog,
        needed: &BTreeMap<TimelineId, Runs>,
    ) -> Result<()> {
        let size = catalog.lineage().segment_size;
        for (&timeline, runs) in needed {
            for run in runs.iter() {
                let start = run.first.start(size);
                let history = catalog.facts().graph.history(timeline);
                let parent =
                    history.filter(|_| run.first.0 > 0).map(|history| history.timeline_at(start - 1));
                let before = parent.filter(|parent| *parent != timeline).map(|timeline| {
                    let number = SegmentNo(run.first.0 - 1);
                    SegmentRange { timeline, first: number, last: number }
                });
                let here = SegmentRange { timeline, first: run.first, last: run.last };
                let ranges: Vec<SegmentRange> = before.into_iter().chain([here]).collect();
                for broken in catalog.broken_chain(&ranges).await? {
                    self.broken(catalog, &broken);
                }
            }
        }
        Ok(())
    }

    /// Whether a backup was taken since from which recovery begins behind the segment.
    fn begins_behind(&self, catalog: &LineageCatalog, segment: SegmentName) -> bool {
        self.ids.iter().any(|id| catalog.begins_behind(*id, segment))
    }

    fn broken(&mut self, catalog: &LineageCatalog, broken: &BrokenChain) {
        let BrokenChain { segment, fault, recorded } = broken;
        if *recorded && self.begins_behind(catalog, *segment) {
            return;
        }
        let (kind, what, remedy) = match (fault.is_split_brain(), recorded) {
            (true, true) => (
                FindingKind::Gap,
                format!(
                    "it does not continue the segment before it, although one server wrote both: {fault}"
                ),
                GAP.into(),
            ),
            (true, false) => (
                FindingKind::Chain,
                format!("split brain: it does not continue the segment before it: {fault}"),
                Cure::SplitBrain,
            ),
            (false, _) => (FindingKind::Chain, fault.to_string(), RESET.into()),
        };
        self.bad_segment(catalog.archive(), *segment, kind, what);
        if let Some(finding) = self.report.findings.last_mut().filter(|finding| finding.kind == kind) {
            finding.remedy = remedy;
        }
    }
}
