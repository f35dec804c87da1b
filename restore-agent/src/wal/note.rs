//! The note that `restore` leaves in the spool: where recovery goes, so that nothing is fetched beyond it, which segment has
//! to be built on the way, and up to where records are replayed. `restore-fetch`, or the prefetcher for it, writes it anew after it has handed
//! over more of the open segment than the note names (`streamed`).
//!
//! A crash after the segment has landed and before that leaves the note as it was. What it names is the beginning of what landed, and
//! the next answer continues that.
//!
//! Missing, damaged or stale the note costs time, never data: what PostgreSQL asks for is looked up whatever the note says. Without
//! it a segment that would have to be built is neither handed out nor proven absent, and any record may be replayed; a stale one
//! is held against what the archive has by now (`build`).

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context;
use serde::{Deserialize, Serialize};
use walpoint_base::{Lsn, SegmentName, TimelineId, WalFileName, durable};
use walpoint_plan::restore::{ForkSegment, ForkSource, Unfollowed};
use walpoint_storage::object::ContentHash;

#[cfg(doc)]
use crate::settings;

/// Its name in the spool.
const FILE: &str = "target";

/// Where recovery goes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TargetNote {
    /// The timeline of the target.
    pub timeline: TimelineId,
    /// The last segment that recovery needs; `None` for "to the end of the archive".
    pub last: Option<SegmentName>,
    /// The segment that has to be built when PostgreSQL asks for it.
    pub fork: Option<Built>,
    /// The timeline that recovery would follow, had it been in the archive when it was planned.
    pub unfollowed: Option<Unfollowed>,
    /// No record that starts here or later is replayed under these settings; `None` if there is no such position.
    pub until: Option<Lsn>,
    /// Of a recovery to the latest moment: the youngest timeline that was known when it was planned. A younger one means that the
    /// plan is too old.
    pub youngest: Option<TimelineId>,
    /// Timelines whose histories are damaged or missing: the plan does without them. Younger ones, or its own, which recovery then does
    /// not leave.
    pub without: Vec<TimelineId>,
    /// The settings that say where recovery stops ([`settings::targets`]).
    pub settings: BTreeMap<String, String>,
}

/// A segment that is built.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Built {
    /// Of what, and up to where.
    pub segment: ForkSegment,
    /// The hash of its bytes up to the cut, in the copy that the plan counts on: one that holds less is not what was planned.
    pub hash: Option<ContentHash>,
}

/// The file's content.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Content {
    timeline: u32,
    last: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    fork: Option<ForkContent>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    unfollowed: Option<UnfollowedContent>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    until: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    youngest: Option<u32>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    without: Vec<u32>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    settings: BTreeMap<String, String>,
}

/// A segment that is built.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ForkContent {
    segment: String,
    from: String,
    until: String,
    #[serde(default)]
    left: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    hash: Option<String>,
}

/// A timeline that is not followed.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct UnfollowedContent {
    timeline: u32,
    segment: String,
    from: String,
}

impl UnfollowedContent {
    fn of(unfollowed: &Unfollowed) -> Self {
        Self {
            timeline: unfollowed.timeline.get(),
            segment: unfollowed.segment.to_string(),
            from: unfollowed.from.to_string(),
        }
    }

    fn parse(&self) -> Option<Unfollowed> {
        Some(Unfollowed {
            timeline: TimelineId::new(self.timeline)?,
            segment: self.segment.parse().ok()?,
            from: self.from.parse().ok()?,
        })
    }
}

impl ForkContent {
    fn of(Built { segment: fork, hash }: &Built) -> Self {
        Self {
            segment: fork.name.to_string(),
            from: fork.source_name().to_string(),
            until: fork.cut.to_string(),
            left: fork.left,
            hash: hash.map(|hash| hash.to_string()),
        }
    }

    fn parse(&self) -> Option<Built> {
        let (name, cut): (SegmentName, Lsn) = (self.segment.parse().ok()?, self.until.parse().ok()?);
        let source = match self.from.parse().ok()? {
            WalFileName::Segment(from) => ForkSource::Segment(from.timeline),
            WalFileName::Partial(from) => ForkSource::Partial(from.timeline),
            WalFileName::History(_) | WalFileName::Backup(..) => return None,
        };
        let segment = ForkSegment { name, cut, source, left: self.left };
        let hash = self.hash.as_ref().map(|hash| hash.parse()).transpose().ok()?;
        (segment.source_name().to_string() == self.from).then_some(Built { segment, hash })
    }
}

impl TargetNote {
    /// Writes the note into a spool, which is created if need be.
    pub fn write(&self, spool: &Path) -> anyhow::Result<()> {
        let content = Content {
            timeline: self.timeline.get(),
            last: self.last.map(|name| name.to_string()),
            fork: self.fork.as_ref().map(ForkContent::of),
            unfollowed: self.unfollowed.as_ref().map(UnfollowedContent::of),
            until: self.until.map(|until| until.to_string()),
            youngest: self.youngest.map(TimelineId::get),
            without: self.without.iter().map(|timeline| timeline.get()).collect(),
            settings: self.settings.clone(),
        };
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
            fork: match content.fork {
                Some(fork) => Some(fork.parse()?),
                None => None,
            },
            unfollowed: match content.unfollowed {
                Some(unfollowed) => Some(unfollowed.parse()?),
                None => None,
            },
            until: content.until.map(|until| until.parse()).transpose().ok()?,
            youngest: content.youngest.and_then(TimelineId::new),
            without: content.without.into_iter().filter_map(TimelineId::new).collect(),
            settings: content.settings,
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
            fork: None,
            unfollowed: Some(Unfollowed {
                timeline: TimelineId::new(4).unwrap(),
                segment: "000000030000000100000000".parse().unwrap(),
                from: Lsn(0x1_0000_1000),
            }),
            until: Some(Lsn(0x1_0000_2000)),
            youngest: TimelineId::new(4),
            without: TimelineId::new(5).into_iter().collect(),
            settings: BTreeMap::from([("recovery_target_lsn".to_owned(), "'1/2000'".to_owned())]),
        };
        note.write(&spool).unwrap();
        assert_eq!(TargetNote::read(&spool), Some(note.clone()));
        TargetNote { last: None, ..note.clone() }.write(&spool).unwrap();
        assert_eq!(TargetNote::read(&spool).unwrap().last, None);
        let name = note.last.unwrap();
        for source in [ForkSource::Segment(TimelineId::new(4).unwrap()), ForkSource::Partial(note.timeline)] {
            let segment = ForkSegment { name, cut: Lsn(0x1_0000_1000), source, left: false };
            let fork = Some(Built { segment, hash: Some(ContentHash([7; 32])) });
            TargetNote { fork, ..note.clone() }.write(&spool).unwrap();
            assert_eq!(TargetNote::read(&spool).unwrap().fork, fork);
        }
        durable::replace(&spool.join(FILE), b"{\"timeline\":\"x\"", 0o600).unwrap();
        assert_eq!(TargetNote::read(&spool), None);
        TargetNote::remove(&spool).unwrap();
        TargetNote::remove(&spool).unwrap();
    }
}
