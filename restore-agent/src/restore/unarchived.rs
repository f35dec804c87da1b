//! WAL in the `pg_wal` of a data directory that is repaired or replaced, and in no archive. A server that crashed leaves at least its last
//! segment so: it was never complete, so it was never archived, and its rows are nowhere else.
//!
//! All of it is kept ([`super::kept`]), or moved aside with the directory. What continues the archive is put into the new `pg_wal` too, for a recovery to the end of
//! its timeline: PostgreSQL reads its own `pg_wal` when the archive says that it has no such segment, so the archive still
//! counts first. Only what is proven to continue the archive's last segment is put there, up to its last valid record, with
//! zeros behind.
//!
//! PostgreSQL archives the last one as `.partial` when it is promoted, because its status is not known; complete ones are
//! marked as waiting, if the restored server archives, and as archived otherwise.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use futures_util::TryStreamExt;
use walpoint_base::chain::{ChainEnd, ChainFacts, Link};
use walpoint_base::facts::SegmentMarks;
use walpoint_base::{
    CreatedTablespace, Lsn, RecoveryTarget, SegmentFacts, SegmentName, SegmentNo, SegmentSize,
    TimelineHistory, WalFileName, durable,
};
use walpoint_pg::wal::{Identity, Inspector, WalError};
use walpoint_plan::restore::{RequiredSettings, RestorePlan, SegmentDecoder, SegmentRange, Signal};
use walpoint_repo::wal::{WalArchive, WalCopies};
use walpoint_storage::RepoError;
use walpoint_storage::layout::WalEntry;

use super::kept::{self, Kept};
use super::owners::{self, Owner};
use super::reach;
use super::stored::NotStored;
use crate::decoder::WalDecoder;
use crate::plan::Planned;

/// So many segments are looked back to find the last record that starts in one.
const LOOK_BACK: u64 = 256;

/// Segments that are kept beyond those that are replayed: recovery ends in the next one.
const SPARE: u64 = 4;

/// A segment is read in pieces of this length.
const PIECE: usize = 1 << 20;

/// What no archive has.
#[derive(Debug, Default)]
pub(super) struct Unarchived {
    /// Names of files in `pg_wal`, in order.
    pub(super) names: Vec<String>,
    /// Those that recovery will replay, in order; by then they are among what was kept.
    pub(super) replayed: Vec<Replayed>,
    /// Tablespaces that their replay creates.
    pub(super) creates: Vec<CreatedTablespace>,
    /// What settings their replay needs.
    pub(super) required: RequiredSettings,
    /// Why others are not replayed.
    pub(super) left: Option<String>,
}

/// A segment that recovery will replay from `pg_wal`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Replayed {
    pub(super) name: SegmentName,
    /// Where its last valid record ends.
    pub(super) end: Lsn,
    whole: bool,
    /// The file, if an earlier run kept it; else this one does.
    kept: Option<PathBuf>,
}

/// A segment that no archive has, and what its content says.
struct Candidate {
    facts: SegmentFacts,
    path: PathBuf,
}

impl Unarchived {
    /// Takes over what was found in `pg_wal`. `earlier`: what earlier repairs of the same data directory kept, interrupted or not,
    /// whereupon it is gone from there.
    pub(super) async fn find(
        found: &NotStored,
        pgdata: &Path,
        planned: &Planned,
        earlier: &[Kept],
    ) -> anyhow::Result<Self> {
        let wal = pgdata.join("pg_wal");
        // A run that was interrupted may have left less of a segment in pg_wal than an earlier one kept of it.
        let mut candidates: BTreeMap<SegmentName, Vec<PathBuf>> = BTreeMap::new();
        for earlier in earlier {
            for name in earlier.wal.iter().filter_map(|name| name.parse::<SegmentName>().ok()) {
                candidates.entry(name).or_default().push(earlier.directory.join(name.to_string()));
            }
        }
        for name in &found.files {
            if let WalFileName::Segment(name) = name {
                candidates.entry(*name).or_default().push(wal.join(name.to_string()));
            }
        }
        let names = found.files.iter().map(ToString::to_string).collect();
        let mut unarchived = Self { names, ..Self::default() };
        if !candidates.is_empty() {
            unarchived.continue_archive(found, planned, &wal, &candidates).await?;
        }
        Ok(unarchived)
    }

