//! Whether a segment belongs behind what is stored before it, and before what is stored behind it.
//!
//! A neighbor that this process stored needs no look: both came out of the same `pg_wal`. Any other is compared with the file
//! in `pg_wal`, by hash, where there is one, and otherwise by the records on both sides of the boundary. That takes one ranged request for each neighbor, once: after the first segment of
//! a timeline each finds the one before it known.

use std::path::Path;

use walpoint_base::chain::{ChainEnd, ChainFacts, Link};
use walpoint_base::{SegmentFacts, SegmentName, SegmentSize, TimelineHistory};
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
    let before = walpoint_base::SegmentNo(number.0.checked_sub(1)?);
    let last_byte = number.start(size) - 1;
    let timeline = history.map_or(name.timeline, |history| history.timeline_at(last_byte));
    Some(before.name(timeline, size))
}

/// Segments looked through for one that shows whose the WAL is: more than are uploaded ahead of PostgreSQL.
const LOOKED_THROUGH: usize = 64;

/// Refuses a segment that does not belong to the server whose WAL is stored around it. `sound`: what was read of it is all there
/// is, and shows what it continues. `history`: of its timeline. `wal`: the
/// directory it lies in.
///
/// Where the segment before it is not stored and waits in the same directory, the one before that one counts, and so on:
/// nothing is stored that follows what was refused.
pub(super) async fn admit(
    target: &Target,
    archive: &WalArchive,
    cluster: &Identity,
    (facts, sound): (&SegmentFacts, bool),
    history: Option<&TimelineHistory>,
    wal: &Path,
) -> Result<(), TargetError> {
    let (lineage, size, timeline) = (archive.lineage().id, facts.size, facts.name.timeline);
    let known = |name: SegmentName| target.known(lineage, |known| known.vouches_for(name));
    let split = |what: String| Err(TargetError::from(SplitBrain::new(archive, timeline, what)));
    let judge = async |name: SegmentName| -> Result<Option<(Comparison, ChainFacts)>, TargetError> {
        let Some(header) = archive.header(name).await? else { return Ok(None) };
        if header.damaged {
            return Ok(Some((Comparison::Unknown, ChainFacts { end: ChainEnd::UNKNOWN, ..header.chain })));
        }
        let compared = match identity::is_finished(wal, name) {
            true => identity::content(archive, cluster, wal, name, header.hash).await,
            false => Comparison::Unknown,
        };
        Ok(Some((compared, header.chain)))
    };
    let mut next = before(facts.name, history, size);
    if next.is_none_or(known) {
        return Ok(());
    }
    for distance in 0..LOOKED_THROUGH {
        let Some(name) = next.filter(|name| !known(*name)) else { break };
        let Some((compared, chain)) = judge(name).await? else {
            if !identity::is_finished(wal, name) {
                break;
            }
            next = before(name, history, size);
            continue;
        };
        let link = if distance == 0 && sound { chain.end.link(&facts.chain) } else { Link::Continues };
        match (compared, link) {
            (Comparison::Other(what), _) => return split(what),
            (Comparison::Unknown, Link::Broken(found)) => {
                return split(format!(
                    "segment {} does not continue {name}, which is stored: {found}",
                    facts.name
                ));
            }
            (Comparison::Same, Link::Broken(found)) => tracing::error!(
                file = %facts.name,
                "it does not continue {name}, though both are this server's: {found}; recovery cannot pass it. HINT: take a new \
                 backup"
            ),
            _ => {}
        }
        break;
    }
    let after = facts.name.number(size).map(|number| number.next().name(timeline, size));
    if let Some(after) = after.filter(|name| !known(*name))
        && let Some((compared, chain)) = judge(after).await?
    {
        let link = if sound { facts.chain.end.link(&chain) } else { Link::Continues };
        match (compared, link) {
            (Comparison::Other(what), _) => return split(what),
            (Comparison::Unknown, Link::Broken(found)) => {
                return split(format!(
                    "segment {after}, which is stored, does not continue {}: {found}",
                    facts.name
                ));
            }
            _ => {}
        }
    }
    Ok(())
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
