//! WAL in the `pg_wal` of a data directory that is repaired or replaced, or that an earlier restore of it kept or moved aside, which comes
//! after the place at which a recovery to the end of WAL would end, and which that recovery does not replay: rows that were committed
//! there would be missing without a word.
//!
//! A new primary that crashes in its first segment leaves that: its timeline's history may be in the archive, and no segment of it; during
//! an outage of the archive not even that. [`Recovery::verdict`] decides what a file is, without IO:
//!
//! | the file is of | it is |
//! |---|---|
//! | the timeline that recovery is asked for, which it can continue | [`super::unarchived`]'s: record by record, or said why not |
//! | the same, and recovery ends where an incomplete copy does, or where that timeline begins, or the archive contradicts it | behind |
//! | an ancestor of it, from which the path has more than is replayed | behind |
//! | a timeline that left that one at the end or later | behind |
//! | a timeline that left it before, and that the archive is yet to hear of | of a younger branch |
//! | any other: an older branch, what the path left behind, another server's of the same number | beside |
//!
//! A timeline counts only if the archive knows it or its history waits to be archived: a copy that archives nothing went its own way.
//! Where a timeline was named, the branches that left it do not count either, and of a directory that `rollback` took away no branch does.

mod verdict;

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use walpoint_base::{Lsn, RecoveryTarget, SegmentName, TimelineHistory, TimelineId, WalFileName};
use walpoint_plan::restore::Signal;
use walpoint_storage::RepoError;

use self::verdict::{Branch, Known, Recovery, Verdict};
use super::stored::{NotStored, Remains};
use super::unarchived::{ReplayedSegment, Unarchived, continued_from, inspect};
use crate::plan::Planned;

/// What recovery would leave out.
#[derive(Debug)]
pub(super) struct Behind {
    file: WalFileName,
    path: PathBuf,
    younger: bool,
    end: Lsn,
    first: First,
    /// Why recovery does not replay it, though it would replay WAL of that timeline.
    why: Option<String>,
}

/// What has to be archived before the file itself.
#[derive(Debug)]
enum First {
    Nothing,
    /// The data directory goes back to its place, from where a run that was interrupted moved it to. No program archives from there.
    PutBack(PathBuf),
    /// What waits in the `pg_wal` of the data directory.
    Waiting,
    /// The history of its timeline, from what an earlier restore kept.
    History(PathBuf),
}

/// A file that a recovery to the end of WAL would leave out. `latest`: whether the newest timeline was asked for; `unarchived`: what
/// recovery continues with, or why it does not.
pub(super) async fn find(
    found: &NotStored,
    planned: &Planned,
    latest: bool,
    unarchived: &Unarchived,
) -> anyhow::Result<Option<Behind>> {
    let (plan, size) = (&planned.plan, planned.lineage.segment_size);
    if plan.target != RecoveryTarget::Latest || plan.signal != Signal::Recovery {
        return Ok(None);
    }
    let leaf = plan.leaf;
    let history = archived(found, leaf).await?.0.unwrap_or_else(|| TimelineHistory::root(leaf));
    let goes_on = continued_from(plan, size).is_some() && !unarchived.contradicted;
    let recovery = Recovery { history, end: plan.end(), goes_on, latest };
    for remains in [&found.here].into_iter().chain(&found.earlier) {
        if let Some(mut behind) = in_one(found, remains, planned, &recovery, &unarchived.replayed).await? {
            let history = WalFileName::History(behind.file.timeline());
            behind.first = match std::ptr::eq(remains, &found.here) {
                true if found.aside.is_some() => First::PutBack(found.aside.clone().unwrap_or_default()),
                true if !remains.waiting.is_empty() => First::Waiting,
                false if remains.waiting.contains(&history) => {
                    First::History(remains.directory.join(history.to_string()))
                }
                _ => First::Nothing,
            };
            behind.why = unarchived.left.clone().filter(|_| unarchived.contradicted);
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
    replayed: &[ReplayedSegment],
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
            let (end, first, why) = (recovery.end, First::Nothing, None);
            return Ok(Some(Behind { file, path, younger, end, first, why }));
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
        () if remains.rolled_back => Known::RolledBack,
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
    /// Why the directory is neither repaired nor replaced. `read`: names of the repositories that were read.
    pub(super) fn refusal(&self, pgdata: &Path, read: &str) -> anyhow::Error {
        let timeline = self.file.timeline();
        let what = if self.younger {
            format!("is of timeline {timeline}, which is younger than any that the archive knows")
        } else {
            format!("continues after {}, where recovery would end, on timeline {timeline}", self.end)
        };
        let push = format!("what there is of it with \"archive-agent push {}\"", self.path.display());
        let archive = match &self.first {
            First::PutBack(aside) => format!(
                "Put the data directory, which an interrupted run moved to {}, back with \"restore-agent rollback --pgdata {}\". Then archive \
                 the WAL that is waiting there with \"archive-agent run --once\", and what there is of the file with \"archive-agent push\"",
                aside.display(),
                pgdata.display()
            ),
            First::Waiting => {
                format!(
                    "Archive the WAL that is waiting there with \"archive-agent run --once\", and then {push}"
                )
            }
            First::History(path) => {
                format!(
                    "Archive its timeline's history with \"archive-agent push {}\", and then {push}",
                    path.display()
                )
            }
            First::Nothing => format!("Archive {push}"),
        };
        let directory = self.path.parent().unwrap_or(pgdata);
        let place = match directory.starts_with(pgdata) {
            true => "in its pg_wal".to_owned(),
            false => format!("in {}, from before an earlier restore,", directory.display()),
        };
        let why = self.why.iter().map(|why| format!("\nDETAIL: {why}.")).collect::<String>();
        anyhow::anyhow!(
            "{}: \"{}\" {place} {what}, and no repository that was read ({read}) has it: nothing was changed{why}\nHINT: {archive}, and \
             run the same command again. With --discard-unarchived-wal \
             (--delta or --replace) recovery ends without it, and the file is kept.",
            pgdata.display(),
            self.file
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_refusal_names_what_was_read() {
        let file = WalFileName::Segment("000000010000000000000003".parse().unwrap());
        let path = Path::new("/data/pg_wal").join(file.to_string());
        let (end, first) = (Lsn(0x300_0000), First::Nothing);
        let behind = Behind { file, path, younger: false, end, first, why: Some("two copies differ".into()) };
        let text = behind.refusal(Path::new("/data"), "\"near\"").to_string();
        assert!(
            text.contains(
                "no repository that was read (\"near\") has it: nothing was changed\nDETAIL: two copies differ.\nHINT: "
            ),
            "{text}"
        );
    }
}