    /// Finds out which segments continue the archive, and why others do not.
    async fn continue_archive(
        &mut self,
        found: &NotStored,
        planned: &Planned,
        wal: &Path,
        candidates: &BTreeMap<SegmentName, Vec<PathBuf>>,
    ) -> anyhow::Result<()> {
        let plan = &planned.plan;
        if plan.target != RecoveryTarget::Latest || plan.signal != Signal::Recovery {
            self.left = Some("only a recovery to the end of the archive goes on to it".to_owned());
            return Ok(());
        }
        if let Some(fork) = plan.fork {
            self.left = Some(format!(
                "recovery ends at {}, in an incomplete copy of \"{}\"; what goes on behind that counts once it is in the archive \
                 (archive-agent push)",
                fork.cut, fork.name
            ));
            return Ok(());
        }
        if let Some(unfollowed) = plan.unfollowed {
            self.left = Some(format!(
                "recovery ends at {}, where timeline {} begins; what goes on behind that counts once it is in the archive \
                 (archive-agent push)",
                unfollowed.from, unfollowed.timeline
            ));
            return Ok(());
        }
        let size = planned.lineage.segment_size;
        let Some(range) = continued_from(plan, size) else {
            self.left = Some(format!("the archive has no segment of timeline {} before it", plan.timeline));
            return Ok(());
        };
        let history = found.copies.history(plan.timeline).await?;
        let mut end = end_of(&found.copies, range).await?;
        let (mut number, mut content) = (range.last.next(), Vec::new());
        while let Some(paths) = candidates.get(&number.name(plan.timeline, size)) {
            let name = number.name(plan.timeline, size);
            let mut best: Option<(SegmentFacts, Option<String>, &PathBuf)> = None;
            for path in paths {
                match judge(&found.copies, planned, name, path, history.as_ref(), &end).await? {
                    Ok((facts, damage)) => {
                        let further = |(found, ..): &(SegmentFacts, _, _)| {
                            (found.whole, found.end) >= (facts.whole, facts.end)
                        };
                        if !best.as_ref().is_some_and(further) {
                            best = Some((facts, damage, path));
                        }
                    }
                    Err(why) => self.left = Some(why),
                }
            }
            match best {
                Some((facts, damage, path)) => {
                    self.left = damage;
                    end = end.after(&facts.chain);
                    number = number.next();
                    let kept = Some(path).filter(|path| !path.starts_with(wal)).cloned();
                    self.replayed.push(Replayed { name, end: facts.end, whole: facts.whole, kept });
                    let ended = !facts.whole;
                    content.push(Candidate { facts, path: path.clone() });
                    if ended {
                        break;
                    }
                }
                None => break,
            }
        }
        (self.creates, self.required) = effects(&found.copies, range, content).await?;
        let replayed = |name: &SegmentName| self.replayed.iter().any(|one| one.name == *name);
        if self.left.is_none()
            && let Some(other) = candidates.keys().find(|name| !replayed(name))
        {
            self.left = Some(if found.differ.contains(&WalFileName::Segment(*other)) {
                format!("\"{other}\" has other content in the archive, which counts")
            } else if other.timeline == plan.timeline {
                format!(
                    "\"{other}\" does not follow the last segment of the archive, {}",
                    range.last.name(range.timeline, size)
                )
            } else {
                format!("\"{other}\" is not of timeline {}, on which recovery ends", plan.timeline)
            });
        }
        Ok(())
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
        for Replayed { name, end, whole, kept } in &self.replayed {
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
            "WAL that no archive has and recovery does not replay: {}, in {}; \"archive-agent push {}\" archives what there is of such \
             a file, before the restored server goes on without it",
            left.join(", "),
            wal.display(),
            wal.join(first).display()
        ))
    }

    /// What becomes of it, for a person. `archiving`: whether the restored server archives.
    pub(super) fn notes(&self, archiving: bool) -> Vec<String> {
        let mut notes = Vec::new();
        let whole: Vec<String> =
            self.replayed.iter().filter(|r| r.whole).map(|r| r.name.to_string()).collect();
        if let (true, Some(last)) = (archiving, whole.last()) {
            notes.push(format!(
                "the server archives {} of these segments itself, up to {last}. wal_keep_size in postgresql.auto.conf keeps them \
                 until then: once that one is archived, \"alter system reset wal_keep_size\", and only then remove what was kept",
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
                "recovery replays WAL that no archive has after the archive's end: {names}, up to {}, from the pg_wal of the \
                 data directory that was there",
                last.end
            ));
        }
        if let Some(why) = &self.left {
            notes.push(format!("recovery does not replay WAL that was kept: {why}"));
        }
        notes
    }
}

