//! Whether the newest WAL of a timeline can be recovered at all: what was archived last is of no use where WAL before it is
//! missing and no backup begins behind that.

use std::cmp::Reverse;
use std::fmt;

use walpoint_base::{BackupId, Lsn, SegmentName, SegmentNo, TimelineId};
use walpoint_plan::restore::Asking;
use walpoint_plan::restore::facts::Facts;
use walpoint_plan::restore::windows::{self, Window};
use walpoint_storage::error::Result;

use super::lineage::LineageCatalog;

/// Backups that are looked at where none leads to a timeline: others may be of other lineages.
const LOOKS: usize = 8;

/// That no backup leads to the newest WAL of a timeline.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Unreached {
    /// The newest segment of the timeline.
    pub last: SegmentName,
    /// The first segment that is missing, or that recovery cannot pass, behind the newest sound backup that recovery can begin with;
    /// `None` if there is no such backup on the path.
    pub missing: Option<SegmentName>,
}

impl fmt::Display for Unreached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.missing {
            Some(missing) => write!(
                f,
                "recovery from the newest backup cannot pass segment {missing}, and what is archived reaches to {}",
                self.last
            ),
            None => write!(f, "no backup leads to the newest segment that is archived, {}", self.last),
        }
    }
}

/// Whether a window can begin with a backup of which nothing is known to be damaged.
fn has_sound(facts: &Facts, timeline: TimelineId, window: &Window) -> Asking<bool> {
    leads_to(facts, timeline, window, window.until)
}

/// Whether such a backup ends in a window at that position or before. The newest ones are asked first.
fn leads_to(facts: &Facts, timeline: TimelineId, window: &Window, end: Lsn) -> Asking<bool> {
    let on_path = |id: &BackupId| {
        let history = facts.graph.history(timeline);
        id.timeline() == history.map_or(timeline, |history| history.timeline_at(id.start()))
    };
    let inside = |id: &&BackupId| {
        (window.oldest.start()..window.until).contains(&id.start())
            && on_path(id)
            && !facts.is_ruled_out(**id)
    };
    let mut inside: Vec<BackupId> = facts.backups.iter().filter(inside).copied().collect();
    inside.sort_unstable_by_key(|id| Reverse((id.start(), *id)));
    for id in inside {
        if facts.complete_backup(id)?.is_some_and(|backup| backup.end <= end && backup.is_sound()) {
            return Ok(true);
        }
    }
    Ok(false)
}

impl LineageCatalog {
    /// Whether a restore can begin with a backup of which nothing is known to be damaged, and replay the byte before that position of a
    /// timeline.
    pub async fn reaches(&mut self, timeline: TimelineId, end: Lsn) -> Result<bool> {
        let found = |facts: &Facts| -> Asking<bool> {
            for window in windows::on_path(facts, timeline)? {
                if (window.from..=window.until).contains(&end) && leads_to(facts, timeline, &window, end)? {
                    return Ok(true);
                }
            }
            Ok(false)
        };
        self.ask(None, found).await
    }

    /// Whether recovery cannot reach the newest segment of a timeline. `None` if it can, and where the lineage has no backup or
    /// nothing of that timeline.
    pub async fn unreached(&mut self, timeline: TimelineId) -> Result<Option<Unreached>> {
        let size = self.lineage().segment_size;
        let found = |facts: &Facts| -> Asking<Option<Unreached>> {
            let Some(last) = facts.wal(timeline)?.last() else { return Ok(None) };
            let windows = windows::on_path(facts, timeline)?;
            let Some(end) = windows.iter().map(|window| window.until).max() else {
                // Before the first backup is finished, or damage to all is known, nothing is expected of them.
                let mut newest = facts.backups.clone();
                newest.sort_unstable_by_key(|id| Reverse((id.start(), *id)));
                for id in newest.into_iter().filter(|id| !facts.is_ruled_out(*id)).take(LOOKS) {
                    if facts.complete_backup(id)?.is_some() {
                        return Ok(Some(Unreached { last: last.name(timeline, size), missing: None }));
                    }
                }
                return Ok(None);
            };
            let last_start = last.start(size);
            // What begins with backups that are known to be damaged leads nowhere. That all are is told as that.
            let mut sound = None;
            for window in windows.iter().rev() {
                if has_sound(facts, timeline, window)? {
                    sound = sound.max(Some(window.until));
                }
                if sound.is_some_and(|end| end > last_start) {
                    break;
                }
            }
            let end = sound.unwrap_or(end);
            if end > last_start {
                return Ok(None);
            }
            let of = facts.graph.history(timeline).map_or(timeline, |history| history.timeline_at(end));
            Ok(Some(Unreached {
                last: last.name(timeline, size),
                missing: Some(SegmentNo::of(end, size).name(of, size)),
            }))
        };
        self.ask(None, found).await
    }
}
