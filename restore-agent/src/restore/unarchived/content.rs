//! What the content of a segment in a `pg_wal` says: its facts up to its last valid record, and what its replay needs and
//! creates.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use anyhow::Context;
use walpoint_base::facts::SegmentMarks;
use walpoint_base::{
    CreatedTablespace, Lsn, SegmentFacts, SegmentName, SegmentSize, TimelineHistory, WalFileName,
};
use walpoint_pg::wal::{Inspector, WalError};
use walpoint_plan::restore::{RequiredSettings, SegmentDecoder, SegmentRange};
use walpoint_repo::wal::WalCopies;

use crate::decoder::WalDecoder;
use crate::restore::reach;

/// A segment is read in pieces of this length.
const PIECE: usize = 1 << 20;

/// A segment that no archive has, and what its content says.
pub(super) struct UnarchivedSegment {
    pub(super) facts: SegmentFacts,
    pub(super) path: PathBuf,
}

pub(super) fn start(name: SegmentName, size: SegmentSize) -> Lsn {
    name.number(size).map_or(Lsn::INVALID, |number| number.start(size))
}

/// What a segment's content says up to its last valid record, and what is wrong behind that, if anything is: PostgreSQL takes
/// a record that was torn for the end of WAL. The error says why it is no segment.
pub(in crate::restore) fn inspect(
    name: SegmentName,
    path: &Path,
    history: Option<&TimelineHistory>,
) -> anyhow::Result<Result<(SegmentFacts, Option<String>), String>> {
    let context = || format!("could not read \"{}\"", path.display());
    Ok(match read(name, path, history, None).with_context(context)? {
        Ok(facts) => Ok((facts, None)),
        Err(error @ WalError::Damaged { at, .. }) => {
            let cut = read(name, path, history, Some(at)).with_context(context)?;
            cut.map(|facts| (facts, Some(error.to_string()))).map_err(|error| error.to_string())
        }
        Err(error) => Err(error.to_string()),
    })
}

/// The same of a file that is taken for zeros from a position on.
fn read(
    name: SegmentName,
    path: &Path,
    history: Option<&TimelineHistory>,
    until: Option<Lsn>,
) -> io::Result<Result<SegmentFacts, WalError>> {
    let mut file = reach::plain(path)?;
    let length = file.metadata()?.len();
    let start = SegmentSize::new(length).map_or(Lsn::INVALID, |size| start(name, size));
    let keep = until.map_or(length, |until| until.since(start));
    let mut inspector = Inspector::new(name, length, history);
    let (mut piece, mut at) = (vec![0; PIECE], 0);
    loop {
        let read = file.read(&mut piece)?;
        if read == 0 {
            return Ok(inspector.finish());
        }
        let piece = piece.get_mut(..read).unwrap_or_default();
        let kept = usize::try_from(keep.saturating_sub(at)).map_or(read, |kept| kept.min(read));
        piece.iter_mut().skip(kept).for_each(|byte| *byte = 0);
        at = at.saturating_add(u64::try_from(read).unwrap_or(u64::MAX));
        if let Err(error) = inspector.feed(piece) {
            return Ok(Err(error));
        }
    }
}

/// Whether two files have the same first bytes, so many.
pub(super) async fn same_beginning(one: &Path, other: &Path, length: u64) -> anyhow::Result<bool> {
    let (paths, context) = ([one.to_owned(), other.to_owned()], one.display().to_string());
    let compared = tokio::task::spawn_blocking(move || -> io::Result<bool> {
        let [one, other] = paths;
        let (mut one, mut other) = (reach::plain(&one)?.take(length), reach::plain(&other)?.take(length));
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        loop {
            ours.clear();
            theirs.clear();
            one.by_ref().take(PIECE as u64).read_to_end(&mut ours)?;
            other.by_ref().take(PIECE as u64).read_to_end(&mut theirs)?;
            if ours != theirs || ours.is_empty() {
                return Ok(ours == theirs);
            }
        }
    });
    compared.await?.with_context(|| format!("could not compare \"{context}\""))
}

/// Tablespaces that replay of these segments creates, which follow the archive's last one, and the settings that it needs.
pub(super) async fn effects(
    copies: &WalCopies,
    range: SegmentRange,
    segments: Vec<UnarchivedSegment>,
) -> anyhow::Result<(Vec<CreatedTablespace>, RequiredSettings)> {
    let size = copies.first().lineage().segment_size;
    let last = range.last.name(range.timeline, size);
    let bears = |marks: &SegmentMarks| marks.tablespace || marks.parameters;
    let crosses = copies.header(last).await?.is_some_and(|header| bears(&header.marks));
    if segments.is_empty() || (!crosses && segments.iter().all(|one| !bears(&one.facts.marks))) {
        return Ok((Vec::new(), RequiredSettings::default()));
    }
    let before = copies.get(WalFileName::Segment(last)).await?;
    let work = move || {
        let undecodable = |what: String| anyhow::anyhow!("WAL after \"{last}\" cannot be decoded: {what}");
        let (mut search, mut settings) = (WalDecoder.tablespaces(), WalDecoder.required());
        if let Some(file) = before {
            search.feed(last, &file.content).map_err(undecodable)?;
            settings.feed(last, &file.content).map_err(undecodable)?;
        }
        let (mut found, mut required) = (Vec::new(), RequiredSettings::default());
        for UnarchivedSegment { facts, path } in segments {
            let mut content = Vec::new();
            let read = reach::plain(&path).and_then(|mut file| file.read_to_end(&mut content));
            read.with_context(|| path.display().to_string())?;
            if !facts.whole {
                let keep = facts.end.since(start(facts.name, size));
                content.truncate(usize::try_from(keep).unwrap_or(usize::MAX));
                content.resize(usize::try_from(size.bytes())?, 0);
            }
            found.extend(search.feed(facts.name, &content).map_err(undecodable)?);
            for (_, one) in settings.feed(facts.name, &content).map_err(undecodable)? {
                required = required.and(one);
            }
        }
        Ok((found, required))
    };
    tokio::task::spawn_blocking(work).await?
}

#[cfg(test)]
mod tests {
    use walpoint_base::durable;

    use super::*;

    #[tokio::test]
    async fn files_are_compared_as_far_as_both_have_records() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, content: &[u8]| {
            let path = dir.path().join(name);
            durable::create(&path, content).unwrap();
            path
        };
        let (mut long, length) = (vec![7; 2 * PIECE + 100], 2 * PIECE as u64 + 50);
        let whole = file("whole", &long);
        long[2 * PIECE + 50..].fill(0);
        let cut = file("cut", &long);
        long[2 * PIECE + 49] = 8;
        let other = file("other", &long);
        assert!(same_beginning(&whole, &cut, length).await.unwrap());
        assert!(!same_beginning(&whole, &cut, length + 1).await.unwrap());
        assert!(!same_beginning(&whole, &other, length).await.unwrap());
        assert!(!same_beginning(&file("short", b"7"), &whole, length).await.unwrap());
    }
}