/// The last segment of the archive, which kept WAL of the timeline that is asked for can go on from. `None` where recovery ends elsewhere: in
/// an incomplete copy, or where that timeline begins inside a segment of its parent's.
pub(super) fn continued_from(plan: &RestorePlan, size: SegmentSize) -> Option<SegmentRange> {
    if plan.fork.is_some() || plan.unfollowed.is_some() || plan.stop.is_some() || plan.timeline != plan.leaf()
    {
        return None;
    }
    let begin = plan.path.last().map(|step| step.begin);
    let adjoins = |last: &SegmentRange| last.timeline == plan.timeline || begin == Some(last.last.end(size));
    plan.wal.last().copied().filter(adjoins)
}

/// What is known at the end of the archive's last segment.
async fn end_of(copies: &WalCopies, range: SegmentRange) -> anyhow::Result<ChainEnd> {
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
async fn judge(
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
                return Ok(Err(format!("of \"{name}\" the archive has another copy, which counts first")));
            }
            Err(error) => return Err(error.into()),
        }
        if let Some(copy) = incomplete(archive, name).await? {
            return Ok(Err(format!(
                "of \"{name}\" the archive has an incomplete copy, {copy}, which counts first"
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
    let identity =
        Identity { system_id: lineage.system_id(), major: lineage.major, segment_size: lineage.segment_size };
    if let Err(foreign) = identity.check(&facts) {
        return Ok(Err(foreign.to_string()));
    }
    Ok(match end.link(&facts.chain) {
        Link::Broken(fault) => Err(format!("\"{name}\" does not continue the archive: {fault}")),
        Link::Reset => Err(format!("\"{name}\" was written by pg_resetwal")),
        Link::Continues if facts.end == start(name, lineage.segment_size) => {
            Err(format!("no record ends in \"{name}\""))
        }
        Link::Continues if !is_proven(end, &facts.chain) => {
            Err(format!("that \"{name}\" continues the archive is not proven"))
        }
        Link::Continues => Ok((facts, damage)),
    })
}

fn start(name: SegmentName, size: SegmentSize) -> Lsn {
    name.number(size).map_or(Lsn::INVALID, |number| number.start(size))
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

/// What a segment's content says up to its last valid record, and what is wrong behind that, if anything is: PostgreSQL takes
/// a record that was torn for the end of WAL. The error says why it is no segment.
pub(super) fn inspect(
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

/// Tablespaces that replay of these segments creates, which follow the archive's last one, and the settings that it needs.
async fn effects(
    copies: &WalCopies,
    range: SegmentRange,
    segments: Vec<Candidate>,
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
        for Candidate { facts, path } in segments {
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
