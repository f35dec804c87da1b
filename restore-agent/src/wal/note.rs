//! The note that `restore` leaves in the spool: where recovery goes, so that nothing is fetched beyond it.
//!
//! The note steers only what is fetched ahead of PostgreSQL's requests. Missing, damaged or stale it costs time, never
//! data: what PostgreSQL asks for is looked up whatever the note says.

use std::path::Path;

use anyhow::Context;
use serde::{Deserialize, Serialize};
use walpoint_base::{SegmentName, TimelineId, durable};

/// Its name in the spool.
const FILE: &str = "target";

/// Where recovery goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TargetNote {
    /// The timeline of the target.
    pub timeline: TimelineId,
    /// The last segment that recovery needs; `None` for "to the end of the archive".
    pub last: Option<SegmentName>,
}

/// The file's content.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Content {
    timeline: u32,
    last: Option<String>,
}

impl TargetNote {
    /// Writes the note into a spool, which is created if need be.
    pub fn write(&self, spool: &Path) -> anyhow::Result<()> {
        let content = Content { timeline: self.timeline.get(), last: self.last.map(|name| name.to_string()) };
        let path = spool.join(FILE);
        durable::create_directories(spool)
            .and_then(|()| durable::replace(&path, &serde_json::to_vec(&content)?, 0o600))
            .with_context(|| format!("the recovery target cannot be left in {}", path.display()))
    }

    /// Reads the note; `None` if there is none that can be used.
    pub fn read(spool: &Path) -> Option<Self> {
        let content: Content = serde_json::from_slice(&std::fs::read(spool.join(FILE)).ok()?).ok()?;
        Some(Self {
            timeline: TimelineId::new(content.timeline)?,
            last: content.last.map(|name| name.parse()).transpose().ok()?,
        })
    }

    /// Removes the note.
    pub(crate) fn remove(spool: &Path) -> std::io::Result<()> {
        durable::remove(&spool.join(FILE))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_read_as_written_and_a_damaged_one_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let spool = dir.path().join("spool");
        assert_eq!(TargetNote::read(&spool), None);
        let note = TargetNote {
            timeline: TimelineId::new(3).unwrap(),
            last: Some("000000030000000100000000".parse().unwrap()),
        };
        note.write(&spool).unwrap();
        assert_eq!(TargetNote::read(&spool), Some(note));
        TargetNote { last: None, ..note }.write(&spool).unwrap();
        assert_eq!(TargetNote::read(&spool).unwrap().last, None);
        durable::replace(&spool.join(FILE), b"{\"timeline\":\"x\"", 0o600).unwrap();
        assert_eq!(TargetNote::read(&spool), None);
        TargetNote::remove(&spool).unwrap();
        TargetNote::remove(&spool).unwrap();
    }
}
