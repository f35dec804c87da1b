//! How much of each pack is used.

use std::collections::BTreeMap;

use super::blocks::{BlockList, BlockLocation};
use super::location::{BackupRef, FrameRef, PackNo};

/// How much of each pack is used.
pub(super) type Live = BTreeMap<(BackupRef, PackNo), u32>;

/// Counts `units` more of the pack that holds a frame.
pub(super) fn count(live: &mut Live, at: FrameRef, units: u32) {
    let used = live.entry((at.backup, at.pack)).or_default();
    *used = used.saturating_add(units);
}

/// Counts the blocks of a list as used in their packs.
pub(super) fn count_blocks(live: &mut Live, list: &BlockList) {
    for (run, _) in list.runs() {
        if let BlockLocation::At(at) = run.place {
            count(live, at.frame, u32::from(run.blocks));
        }
    }
}
