//! WAL in the `pg_wal` of a data directory that is repaired or replaced, or that an earlier restore of it kept or moved aside, which comes
//! after the place at which a recovery to the end of WAL would end, and which that recovery does not replay: rows that were committed
//! there would be missing without a word.
//!
//! A new primary that crashes in its first segment leaves that: its timeline's history may be in the archive, and no segment of it; during
//! an outage of the archive not even that. [`Recovery::verdict`] decides what a file is, from names, histories and positions alone:
//!
//! | the file is of | it is |
//! |---|---|
//! | the timeline that recovery is asked for, which it can continue | [`super::unarchived`]'s: record by record, or said why not |
//! | the same, and recovery ends where an incomplete copy does, or where that timeline begins | behind |
//! | an ancestor of it, from which the path has more than is replayed | behind |
//! | a timeline that left that one at the end or later | behind |
//! | a timeline that left it before, and that the archive is yet to hear of | of a younger branch |
//! | any other: an older branch, what the path left behind, another server's of the same number | beside |
//!
//! A timeline counts only if the archive knows it or its history waits to be archived: a copy that archives nothing went its own way.
//! Where a timeline was named, the branches that left it do not count either.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use walpoint_base::{
    Lsn, RecoveryTarget, SegmentName, SegmentSize, TimelineHistory, TimelineId, WalFileName,
};
use walpoint_plan::restore::Signal;
use walpoint_storage::RepoError;

use super::stored::{NotStored, Remains};
use super::unarchived::{Replayed, continued_from, inspect};
use crate::plan::Planned;

/// Where recovery would end.
#[derive(Debug)]
struct Recovery {
    /// The path that was asked for.
    history: TimelineHistory,
    /// Up to where it is replayed.
    end: Lsn,
    /// Whether recovery goes on from there to what `pg_wal` has of the same timeline.
    goes_on: bool,
    /// Whether the newest timeline was asked for, and not one by its number.
    latest: bool,
}

/// What is known of a timeline of which `pg_wal` holds WAL.
#[derive(Debug)]
struct Branch {
    /// Where it comes from.
    history: TimelineHistory,
    known: Known,
}

/// How a timeline is known to the archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Known {
    /// Its history is there.
    Archived,
    /// Its history waits in `pg_wal` to be archived.
    Waits,
    /// Neither.
    Unknown,
    /// The archive has another history of that number: another server's timeline.
    Differs,
}

/// What a file of WAL is to a recovery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// Nothing that was asked for.
    Beside,
    /// It goes on where the recovery would end.
    Behind,
    /// It is of a younger timeline than any that the archive knows.
    Younger,
}

impl Recovery {
    /// Judges a file of segment `name`, whose last valid record ends at `end`.
    fn verdict(&self, branch: &Branch, name: WalFileName, end: Lsn, size: SegmentSize) -> Verdict {
        let Some((segment, number)) = name.segment().and_then(|name| Some((name, name.number(size)?))) else {
            return Verdict::Beside;
        };
        let (timeline, leaf) = (segment.timeline, self.history.timeline());
        let has_more = end > self.end && end > number.start(size);
        let behind = |is: bool| if is && has_more { Verdict::Behind } else { Verdict::Beside };
        if branch.known == Known::Differs {
            return Verdict::Beside;
        }
        if timeline == leaf {
            return behind(!self.goes_on || matches!(name, WalFileName::Partial(_)));
        }
        if self.history.contains(timeline) {
            let until = self.history.served_until(timeline, number, size);
            return behind(until.is_some_and(|until| until > self.end));
        }
        if !self.latest || branch.known == Known::Unknown {
            return Verdict::Beside;
        }
        let before = Lsn(self.end.0.saturating_sub(1));
        let descends = branch.history.of_ancestor(leaf).as_ref() == Some(&self.history)
            && branch.history.timeline_at(before) == self.history.timeline_at(before);
        if descends {
            return behind(true);
        }
        let own = branch.history.begin_of(timeline).is_some_and(|begin| end > begin);
        match own && branch.known == Known::Waits && timeline > leaf {
            true => Verdict::Younger,
            false => Verdict::Beside,
        }
    }
}

/// What recovery would leave out.
#[derive(Debug)]
pub(super) struct Behind {
    file: WalFileName,
    path: PathBuf,
    younger: bool,
    end: Lsn,
    first: First,
}

