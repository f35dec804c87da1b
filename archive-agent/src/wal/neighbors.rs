//! Whether a segment belongs behind what is stored before it, and before what is stored behind it.
//!
//! A neighbor that this process stored needs no look: both came out of the same `pg_wal`. Any other is compared with the file
//! in `pg_wal`, by hash, where there is one, and otherwise by the records on both sides of the boundary. That takes one ranged
//! request for each: after the first segment of a timeline each finds the one before it known, and asks for the one behind.

use std::path::Path;

use walpoint_base::chain::{ChainEnd, ChainFacts, Link};
use walpoint_base::{SegmentFacts, SegmentName, SegmentNo, SegmentSize, TimelineHistory};
use walpoint_pg::wal::Identity;
use walpoint_repo::wal::WalArchive;

use super::identity::{self, Comparison, SplitBrain};
use super::target::{Target, TargetError};

/// The segment before one: on its own timeline, or where that begins on the one that the byte before it belongs to.
pub(super) fn before(
    name: SegmentName,
    history: Option<&TimelineHistory>,
    size: SegmentSize,
) -> Option<SegmentName> {
    let number = name.number(size)?;
    let before = SegmentNo(number.0.checked_sub(1)?);
    let last_byte = number.start(size) - 1;
    let timeline = history.map_or(name.timeline, |history| history.timeline_at(last_byte));
    Some(before.name(timeline, size))
}

/// Segments looked through for one that shows whose the WAL is: more than are uploaded ahead of PostgreSQL.
const LOOKED_THROUGH: usize = 64;

/// A segment that is being stored, and what it is compared with.
pub(super) struct Newcomer<'a> {
    pub(super) target: &'a Target,
    pub(super) archive: &'a WalArchive,
    /// Whose it is.
    pub(super) cluster: &'a Identity,
    /// What was read of it.
    pub(super) facts: &'a SegmentFacts,
    /// Whether that is all there is, and shows what it continues.
    pub(super) sound: bool,
    /// Of its timeline.
    pub(super) history: Option<&'a TimelineHistory>,
    /// The directory it lies in.
    pub(super) wal: &'a Path,
}

/// What is stored of a neighbor: how it compares with the file in the directory, and its edges.
type Neighbor = Option<(Comparison, ChainFacts)>;

