//! WAL in the `pg_wal` of a data directory that is repaired or replaced, and in no archive. A server that crashed leaves at least its last
//! segment so: it was never complete, so it was never archived, and its rows are nowhere else. What earlier restores of the same
//! directory kept or moved aside counts too: a restore to another target, or one that was interrupted, came first.
//!
//! All of it is kept ([`super::kept`]), or moved aside with the directory. What continues the archive is put into the new `pg_wal` too, for a recovery to the end of
//! its timeline: PostgreSQL reads its own `pg_wal` when the archive says that it has no such segment, so the archive still
//! counts first. Only what is proven to continue the archive's last segment is put there, up to its last valid record, with
//! zeros behind: its records do, and that segment is the same server's ([`super::vouched`]).
//!
//! PostgreSQL archives the last one as `.partial` when it is promoted, because its status is not known; complete ones are
//! marked as waiting, if the restored server archives, and as archived otherwise.

mod content;
mod hole;
mod proof;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use walpoint_base::{
    CreatedTablespace, Lsn, RecoveryTarget, SegmentFacts, SegmentName, SegmentSize, TimelineId, WalFileName,
    archived, durable,
};
use walpoint_plan::restore::{RequiredSettings, RestorePlan, SegmentRange, Signal};
use walpoint_storage::RepoError;

pub(super) use self::content::inspect;
use self::content::{UnarchivedSegment, effects, same_beginning, start};
use self::hole::Hole;
use self::proof::{end_of, judge};
use super::kept;
use super::owners::{self, Owner};
use super::stored::NotStored;
use super::vouched;
use crate::plan::Planned;

/// Segments that are kept beyond those that are replayed: recovery ends in the next one.
const SPARE: u64 = 4;

/// What no archive has.
#[derive(Debug, Default)]
pub(super) struct Unarchived {
    /// Names of files in `pg_wal`, in order.
    pub(super) names: Vec<String>,
    /// Those of them that an archive has damaged.
    damaged: Vec<String>,
    /// Those that recovery will replay, in order; by then they are among what was kept.
    pub(super) replayed: Vec<ReplayedSegment>,
    /// Tablespaces that their replay creates.
    pub(super) creates: Vec<CreatedTablespace>,
    /// What settings their replay needs.
    pub(super) required: RequiredSettings,
    /// Why others are not replayed.
    pub(super) left: Option<String>,
    /// Whether that is because the archive has something else of a segment that its server wrote, which recovery does not replay either.
    pub(super) contradicted: bool,
    /// Damage before WAL that the same server wrote.
    pub(super) hole: Option<Hole>,
    /// What shows that those in `pg_wal` are another server's than the archive's, if anything does.
    pub(super) apart: Option<String>,
    /// What shows which stored segments are the same server's as those in `pg_wal`.
    pub(super) vouched: Vec<String>,
}

/// A segment that recovery will replay from `pg_wal`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ReplayedSegment {
    pub(super) name: SegmentName,
    /// Where its last valid record ends.
    pub(super) end: Lsn,
    whole: bool,
    /// The file, if an earlier run kept it or moved it aside; else this one does.
    kept: Option<PathBuf>,
}

impl Unarchived {
    /// Takes over what was found in a `pg_wal` and in what earlier restores kept and moved aside. `pgdata`: where the cluster is
    /// restored to; what lies in it will be kept or moved aside by this run.
    pub(super) async fn find(found: &NotStored, pgdata: &Path, planned: &Planned) -> anyhow::Result<Self> {
        // A run that was interrupted may have left less of a segment in pg_wal than an earlier one kept of it.
        let mut candidates: BTreeMap<SegmentName, Vec<PathBuf>> = BTreeMap::new();
        let mut apart = None;
        for remains in found.earlier.iter().chain([&found.here]) {
            if remains.apart.is_some() {
                apart.clone_from(&remains.apart);
                continue;
            }
            for name in &remains.files {
                if let WalFileName::Segment(name) = name {
                    candidates.entry(*name).or_default().push(remains.directory.join(name.to_string()));
                }
            }
        }
        let names = found.here.files.iter().map(ToString::to_string).collect();
        let damaged = found.here.damaged.iter().map(ToString::to_string).collect();
        let (apart_here, vouched) = (found.here.apart.clone(), found.here.vouched.clone());
        let mut unarchived = Self { names, damaged, apart: apart_here, vouched, ..Self::default() };
        if !candidates.is_empty() {
            unarchived.continue_archive(found, pgdata, planned, &candidates).await?;
        }
        unarchived.left = unarchived.left.or(apart);
        Ok(unarchived)
    }