/// What has to be archived before the file itself.
#[derive(Debug)]
enum First {
    Nothing,
    /// What waits in the `pg_wal` of the data directory.
    Waiting,
    /// The history of its timeline, from what an earlier restore kept.
    History(PathBuf),
}

/// A file that a recovery to the end of WAL would leave out. `latest`: whether the newest timeline was asked for; `replayed`: what
/// recovery continues with.
pub(super) async fn find(
    found: &NotStored,
    planned: &Planned,
    latest: bool,
    replayed: &[Replayed],
) -> anyhow::Result<Option<Behind>> {
    let (plan, size) = (&planned.plan, planned.lineage.segment_size);
    if plan.target != RecoveryTarget::Latest || plan.signal != Signal::Recovery {
        return Ok(None);
    }
    let leaf = plan.leaf;
    let history = archived(found, leaf).await?.0.unwrap_or_else(|| TimelineHistory::root(leaf));
    let goes_on = continued_from(plan, size).is_some();
    let recovery = Recovery { history, end: plan.end(), goes_on, latest };
    for remains in [&found.here].into_iter().chain(&found.earlier) {
        if let Some(mut behind) = in_one(found, remains, planned, &recovery, replayed).await? {
            let history = WalFileName::History(behind.file.timeline());
            behind.first = match std::ptr::eq(remains, &found.here) {
                true if !remains.waiting.is_empty() => First::Waiting,
                false if remains.waiting.contains(&history) => {
                    First::History(remains.directory.join(history.to_string()))
                }
                _ => First::Nothing,
            };
            return Ok(Some(behind));
        }
    }
    Ok(None)
}

/// The same in one directory.
async fn in_one(
    found: &NotStored,
    remains: &Remains,
    planned: &Planned,
    recovery: &Recovery,
    replayed: &[Replayed],
) -> anyhow::Result<Option<Behind>> {
    let size = planned.lineage.segment_size;
    let mut branches: BTreeMap<TimelineId, Option<Branch>> = BTreeMap::new();
    // The first segment of the youngest timeline has what the others have in its segment, too.
    let mut files: Vec<(WalFileName, SegmentName)> = remains
        .files
        .iter()
        .filter_map(|file| match file {
            WalFileName::Segment(name) | WalFileName::Partial(name) => Some((*file, *name)),
            WalFileName::History(_) | WalFileName::Backup(..) => None,
        })
        .collect();
    files
        .sort_by_key(|(file, name)| (matches!(file, WalFileName::Partial(_)), Reverse(name.timeline), *name));
    for (file, name) in files {
        if replayed.iter().any(|replayed| file == WalFileName::Segment(replayed.name)) {
            continue;
        }
        let timeline = name.timeline;
        let branch = match branches.entry(timeline) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => new.insert(branch(found, remains, timeline).await?),
        };
        let Some(branch) = branch else { continue };
        // Its content is read only where it may matter.
        let furthest = name.number(size).map_or(Lsn::INVALID, |number| number.end(size));
        if recovery.verdict(branch, file, furthest, size) == Verdict::Beside {
            continue;
        }
        let path = remains.directory.join(file.to_string());
        let Some(end) = end_of(name, &path, &branch.history, planned).await? else { continue };
        let verdict = recovery.verdict(branch, file, end, size);
        if verdict != Verdict::Beside {
            let younger = verdict == Verdict::Younger;
            return Ok(Some(Behind { file, path, younger, end: recovery.end, first: First::Nothing }));
        }
    }
    Ok(None)
}

/// Where the last valid record of a file ends; `None` if it is no WAL of that name and of the plan's cluster.
async fn end_of(
    name: SegmentName,
    path: &Path,
    history: &TimelineHistory,
    planned: &Planned,
) -> anyhow::Result<Option<Lsn>> {
    let (file, history) = (path.to_owned(), history.clone());
    let inspected = tokio::task::spawn_blocking(move || inspect(name, &file, Some(&history))).await??;
    let own = planned.lineage.system_id();
    Ok(inspected.ok().filter(|(facts, _)| facts.system_id == own).map(|(facts, _)| facts.end))
}