impl Newcomer<'_> {
    /// Refuses a segment that does not belong to the server whose WAL is stored around it.
    ///
    /// Where the segment before it is not stored and waits in the same directory, the one before that one counts, and so on,
    /// and as long as nothing shows whose the timeline is, those behind it as well: nothing is stored that follows what was
    /// refused. Two servers that begin at the same moment see nothing of each other, so the same is asked once more when
    /// the segment is stored and not yet acknowledged: whoever of the two looks second finds the other one's.
    pub(super) async fn admit(&self) -> Result<(), TargetError> {
        self.look_back().await?;
        // Of a timeline that is this server's, what stands in the way of the next segment is found behind this one.
        if self.has_claimed() { Ok(()) } else { self.look_forward().await }
    }

    /// Asks once more, when the segment is stored.
    pub(super) async fn confirm(&self) -> Result<(), TargetError> {
        self.look_back().await?;
        self.look_forward().await
    }

    fn has_claimed(&self) -> bool {
        let timeline = self.facts.name.timeline;
        self.target.known(self.archive.lineage().id, |known| known.has_claimed(timeline))
    }

    fn known(&self, name: SegmentName) -> bool {
        self.target.known(self.archive.lineage().id, |known| known.vouches_for(name))
    }

    fn split(&self, what: String) -> TargetError {
        SplitBrain::new(self.archive, self.facts.name.timeline, what).into()
    }

    async fn judge(&self, name: SegmentName) -> Result<Neighbor, TargetError> {
        let Some(header) = self.archive.header(name).await? else { return Ok(None) };
        if header.damaged {
            return Ok(Some((Comparison::Unknown, ChainFacts { end: ChainEnd::UNKNOWN, ..header.chain })));
        }
        let compared = match identity::is_finished(self.wal, name) {
            true => identity::content(self.archive, self.cluster, self.wal, name, header.hash).await,
            false => Comparison::Unknown,
        };
        Ok(Some((compared, header.chain)))
    }

    async fn look_back(&self) -> Result<(), TargetError> {
        let (facts, size) = (self.facts, self.facts.size);
        let mut next = before(facts.name, self.history, size);
        for distance in 0..LOOKED_THROUGH {
            let Some(name) = next.filter(|name| !self.known(*name)) else { break };
            let Some((compared, chain)) = self.judge(name).await? else {
                if !identity::is_finished(self.wal, name) {
                    break;
                }
                next = before(name, self.history, size);
                continue;
            };
            let link =
                if distance == 0 && self.sound { chain.end.link(&facts.chain) } else { Link::Continues };
            match (compared, link) {
                (Comparison::Other(what), _) => return Err(self.split(what)),
                (Comparison::Unknown, Link::Broken(found)) => {
                    let what =
                        format!("segment {} does not continue {name}, which is stored: {found}", facts.name);
                    return Err(self.split(what));
                }
                (Comparison::Same, Link::Broken(found)) => {
                    self.record_gap(name, facts.name, &found.to_string()).await?;
                }
                _ => {}
            }
            break;
        }
        Ok(())
    }

    async fn look_forward(&self) -> Result<(), TargetError> {
        let (facts, size, timeline) = (self.facts, self.facts.size, self.facts.name.timeline);
        let mut next = facts.name.number(size).map(SegmentNo::next);
        let far = if self.has_claimed() { 1 } else { LOOKED_THROUGH };
        for distance in 0..far {
            let Some(number) = next.filter(|number| !self.known(number.name(timeline, size))) else { break };
            let name = number.name(timeline, size);
            let Some((compared, chain)) = self.judge(name).await? else {
                // A backlog: one listing says whether there is anything to compare.
                let waits = distance + 1 < far && identity::is_finished(self.wal, name);
                if !waits || distance == 0 && self.archive.anything_after(timeline, number).await?.is_none() {
                    break;
                }
                next = Some(number.next());
                continue;
            };
            let link =
                if distance == 0 && self.sound { facts.chain.end.link(&chain) } else { Link::Continues };
            match (compared, link) {
                (Comparison::Other(what), _) => return Err(self.split(what)),
                (Comparison::Unknown, Link::Broken(found)) => {
                    let what =
                        format!("segment {name}, which is stored, does not continue {}: {found}", facts.name);
                    return Err(self.split(what));
                }
                (Comparison::Same, Link::Broken(found)) => {
                    self.record_gap(facts.name, name, &found.to_string()).await?;
                }
                _ => {}
            }
            break;
        }
        Ok(())
    }

    /// One server wrote both segments, and recovery cannot get from one to the other.
    async fn record_gap(
        &self,
        before: SegmentName,
        segment: SegmentName,
        what: &str,
    ) -> Result<(), TargetError> {
        self.archive.record_gap(before, segment, what).await?;
        tracing::error!(
            file = %segment,
            repository = self.target.name(),
            "it does not continue {before}, though both are this server's: {what}; recovery cannot pass it, and the gap is on \
             record. HINT: take a backup now"
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use walpoint_base::TimelineId;

    use super::*;

    #[test]
    fn the_first_segment_of_a_timeline_follows_one_of_its_parent() {
        let size = SegmentSize::DEFAULT;
        let history = TimelineHistory::parse(
            TimelineId::new(3).unwrap(),
            b"1\t0/5000060\tno recovery target specified\n2\t0/7000000\tno recovery target specified\n",
        )
        .unwrap();
        for (name, expected) in [
            ("000000030000000000000009", "000000030000000000000008"),
            ("000000030000000000000008", "000000030000000000000007"),
            ("000000030000000000000007", "000000020000000000000006"),
            ("000000030000000000000005", "000000010000000000000004"),
        ] {
            let found = before(name.parse().unwrap(), Some(&history), size).unwrap();
            assert_eq!(found.to_string(), expected, "{name}");
        }
        let first = before("000000010000000000000001".parse().unwrap(), None, size).unwrap();
        assert_eq!(first.to_string(), "000000010000000000000000");
        assert_eq!(before(first, None, size), None);
    }
}