    /// Finds out which segments continue the archive, and why others do not.
    async fn continue_archive(
        &mut self,
        found: &NotStored,
        pgdata: &Path,
        planned: &Planned,
        candidates: &BTreeMap<SegmentName, Vec<PathBuf>>,
    ) -> anyhow::Result<()> {
        let plan = &planned.plan;
        self.left = ends_before(plan);
        if self.left.is_some() {
            return Ok(());
        }
        let size = planned.lineage.segment_size;
        let Some(range) = continued_from(plan, size) else {
            self.left = Some(format!("the archive has no segment of timeline {} before it", plan.timeline));
            return Ok(());
        };
        let history = match found.copies.history(plan.timeline).await {
            // The plan stays on that timeline.
            Err(RepoError::Corrupt { .. }) => None,
            history => history?,
        };
        let mut end = end_of(&found.copies, range).await?;
        let (mut number, mut content) = (range.last.next(), Vec::new());
        let last = range.last.name(range.timeline, size);
        // Directories of the server that wrote what is replayed, and of servers that wrote other segments.
        let (mut own, mut astray) = (owned(found, last, plan.timeline).await?, BTreeSet::new());
        while let Some(paths) = candidates.get(&number.name(plan.timeline, size)) {
            let name = number.name(plan.timeline, size);
            let mut fitting: Vec<FittingSegment<'_>> = Vec::new();
            let mut is_contradicted = false;
            for path in paths.iter().filter(|path| !is_in(path, &astray)) {
                match judge(&found.copies, planned, name, path, history.as_ref(), &end).await? {
                    Ok((facts, damage)) => fitting.push(FittingSegment { facts, damage, path }),
                    Err(unfit) => {
                        is_contradicted |= unfit.is_contradicted && is_in(path, &own);
                        self.left = Some(unfit.why);
                    }
                }
            }
            // The first of those that reach furthest.
            let proven = fitting.iter().rev().filter(|one| is_in(one.path, &own));
            let Some(best) = proven.max_by_key(|one| (one.facts.whole, one.facts.end)) else {
                self.contradicted = is_contradicted;
                if let Some(one) = fitting.first().filter(|_| !is_contradicted) {
                    self.left = Some(not_shown(last, plan.timeline, one.path));
                } else if paths.iter().all(|path| is_in(path, &astray)) {
                    self.left = Some(format!(
                        "\"{name}\" follows another copy of the segment before than the one that recovery replays"
                    ));
                }
                break;
            };
            for path in paths.iter().filter(|path| *path != best.path) {
                let agrees = agrees(&fitting, path, best, start(name, size)).await?;
                if agrees { own.extend(path.parent()) } else { astray.extend(path.parent()) }
            }
            self.left.clone_from(&best.damage);
            end = end.after(&best.facts.chain);
            number = number.next();
            let (path, whole) = (best.path.to_owned(), best.facts.whole);
            let kept = Some(path.clone()).filter(|path| !path.starts_with(pgdata));
            self.replayed.push(ReplayedSegment { name, end: best.facts.end, whole, kept });
            content.push(UnarchivedSegment { facts: best.facts.clone(), path });
            if !whole {
                self.hole = Hole::behind(&best.facts, best.damage.as_ref(), best.path, candidates).await?;
                break;
            }
        }
        self.end_with_a_record(&mut content);
        (self.creates, self.required) = effects(&found.copies, range, content).await?;
        let replayed = |name: &SegmentName| self.replayed.iter().any(|one| one.name == *name);
        if self.left.is_none()
            && let Some(other) = candidates.keys().find(|name| !replayed(name))
        {
            self.left = Some(does_not_follow(*other, found, last, plan));
        }
        Ok(())
    }

    /// Leaves the segments at the end that have nothing but a part of a record, whose end is nowhere.
    fn end_with_a_record(&mut self, content: &mut Vec<UnarchivedSegment>) {
        while content.pop_if(|last| last.facts.chain.is_passed_through()).is_some() {
            let Some(ReplayedSegment { name, .. }) = self.replayed.pop() else { return };
            self.left = Some(format!("no record ends in \"{name}\""));
        }
    }

    /// Replays none of it after all.
    pub(super) fn leave(&mut self, why: String) {
        self.replayed.clear();
        self.creates.clear();
        self.required = RequiredSettings::default();
        self.left = Some(why);
    }