/// What is known of a timeline; `None` if nothing says where it comes from.
async fn branch(
    found: &NotStored,
    remains: &Remains,
    timeline: TimelineId,
) -> anyhow::Result<Option<Branch>> {
    let name = WalFileName::History(timeline);
    let (archived, is_there) = archived(found, timeline).await?;
    let path = remains.directory.join(name.to_string());
    let own = match fs::read(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        read => {
            let content = read.with_context(|| format!("could not read \"{}\"", path.display()))?;
            TimelineHistory::parse(timeline, &content).ok()
        }
    };
    let first = TimelineId::FIRST == timeline;
    let history = own.or(archived).or_else(|| first.then(|| TimelineHistory::root(timeline)));
    let known = match () {
        () if remains.differ.contains(&name) => Known::Differs,
        () if is_there || first => Known::Archived,
        () if remains.waiting.contains(&name) => Known::Waits,
        () => Known::Unknown,
    };
    Ok(history.map(|history| Branch { history, known }))
}

/// The history that an archive has of a timeline, and whether there is one, which may be damaged.
async fn archived(
    found: &NotStored,
    timeline: TimelineId,
) -> anyhow::Result<(Option<TimelineHistory>, bool)> {
    match found.copies.history(timeline).await {
        Err(RepoError::Corrupt { .. }) => Ok((None, true)),
        history => {
            let history = history?;
            let is_there = history.is_some();
            Ok((history, is_there))
        }
    }
}

