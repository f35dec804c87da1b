//! A restore point that was created: what the repositories have of it, and the options that lead to it and to no other.

use std::collections::BTreeSet;

use anyhow::bail;
use walpoint_base::facts::PointRef;
use walpoint_base::{LineageId, Lsn, PgTimestamp, SegmentName, SegmentNo, TimelineId};
use walpoint_repo::Lineage;
use walpoint_repo::wal::{FoundPoints, WalArchive};

use crate::check::repository::Destination;

/// The bytes that a restore point's record takes at most, with the page header that may lie in it. Its structure has 98
/// (`xl_restore_point` in PostgreSQL's `xlog_internal.h`).
const MAX_RECORD: u64 = 256;

/// What was created.
#[derive(Debug)]
pub(super) struct Created {
    pub(super) timeline: TimelineId,
    pub(super) end: Lsn,
    pub(super) segment: SegmentName,
    pub(super) time: PgTimestamp,
}

/// What the repositories have of a restore point.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Where its record starts; `None` if that crosses the end of a segment, where no name is stored.
    pub(super) lsn: Option<Lsn>,
    pub(super) time: Option<PgTimestamp>,
    /// Others of the name, on all timelines of all lineages.
    pub(super) others: Vec<OtherPoint>,
    /// The lineage that a plan has to be given, where the cluster has several.
    lineage: Option<LineageId>,
}

/// Another restore point of the name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct OtherPoint {
    pub(super) lsn: Lsn,
    pub(super) timeline: TimelineId,
    pub(super) lineage: LineageId,
}

impl Created {
    /// Looks for it, and for others of its name, in the repositories, which hold its segment and all before that.
    pub(super) async fn find(&self, destinations: &[Destination], name: &str) -> anyhow::Result<Found> {
        let (mut found, mut others) = (Found::default(), BTreeSet::new());
        for destination in destinations {
            let (archive, lineage) = (destination.archive(), destination.lineage.id);
            let known = destination.repository.lineages(&destination.lineage.cluster).await?;
            if known.ids().any(|other| other != lineage) {
                found.lineage.get_or_insert(lineage);
                others.extend(in_other_lineages(destination, &known.read, name).await?);
            }
            let size = archive.lineage().segment_size;
            let begin = SegmentNo::before(self.end, size).start(size);
            let FoundPoints { points, damaged, unread } = archive.points_named(name).await?;
            let mut own: Option<(PointRef, Option<PgTimestamp>)> = None;
            for point in points {
                let here = point.timeline == self.timeline && (begin..self.end).contains(&point.lsn);
                let stored = if here { archive.point(&point).await? } else { None };
                // The last one in the segment before the end is this one, unless its object tells of another end.
                let other = match here && stored.as_ref().is_none_or(|stored| stored.end == self.end) {
                    true => {
                        own.replace((point, stored.map(|stored| stored.time))).map(|(earlier, _)| earlier)
                    }
                    false => Some(point),
                };
                others.extend(other.map(|other| OtherPoint {
                    lsn: other.lsn,
                    timeline: other.timeline,
                    lineage,
                }));
            }
            match own {
                Some((point, time)) => {
                    found.lsn = Some(point.lsn);
                    found.time = found.time.or(time).or(point.time);
                }
                // A record that begins before the segment ends near its start.
                None if self.end.0 - begin.0 > MAX_RECORD && damaged.is_empty() && unread.is_empty() => {
                    bail!(
                        "segment {} in repository {} does not hold it\nDETAIL: What is stored under that name is not what this server \
                     wrote.\nHINT: \"archive-agent check\" finds out what archives there.",
                        self.segment,
                        destination.name()
                    )
                }
                None => {}
            }
        }
        found.others = others.into_iter().collect();
        Ok(found)
    }

    /// The options that recover to it and to no other of its name.
    pub(super) fn target(&self, name: &str, found: &Found) -> Vec<String> {
        let at =
            |lsn: Lsn| vec![format!("--target-timeline={}", self.timeline), format!("--target-lsn={lsn}")];
        let lineage = found.lineage.iter().flat_map(|id| ["--lineage".to_owned(), id.to_string()]);
        let point = match found.lsn {
            // Where no name is stored, the end of its record leads to it.
            None => [at(self.end), vec!["--target-exclusive".to_owned()]].concat(),
            Some(lsn) if !found.others.is_empty() => at(lsn),
            Some(_) if name.starts_with('-') => vec![format!("--target-name={name}")],
            Some(_) => vec!["--target-name".to_owned(), name.to_owned()],
        };
        lineage.chain(point).collect()
    }
}

/// The restore points of a name that other lineages of the cluster have. One that a lineage has from before its fork is its parent's.
async fn in_other_lineages(
    destination: &Destination,
    lineages: &[Lineage],
    name: &str,
) -> anyhow::Result<Vec<OtherPoint>> {
    let archives: Vec<WalArchive> =
        lineages.iter().map(|lineage| destination.repository.wal(lineage)).collect();
    let mut others = Vec::new();
    for archive in archives.iter().filter(|archive| archive.lineage().id != destination.lineage.id) {
        let lineage = archive.lineage().id;
        for PointRef { timeline, lsn, .. } in archive.points_named(name).await?.points {
            let end = Lsn(lsn.0.saturating_add(1));
            let inherits =
                |archive: &WalArchive, from: &WalArchive| archive.shares(from.lineage().id, timeline, end);
            let of_a_parent = archives.iter().any(|parent| inherits(archive, parent));
            if !of_a_parent && !inherits(&destination.archive(), archive) {
                others.push(OtherPoint { lsn, timeline, lineage });
            }
        }
    }
    Ok(others)
}

#[cfg(test)]
mod tests {
    use walpoint_base::SegmentSize;

    use super::*;

    #[test]
    fn the_command_names_one_point_of_one_lineage() {
        let (timeline, lsn) = (TimelineId::new(3).unwrap(), Lsn(0x0300_0060));
        let (end, time) = (Lsn(0x0300_00C8), PgTimestamp(0));
        let segment = SegmentNo(3).name(timeline, SegmentSize::new(16 << 20).unwrap());
        let created = Created { timeline, end, segment, time };
        let lineage: LineageId = "7-2".parse().unwrap();
        let other = OtherPoint { timeline, lsn: Lsn(64), lineage };
        let found = |lsn, others| Found { lsn, time: None, others, lineage: None };
        let target = |name: &str, lsn, others| created.target(name, &found(lsn, others));
        assert_eq!(target("a b", Some(lsn), vec![]), ["--target-name", "a b"]);
        assert_eq!(target("-a", Some(lsn), vec![]), ["--target-name=-a"]);
        assert_eq!(target("a", Some(lsn), vec![other]), ["--target-timeline=3", "--target-lsn=0/3000060"]);
        let crossing = ["--target-timeline=3", "--target-lsn=0/30000C8", "--target-exclusive"];
        assert_eq!(target("a", None, vec![]), crossing);

        let several = |others| {
            let found = Found { lsn: Some(lsn), time: None, others, lineage: Some(lineage) };
            created.target("a", &found).join(" ")
        };
        assert_eq!(several(vec![]), "--lineage 7-2 --target-name a");
        assert_eq!(several(vec![other]), "--lineage 7-2 --target-timeline=3 --target-lsn=0/3000060");
    }
}