    /// Puts what recovery will replay into `pg_wal`. `now`: where this run kept it, or the old `pg_wal` moved aside; `archiving`:
    /// whether the restored server archives.
    pub(super) fn put(
        &self,
        now: Option<&Path>,
        wal: &Path,
        owner: Option<Owner>,
        size: SegmentSize,
        archiving: bool,
    ) -> anyhow::Result<()> {
        for ReplayedSegment { name, end, whole, kept } in &self.replayed {
            let path = wal.join(name.to_string());
            let context = || format!("could not write \"{}\"", path.display());
            // Under its name it is whole, whatever happens here.
            let temporary = wal.join(format!("{}{name}", durable::TEMPORARY_PREFIX));
            durable::remove(&temporary).with_context(context)?;
            let mut file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&temporary)
                .with_context(context)?;
            let start = name.number(size).map_or(*end, |number| number.start(size));
            let keep = if *whole { size.bytes() } else { end.since(start) };
            let here = now.map(|now| now.join(name.to_string()));
            let source = kept.clone().or(here).with_context(|| format!("\"{name}\" was not kept"))?;
            let source = kept::open(&source, owner)
                .with_context(|| format!("could not read \"{}\"", source.display()))?;
            let copied = io::copy(&mut source.take(keep), &mut file).with_context(context)?;
            anyhow::ensure!(copied == keep, "\"{name}\" is shorter than it was when the restore began");
            file.set_len(size.bytes()).and_then(|()| file.sync_all()).with_context(context)?;
            durable::rename(&temporary, &path).with_context(context)?;
            let mut made = vec![path.clone()];
            if *whole {
                let status = wal.join("archive_status");
                owners::create_directories(&status, owner).with_context(context)?;
                let suffix = if archiving { "ready" } else { "done" };
                let status = status.join(format!("{name}.{suffix}"));
                durable::replace(&status, b"", 0o600).with_context(context)?;
                made.push(status);
            }
            if let Some(owner) = owner {
                made.iter().try_for_each(|path| owner.give(path)).with_context(context)?;
            }
        }
        if !self.replayed.is_empty() {
            durable::sync_directory(wal).with_context(|| wal.display().to_string())?;
        }
        Ok(())
    }

    /// The `wal_keep_size`, in MB, that keeps the whole segments until they are archived: the checkpoint at the end of recovery
    /// removes what is older than that, because in archive recovery with `archive_mode = on` PostgreSQL takes each segment for
    /// archived, whatever its `.ready` says (`XLogArchiveCheckDone`). `None` if there are none.
    pub(super) fn keep_size(&self, size: SegmentSize) -> Option<u64> {
        let whole = self.replayed.iter().filter(|replayed| replayed.whole).count();
        let segments = u64::try_from(self.replayed.len()).unwrap_or(u64::MAX).saturating_add(SPARE);
        (whole > 0).then(|| (segments.saturating_mul(size.bytes())).div_ceil(1 << 20))
    }

    /// What of it lies in a directory that was moved aside and is not replayed, for a person.
    pub(super) fn aside(&self, wal: &Path) -> Option<String> {
        let replayed = |name: &&String| self.replayed.iter().any(|one| one.name.to_string() == **name);
        let left: Vec<&str> = self.names.iter().filter(|name| !replayed(name)).map(String::as_str).collect();
        let first = left.first()?;
        Some(format!(
            "WAL that is not archived and that recovery does not replay: {}, in {}\nHINT: To archive such \
             a file, run \"archive-agent push {}\" before you start the restored server, which continues \
             without it.",
            left.join(", "),
            wal.display(),
            wal.join(first).display()
        ))
    }

    /// What of it an archive has damaged, and could have again. `kept`: where it lies.
    pub(super) fn cure(&self, kept: &Path) -> Option<String> {
        let first = self.damaged.first()?;
        Some(format!(
            "the kept files are the only undamaged copies of WAL that is damaged in the archive: \
             {}\nHINT: To repair the archive, \
             move the damaged object away, then run \"archive-agent push {}\".",
            self.damaged.join(", "),
            kept.join(first).display()
        ))
    }

    /// What becomes of it, for a person. `archiving`: whether the restored server archives.
    pub(super) fn notes(&self, archiving: bool) -> Vec<String> {
        let mut notes = Vec::new();
        let whole: Vec<String> =
            self.replayed.iter().filter(|r| r.whole).map(|r| r.name.to_string()).collect();
        if let (true, Some(last)) = (archiving, whole.last()) {
            notes.push(format!(
                "the server archives {} of these segments itself, up to {last}\nDETAIL: wal_keep_size in postgresql.auto.conf \
                 keeps them until then.\nHINT: Once that one is archived, run \"alter system reset wal_keep_size\", and only \
                 then remove what was kept.",
                whole.len()
            ));
        }
        if let (Some(first), Some(last)) = (self.replayed.first(), self.replayed.last()) {
            let names = if first == last {
                first.name.to_string()
            } else {
                format!("{} to {}", first.name, last.name)
            };
            notes.push(format!(
                "after the end of the archive, recovery replays unarchived WAL from the previous data \
                 directory's pg_wal: {names}, up to {}",
                last.end
            ));
        }
        if let Some(why) = &self.left {
            notes.push(format!("recovery does not replay the kept WAL: {why}"));
        }
        notes
    }
}