impl Behind {
    /// Why the directory is neither repaired nor replaced.
    pub(super) fn refusal(&self, pgdata: &Path) -> anyhow::Error {
        let timeline = self.file.timeline();
        let what = if self.younger {
            format!("is of timeline {timeline}, which is younger than any that the archive knows")
        } else {
            format!("goes on behind {}, where recovery would end, on timeline {timeline}", self.end)
        };
        let first = match &self.first {
            First::Waiting => {
                "archive what waits there with \"archive-agent run --once\", and then ".to_owned()
            }
            First::History(path) => {
                format!(
                    "archive its timeline's history with \"archive-agent push {}\", and then ",
                    path.display()
                )
            }
            First::Nothing => "archive ".to_owned(),
        };
        let directory = self.path.parent().unwrap_or(pgdata);
        let place = match directory.starts_with(pgdata) {
            true => "in its pg_wal".to_owned(),
            false => format!("in {}, from before an earlier restore,", directory.display()),
        };
        anyhow::anyhow!(
            "{}: \"{}\" {place} {what}, and no archive has it; {first}what there is of it with \"archive-agent push {}\", and run \
             the same command again; with --force recovery ends without it, and the file is kept: nothing was changed",
            pgdata.display(),
            self.file,
            self.path.display()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: SegmentSize = SegmentSize::DEFAULT;

    fn tli(id: u32) -> TimelineId {
        TimelineId::new(id).unwrap()
    }

    fn history(timeline: u32, text: &str) -> TimelineHistory {
        TimelineHistory::parse(tli(timeline), text.as_bytes()).unwrap()
    }

    /// What a recovery along a path that ends at a position makes of a file whose records end at another one.
    struct Case {
        says: &'static str,
        path: TimelineHistory,
        ends: u64,
        goes_on: bool,
        latest: bool,
        branch: (TimelineHistory, Known),
        file: &'static str,
        until: u64,
        is: Verdict,
    }

    #[test]
    fn what_comes_after_the_end_is_told_from_what_lies_beside_it() {
        use Known::{Archived, Differs, Unknown, Waits};
        use Verdict::{Behind, Beside, Younger};
        let boundary = || history(2, "1\t0/9000000\tx\n");
        let inside = || history(2, "1\t0/9000090\tx\n");
        let root = || TimelineHistory::root(tli(1));
        let case = |says, (path, ends, goes_on, latest), branch, file, until, is| Case {
            says,
            path,
            ends,
            goes_on,
            latest,
            branch,
            file,
            until,
            is,
        };
        let (end, fork) = (0x900_0000, 0x900_0090);
        let nine = |timeline: u32| match timeline {
            1 => "000000010000000000000009",
            2 => "000000020000000000000009",
            _ => "000000030000000000000009",
        };
        let cases = [
            case(
                "the timeline that is asked for, which recovery can continue",
                (boundary(), end, true, true),
                (boundary(), Archived),
                nine(2),
                end + 999,
                Beside,
            ),
            case(
                "it begins in a segment that the parent has whole",
                (inside(), fork, false, true),
                (inside(), Archived),
                nine(2),
                fork + 999,
                Behind,
            ),
            case(
                "the same, named",
                (inside(), fork, false, false),
                (inside(), Archived),
                nine(2),
                fork + 999,
                Behind,
            ),
            case(
                "nothing of its own",
                (inside(), fork, false, true),
                (inside(), Archived),
                nine(2),
                fork,
                Beside,
            ),
            case(
                "another server's of the same number",
                (inside(), fork, false, true),
                (inside(), Differs),
                nine(2),
                fork + 999,
                Beside,
            ),
            case(
                "a later segment without a record",
                (inside(), fork, false, true),
                (inside(), Archived),
                "00000002000000000000000A",
                0xA00_0000,
                Beside,
            ),
            case(
                "what the path left behind",
                (inside(), fork, false, true),
                (root(), Archived),
                "00000001000000000000000A",
                0xA00_0999,
                Beside,
            ),
            case(
                "and in the segment of the fork",
                (inside(), fork, false, true),
                (root(), Archived),
                nine(1),
                fork + 999,
                Beside,
            ),
            case(
                "an incomplete copy has less",
                (root(), fork, false, true),
                (root(), Archived),
                nine(1),
                fork + 999,
                Behind,
            ),
            case(
                "an incomplete copy has the same",
                (root(), fork, false, true),
                (root(), Archived),
                nine(1),
                fork,
                Beside,
            ),
            case(
                "a history that waits, left inside the next segment",
                (root(), end, true, true),
                (inside(), Waits),
                nine(2),
                fork + 999,
                Behind,
            ),
            case(
                "left at the end",
                (root(), end, true, true),
                (boundary(), Waits),
                nine(2),
                end + 999,
                Behind,
            ),
            case(
                "the parent's last segment",
                (root(), end, true, true),
                (root(), Archived),
                "000000010000000000000009.partial",
                fork,
                Behind,
            ),
            case(
                "timeline 1 was named",
                (root(), end, true, false),
                (inside(), Waits),
                nine(2),
                fork + 999,
                Beside,
            ),
            case(
                "a copy that archives nothing",
                (root(), end, true, true),
                (inside(), Unknown),
                nine(2),
                fork + 999,
                Beside,
            ),
            case(
                "two promotions",
                (root(), end, true, true),
                (history(3, "1\t0/9000090\tx\n2\t0/9000120\tx\n"), Waits),
                nine(3),
                fork + 999,
                Behind,
            ),
            case(
                "two promotions, of which the archive knows one",
                (inside(), fork, false, true),
                (history(3, "1\t0/9000090\tx\n2\t0/9000120\tx\n"), Waits),
                nine(3),
                fork + 999,
                Behind,
            ),
            case(
                "and of the one between them",
                (history(3, "1\t0/9000000\tx\n2\t0/A000000\tx\n"), end, false, true),
                (boundary(), Archived),
                nine(2),
                end + 999,
                Behind,
            ),
            case(
                "an older branch",
                (root(), 0xB00_0000, true, true),
                (inside(), Archived),
                "00000002000000000000000B",
                0xB00_0999,
                Beside,
            ),
            case(
                "the same, and the archive is yet to hear of it",
                (root(), 0xB00_0000, true, true),
                (inside(), Waits),
                nine(2),
                fork + 999,
                Younger,
            ),
            case(
                "a branch beside the one that is asked for",
                (history(4, "1\t0/9000090\tx\n"), fork, false, true),
                (history(3, "1\t0/9000120\tx\n"), Waits),
                nine(3),
                fork + 999,
                Beside,
            ),
            case(
                "a sibling that the archive is yet to hear of",
                (inside(), fork, false, true),
                (history(3, "1\t0/9000120\tx\n"), Waits),
                nine(3),
                fork + 999,
                Younger,
            ),
        ];
        for Case { says, path, ends, goes_on, latest, branch: (of, known), file, until, is } in cases {
            let recovery = Recovery { history: path, end: Lsn(ends), goes_on, latest };
            let branch = Branch { history: of, known };
            let found = recovery.verdict(&branch, file.parse().unwrap(), Lsn(until), SIZE);
            assert_eq!(found, is, "{says}");
        }
    }
}
