//! Whether a segment that no archive has continues the archive's last one: proven by something of both edges that was
//! compared, never by their names. What the archive has of a segment, whole or not, counts first.

use std::path::Path;

use futures_util::TryStreamExt;
use walpoint_base::chain::{ChainEnd, ChainFacts, Link};
use walpoint_base::{SegmentFacts, SegmentName, SegmentNo, TimelineHistory, WalFileName};
use walpoint_pg::wal::WalIdentity;
use walpoint_plan::restore::SegmentRange;
use walpoint_repo::wal::{WalArchive, WalCopies};
use walpoint_storage::RepoError;
use walpoint_storage::layout::WalEntry;

use super::content::{inspect, start};
use crate::plan::Planned;

/// So many segments are looked back to find the last record that starts in one.
const LOOK_BACK: u64 = 256;

/// What is known at the end of the archive's last segment.
pub(super) async fn end_of(copies: &WalCopies, range: SegmentRange) -> anyhow::Result<ChainEnd> {
    let size = copies.first().lineage().segment_size;
    let mut chain: Vec<ChainFacts> = Vec::new();
    let first = range.first.0.max(range.last.0.saturating_sub(LOOK_BACK));
    for number in (first..=range.last.0).rev().map(SegmentNo) {
        let header = copies.header(number.name(range.timeline, size)).await?;
        let Some(header) = header.filter(|header| !header.damaged) else { break };
        chain.push(header.chain);
        if header.chain.end.last.is_some() {
            break;
        }
    }
    Ok(chain.iter().rev().fold(ChainEnd::UNKNOWN, |end, next| end.after(next)))
}

/// Whether a segment continues what ends there: what it says, and what is wrong behind its last valid record; else why it is
/// not replayed.
pub(super) async fn judge(
    copies: &WalCopies,
    planned: &Planned,
    name: SegmentName,
    path: &Path,
    history: Option<&TimelineHistory>,
    end: &ChainEnd,
) -> anyhow::Result<Result<(SegmentFacts, Option<String>), String>> {
    for archive in copies.archives() {
        match archive.header(name).await {
            Ok(None) => {}
            Ok(Some(_)) | Err(RepoError::Corrupt { .. }) => {
                return Ok(Err(format!(
                    "the archive has another copy of \"{name}\", which recovery uses first"
                )));
            }
            Err(error) => return Err(error.into()),
        }
        if let Some(copy) = incomplete(archive, name).await? {
            return Ok(Err(format!(
                "the archive has an incomplete copy of \"{name}\", {copy}, which recovery uses first"
            )));
        }
    }
    let (file, history) = (path.to_owned(), history.cloned());
    let inspected = tokio::task::spawn_blocking(move || inspect(name, &file, history.as_ref())).await??;
    let (facts, damage) = match inspected {
        Ok(found) => found,
        Err(why) => return Ok(Err(why)),
    };
    let lineage = &planned.lineage;
    let identity = WalIdentity {
        system_id: lineage.system_id(),
        major: lineage.major,
        segment_size: lineage.segment_size,
    };
    if let Err(foreign) = identity.check(&facts) {
        return Ok(Err(foreign.to_string()));
    }
    Ok(match end.link(&facts.chain) {
        Link::Broken(fault) => Err(format!("\"{name}\" does not continue the archive: {fault}")),
        Link::Reset => Err(format!("\"{name}\" was written by pg_resetwal")),
        // A record that is longer than a segment ends in a later one.
        Link::Continues
            if facts.end == start(name, lineage.segment_size)
                && !(facts.whole && facts.chain.is_passed_through()) =>
        {
            Err(format!("no record ends in \"{name}\""))
        }
        Link::Continues if !is_proven(end, &facts.chain) => {
            Err(format!("it is not proven that \"{name}\" continues the archive"))
        }
        Link::Continues => Ok((facts, damage)),
    })
}

/// Whether something of both edges was compared.
fn is_proven(end: &ChainEnd, next: &ChainFacts) -> bool {
    let begin = &next.begin;
    let crossing = begin.carried > 0 && end.carried == Some(begin.carried);
    end.last.is_some() && (begin.previous.is_some() || crossing)
}

/// A copy of a segment that does not reach its end.
async fn incomplete(archive: &WalArchive, name: SegmentName) -> anyhow::Result<Option<String>> {
    let mut entries = archive.list(name.timeline, Some(name));
    while let Some((entry, object)) = entries.try_next().await? {
        match entry {
            WalEntry::Partial(found, _) | WalEntry::Ended(found, ..) | WalEntry::Slice(found, ..)
                if found == name =>
            {
                return Ok(Some(object.key.to_string()));
            }
            WalEntry::File(WalFileName::Segment(found)) if found > name => return Ok(None),
            _ => {}
        }
    }
    Ok(None)
}
