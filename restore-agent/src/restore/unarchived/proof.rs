//! Whether a segment that no archive has continues the archive's last one: proven by something of both edges that was
//! compared, never by their names. A whole segment that the archive has counts first, because recovery uses it. An incomplete copy it does
//! not use where the plan ends before it: that only must not contradict the file.

use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use walpoint_base::chain::{ChainEnd, ChainFacts, Link};
use walpoint_base::{SegmentFacts, SegmentName, SegmentNo, TimelineHistory};
use walpoint_pg::wal::{WalIdentity, same_records};
use walpoint_plan::restore::{SegmentDecoder, SegmentRange};
use walpoint_repo::wal::{WalArchive, WalCopies};
use walpoint_storage::RepoError;

use super::content::{inspect, start};
use crate::decoder::WalDecoder;
use crate::plan::Planned;
use crate::restore::reach;
use crate::restore::stored::sound;

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

/// Why a segment is not replayed.
pub(super) struct Unfit {
    pub(super) why: String,
    /// Whether the archive has something else of it.
    pub(super) is_contradicted: bool,
}

/// Whether a segment continues what ends there, and the archive has nothing else of it: what it says, and what is wrong behind its last
/// valid record; else why it is not replayed.
pub(super) async fn judge(
    copies: &WalCopies,
    planned: &Planned,
    name: SegmentName,
    path: &Path,
    history: Option<&TimelineHistory>,
    end: &ChainEnd,
) -> anyhow::Result<Result<(SegmentFacts, Option<String>), Unfit>> {
    let unfit = |why, is_contradicted| Ok(Err(Unfit { why, is_contradicted }));
    match continues(copies, planned, name, path, history, end).await? {
        Err(why) => unfit(why, false),
        Ok(found) => match contradicted(copies, path, &found.0).await? {
            Some(why) => unfit(why, true),
            None => Ok(Ok(found)),
        },
    }
}

/// Whether a segment continues what ends there.
async fn continues(
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

/// Why a file is not the segment of which an archive has an incomplete copy, if there is one that has other records. A copy with fewer of
/// them is the beginning of the file, and one with more of the same goes on from it.
async fn contradicted(
    copies: &WalCopies,
    path: &Path,
    facts: &SegmentFacts,
) -> anyhow::Result<Option<String>> {
    for archive in copies.archives() {
        if !agrees(archive, path, facts).await? {
            let (name, repository) = (facts.name, archive.repository().name());
            return Ok(Some(format!(
                "repository \"{repository}\" has an incomplete copy of \"{name}\" that contradicts {}",
                path.display()
            )));
        }
    }
    Ok(None)
}

/// Whether an archive's incomplete copies say nothing else than a file, as far as both have records. One that is damaged says nothing.
async fn agrees(archive: &WalArchive, path: &Path, facts: &SegmentFacts) -> anyhow::Result<bool> {
    let name = facts.name;
    let stored = match archive.get_incomplete(name).await {
        Err(RepoError::Corrupt { .. }) if !archive.contradicting_copies(name).await?.is_empty() => {
            return Ok(false);
        }
        stored => sound(archive, stored)?,
    };
    let Some(stored) = stored else { return Ok(true) };
    let decoder: Arc<dyn SegmentDecoder> = Arc::new(WalDecoder);
    let Some(until) = sound(archive, archive.copied_until(name, &decoder).await)? else { return Ok(true) };
    let length = usize::try_from(until.min(facts.end).since(start(name, facts.size))).unwrap_or(usize::MAX);
    let file = path.to_owned();
    let compared = tokio::task::spawn_blocking(move || -> std::io::Result<bool> {
        let mut ours = Vec::new();
        reach::plain(&file)?.read_to_end(&mut ours)?;
        Ok(same_records(name, &ours, &stored.content, length))
    });
    compared.await?.with_context(|| format!("could not read \"{}\"", path.display()))
}

#[cfg(test)]
mod tests {
    use walpoint_base::{WalFileName, durable};
    use walpoint_storage::store::StoreSettings;

    use super::*;
    use crate::wal::testing::{archive, records_of, segment, size};

    fn content(name: SegmentName, records: &[u8]) -> Vec<u8> {
        let mut content = records_of(name, records);
        content.resize(size().as_usize(), 0);
        content
    }

    /// Why a file with the records 5 and 6 is none, where the archive has these incomplete copies.
    async fn contradicted_by(copies: &[&[u8]]) -> Option<String> {
        let (dir, name) = (tempfile::tempdir().unwrap(), segment(1, 5));
        let store = dir.path().join("store");
        std::fs::create_dir(&store).unwrap();
        let wal = archive(&StoreSettings::at(store.to_str().unwrap())).await;
        for copy in copies {
            wal.put_file(WalFileName::Partial(name), content(name, copy)).await.unwrap();
        }
        let path = dir.path().join(name.to_string());
        durable::create(&path, &content(name, &[5, 6])).unwrap();
        let (facts, _) = inspect(name, &path, None).unwrap().unwrap();
        assert_eq!(facts.records, 2);
        contradicted(&WalCopies::new(wal, []), &path, &facts).await.unwrap()
    }

    #[tokio::test]
    async fn an_incomplete_copy_rules_out_only_a_file_that_it_contradicts() {
        let agree: [&[&[u8]]; 6] = [&[], &[&[]], &[&[5]], &[&[5, 6]], &[&[5, 6, 7]], &[&[5], &[5, 6, 7]]];
        for agree in agree {
            assert_eq!(contradicted_by(agree).await, None, "{agree:?}");
        }
        let contradict: [&[&[u8]]; 4] = [&[&[8]], &[&[5, 8]], &[&[5], &[5, 8]], &[&[5, 6], &[5, 8]]];
        for contradict in contradict {
            let why = contradicted_by(contradict).await;
            let says = "an incomplete copy of \"000000010000000000000005\" that contradicts";
            assert!(why.as_ref().is_some_and(|why| why.contains(says)), "{contradict:?}: {why:?}");
        }
    }
}