/// A copy of a segment that continues what is replayed before it.
struct FittingSegment<'a> {
    facts: SegmentFacts,
    /// What is wrong behind its last valid record.
    damage: Option<String>,
    path: &'a Path,
}

/// The directories of which something shows that a stored segment, the last one that recovery has from the archive, is their server's.
/// Where recovery goes on along another `timeline`, that this is theirs.
async fn owned(
    found: &NotStored,
    last: SegmentName,
    timeline: TimelineId,
) -> anyhow::Result<BTreeSet<&Path>> {
    let mut owned = BTreeSet::new();
    for remains in found.earlier.iter().chain([&found.here]) {
        if vouched::covers(&remains.vouched, &found.copies, last, timeline).await? {
            owned.insert(remains.directory.as_path());
        }
    }
    Ok(owned)
}

/// Why a segment is not replayed though its records continue those of `last`, the last segment of the archive.
fn not_shown(last: SegmentName, timeline: TimelineId, path: &Path) -> String {
    let directory = path.parent().unwrap_or(path).display();
    if timeline != last.timeline {
        return format!(
            "the archive has only the history of timeline {timeline}, and nothing shows that the server that wrote {directory} archives \
             that timeline: copies that are promoted at the same position write the same history\nHINT: Only if that server is the \
             one that archives it, archive the kept files with \"archive-agent push\", in order, and run the same command \
             again: another server's WAL would mix the rows of both."
        );
    }
    format!(
        "nothing shows that the archive's last segment, \"{last}\", is from the server that wrote it: {directory} has neither that \
         segment nor a record of it in \"{}\"\nHINT: Only if that server, or a standby of it, wrote what is archived, archive \
         the kept files with \"archive-agent push\", in order, and run the same command again: another server's WAL \
         would mix the rows of both.",
        archived::FILE
    )
}

/// Whether a file lies in one of these directories.
fn is_in(path: &Path, directories: &BTreeSet<&Path>) -> bool {
    path.parent().is_some_and(|directory| directories.contains(directory))
}

/// Whether a copy of a segment, which begins at `start`, is the same server's as the one that is replayed: it fits too, and has the same
/// bytes as far as both have records. What a directory has behind another one continues that.
async fn agrees(
    fitting: &[FittingSegment<'_>],
    path: &Path,
    replayed: &FittingSegment<'_>,
    start: Lsn,
) -> anyhow::Result<bool> {
    let Some(other) = fitting.iter().find(|one| one.path == path) else { return Ok(false) };
    let length = other.facts.end.min(replayed.facts.end).since(start);
    same_beginning(path, replayed.path, length).await
}

/// The last segment of the archive, which kept WAL of the timeline that is asked for can go on from. `None` where recovery ends elsewhere: in
/// an incomplete copy, or where that timeline begins inside a segment of its parent's.
pub(super) fn continued_from(plan: &RestorePlan, size: SegmentSize) -> Option<SegmentRange> {
    if plan.fork.is_some() || plan.unfollowed.is_some() || plan.stop.is_some() || plan.timeline != plan.leaf {
        return None;
    }
    let begin = plan.path.last().map(|step| step.begin);
    let adjoins = |last: &SegmentRange| last.timeline == plan.timeline || begin == Some(last.last.end(size));
    plan.wal.last().copied().filter(adjoins)
}
/// Why recovery does not go on to WAL behind the archive's end, if the plan says so.
fn ends_before(plan: &RestorePlan) -> Option<String> {
    if plan.target != RecoveryTarget::Latest || plan.signal != Signal::Recovery {
        return Some("only a recovery to the end of the archive replays it".to_owned());
    }
    if let Some(fork) = plan.fork {
        return Some(format!(
            "recovery ends at {}, in an incomplete copy of \"{}\"\nHINT: Archive the WAL that follows \
             (archive-agent push): recovery uses it once it is archived.",
            fork.cut, fork.name
        ));
    }
    let unfollowed = plan.unfollowed?;
    Some(format!(
        "recovery ends at {}, where timeline {} begins\nHINT: Archive the WAL that follows (archive-agent \
         push): recovery uses it once it is archived.",
        unfollowed.from, unfollowed.timeline
    ))
}

/// Why a segment is not replayed after `last`, the last one of the archive.
fn does_not_follow(other: SegmentName, found: &NotStored, last: SegmentName, plan: &RestorePlan) -> String {
    if found.here.differ.contains(&WalFileName::Segment(other)) {
        format!("the archive has other content for \"{other}\", and recovery uses that")
    } else if other.timeline == plan.timeline {
        format!("\"{other}\" does not follow the last segment of the archive, {last}")
    } else {
        format!("\"{other}\" is not of timeline {}, on which recovery ends", plan.timeline)
    }
}
