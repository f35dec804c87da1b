//! Copying from one repository to another what that one lacks.
//!
//! A timeline of which the two hold the WAL of two servers is left as it is, with those that began on its WAL behind the difference,
//! and with those whose histories say that they come from another server's timelines.
//! The others are copied, so that an old branch keeps nothing from a repository. Likewise files that cannot be copied: after some of
//! them in a row a comparison ends, and the next one begins behind them.

mod handed;

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::path::Path;

use anyhow::{Context, anyhow, bail};
use futures_util::TryStreamExt;
use futures_util::future::BoxFuture;
use walpoint_base::{Diagnostic, SegmentName, SegmentNo, TimelineId, WalFileName};
use walpoint_repo::agreement;
use walpoint_repo::wal::WalArchive;
use walpoint_storage::RepoError;
use walpoint_storage::error::error_chain;
use walpoint_words::format_chain;

use self::handed::{Copied, Handed, files};
use super::Ranges;
use crate::wal::contradiction;
use crate::wal::elsewhere::Copies;
use crate::wal::neighbors;
use crate::wal::split_brain::SplitBrain;
use crate::wal::target::WalTarget;
use crate::wal::unfinished::Tried;
use crate::wal::unreadable::{self, Verdict};
use crate::wal::upload::{UploadError, Uploader};

/// Copies from one repository to the other.
pub(super) struct Copy<'a> {
    pub(super) uploader: &'a Uploader,
    pub(super) target: &'a WalTarget,
    /// Its name.
    pub(super) source: &'a str,
    pub(super) from: &'a WalArchive,
    pub(super) to: &'a WalArchive,
}

/// What a comparison with one repository leaves.
#[derive(Debug, Default)]
pub(super) struct Passed {
    /// Why some files are not copied.
    pub(super) left: Option<anyhow::Error>,
    /// Whether it ended before it went through everything: the next one goes on there.
    pub(super) ended_early: bool,
    /// The first segment that was looked for.
    pub(super) begin: Option<SegmentName>,
}

impl Copy<'_> {
    /// Copies what is missing and counts it, but for what waits to be stored directly. One file that cannot be copied does not keep
    /// the next ones from it, and one timeline not the others; why it cannot.
    pub(super) async fn missing(&self, ranges: &Ranges, copied: &mut usize) -> anyhow::Result<Passed> {
        if self.target.acknowledges && !self.lacks_any(ranges).await? {
            return Ok(Passed::default());
        }
        let scratch = tempfile::Builder::new().prefix("walpoint-").tempdir();
        let scratch = scratch.context("there is no scratch directory for what is copied")?;
        // Before any WAL: a timeline that was abandoned, or that two servers claim, would count in this repository meanwhile.
        let verdicts = self.to.take_verdicts(self.from).await?;
        if verdicts > 0 {
            tracing::info!(repository = self.target.name(), verdicts, "took over what is known of timelines");
        }
        self.target.unfinished.take_doubt();
        let mut done = Done::new(copied, self.target.unfinished.tried(self.source));
        let (timelines, mut others) = (self.from.timelines().await?, Vec::<SplitBrain>::new());
        let lacking = self.lacking_histories().await?;
        let all: BTreeSet<TimelineId> = timelines.iter().chain(&lacking).copied().collect();
        let mut begin = None;
        for timeline in all {
            let first = match timelines.contains(&timeline) {
                true => ranges.first(self.to, timeline).await?,
                false => None,
            };
            begin = begin.or(first);
            let lacks_history = lacking.contains(&timeline);
            if first.is_none() && !lacks_history {
                continue;
            }
            // A history leads readers along its timeline: without the verdict on that it is not copied either.
            let mut other = self.is_another_servers(timeline, &others).await?;
            if other.is_none() && lacks_history {
                self.history(timeline, &mut done, scratch.path()).await?;
            }
            if let (None, Some(first)) = (&other, first) {
                other = self.timeline(first, &mut done, scratch.path()).await?;
            }
            others.extend(other);
            if done.is_over() {
                break;
            }
        }
        // The next comparison asks for it again: it begins where this one did.
        if let Some(problem) = self.target.unfinished.take_doubt() {
            bail!(problem);
        }
        let ended_early = done.is_over();
        self.target.unfinished.set_tried(self.source, done.tried());
        let other = self.left_to_others(others, timelines.last().copied()).await?;
        let left = match (other, done.left()) {
            (Some(other), Some(files)) => {
                Some(anyhow!("{}", Diagnostic::gather("", [format_chain(&files), other.to_string()])))
            }
            (Some(other), None) => Some(anyhow!("{other}")),
            (None, files) => files,
        };
        Ok(Passed { left, ended_early, begin })
    }

    /// The timelines of which the other repository has a history and this one has none.
    async fn lacking_histories(&self) -> Result<BTreeSet<TimelineId>, RepoError> {
        let here: BTreeSet<TimelineId> = self.to.histories().await?.into_iter().collect();
        Ok(self.from.histories().await?.into_iter().filter(|timeline| !here.contains(timeline)).collect())
    }

    /// Copies a history that is missing.
    async fn history(&self, timeline: TimelineId, done: &mut Done<'_>, scratch: &Path) -> anyhow::Result<()> {
        let name = WalFileName::History(timeline);
        if self.target.beside.awaits(name) {
            return Ok(());
        }
        done.count_history(name, self.copy(Handed::of(name), scratch).await)
    }

    /// What shows that a timeline of the other repository is not one of the server whose WAL this one holds, before anything is copied
    /// of it. A history that shows it is kept beside, for readers that know this repository only, unless the timeline was abandoned.
    async fn is_another_servers(
        &self,
        timeline: TimelineId,
        others: &[SplitBrain],
    ) -> anyhow::Result<Option<SplitBrain>> {
        if let Some((split, history)) = contradiction::between(self.from, self.to, timeline).await? {
            if !self.is_abandoned(timeline).await? {
                self.to.put_refused_history(timeline, history).await?;
            }
            return Ok(Some(split));
        }
        self.began_on_another(timeline, others).await
    }

    /// Copies what is missing of a timeline from a segment on, up to where something shows that the two repositories hold the WAL of two
    /// servers; what that is.
    async fn timeline(
        &self,
        first: SegmentName,
        done: &mut Done<'_>,
        scratch: &Path,
    ) -> anyhow::Result<Option<SplitBrain>> {
        let timeline = first.timeline;
        // The history beside a segment tells which timelines its pages may be of.
        let history = WalFileName::History(timeline);
        let fetched = self.fetch(Handed::of(history), &scratch.join(history.to_string())).await;
        done.count_history(history, fetched.map(|_| false))?;
        let wal = self.uploader.wal_directory();
        let mut copies = Copies::new(&wal, (self.from, self.to), first).await?;
        // Both listings are in the order of the names.
        let mut here = files(self.to.list(timeline, Some(first)));
        let mut next_here = here.try_next().await?;
        let mut passed_here = None;
        let mut there = files(self.from.list(timeline, Some(first)));
        while let Some(name) = there.try_next().await? {
            while let Some(here_now) = next_here.filter(|here| here.order() < name.order()) {
                here_now.whole().into_iter().for_each(|segment| copies.passes(segment));
                passed_here = here_now.segment();
                next_here = here.try_next().await?;
            }
            let waits = !matches!(name.copy, Copied::Ended(..)) && self.target.beside.awaits(name.file);
            if next_here == Some(name) || waits {
                continue;
            }
            if let Some(segment) = name.segment() {
                let begun = [passed_here, next_here.and_then(|here| here.segment())];
                let begun = begun.contains(&Some(segment));
                if let Some(split) = copies.contradiction(segment, begun).await? {
                    return Ok(Some(split));
                }
            }
            // Where another server wrote is asked of those, too: a later timeline may have begun behind that.
            if done.was_tried(timeline, &name) {
                continue;
            }
            let result = self.copy(name, scratch).await;
            if let (Ok(true), Some(segment)) = (&result, name.whole()) {
                copies.copied(segment).await?;
            }
            done.count(name.file, result)?;
            if done.is_over() {
                done.ends_at(timeline, &name);
                break;
            }
        }
        Ok(None)
    }

    /// What shows that a timeline began on WAL of others that is another server's in the other repository: what is copied of it would lie
    /// behind that.
    async fn began_on_another(
        &self,
        timeline: TimelineId,
        others: &[SplitBrain],
    ) -> anyhow::Result<Option<SplitBrain>> {
        if others.is_empty() {
            return Ok(None);
        }
        let history = match self.from.history(timeline).await {
            Ok(history) => history,
            Err(RepoError::Corrupt { .. }) => None,
            Err(error) => match unreadable::judge(self.from, error).await {
                Verdict::Lasting(_) => None,
                verdict => return Err(verdict.error().into()),
            },
        };
        let Some(history) = history else {
            let name = WalFileName::History(timeline);
            let what = format!(
                "{name} is missing or damaged in repository {}, so it is unknown where it begins",
                self.source
            );
            return Ok(Some(SplitBrain::new(self.to, timeline, what).not_shown()));
        };
        let size = self.from.lineage().segment_size;
        let others: Vec<TimelineId> = others.iter().map(SplitBrain::timeline).collect();
        for other in others {
            let Some(end) = history.end_of(other) else { continue };
            // Of the segment that it began in, each server has its own rest.
            let Some(before) = SegmentNo::of(end, size).0.checked_sub(1) else { continue };
            let segments = agreement::older(self.to, SegmentNo(before).name(other, size));
            let agreement = unreadable::newest((self.from, self.to), segments).await?;
            if let Some(what) = agreement.difference() {
                return Ok(Some(SplitBrain::new(self.to, timeline, what)));
            }
        }
        Ok(None)
    }

    /// What is left where another server wrote in one of the two; the first of it. Nothing is said of timelines that were abandoned. What
    /// shows of the newest timeline is an error: nothing may be stored directly behind that either.
    async fn left_to_others(
        &self,
        others: Vec<SplitBrain>,
        newest: Option<TimelineId>,
    ) -> anyhow::Result<Option<SplitBrain>> {
        let (mut left, mut last) = (None, None);
        for split in others {
            if self.is_abandoned(split.timeline()).await? {
                tracing::debug!(
                    repository = self.target.name(),
                    "of an abandoned timeline: {}",
                    split.found()
                );
                continue;
            }
            if self.target.acknowledges {
                self.leaves(&split);
                continue;
            }
            self.target.refuse(&split, None);
            self.uploader.refused.notify_one();
            if Some(split.timeline()) == newest {
                last = Some(split.clone());
            }
            left.get_or_insert(split);
        }
        match last {
            Some(split) => bail!("{split}"),
            None => Ok(left),
        }
    }

    /// Whether one of the two has it on record that a timeline was abandoned, with all that is stored of it there to be copied.
    async fn is_abandoned(&self, timeline: TimelineId) -> Result<bool, RepoError> {
        let (log, segment) = (u32::MAX, u32::MAX);
        let newest = neighbors::newest_before(self.from, SegmentName { timeline, log, segment }).await?;
        for archive in [self.from, self.to] {
            let listed = archive.all_histories().await?.abandoned;
            let abandoned = archive.abandoned_here(&listed).await?;
            if abandoned.get(&timeline).is_some_and(|name| newest.is_none_or(|newest| newest <= name.until)) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Copies a file; `false` if there is none any more.
    // Boxed: the compiler cannot prove a nest of that many futures to be `Send`.
    fn copy<'b>(&'b self, name: Handed, scratch: &'b Path) -> BoxFuture<'b, Result<bool, UploadError>> {
        Box::pin(async move {
            // Before anything is read for it.
            self.uploader.answers(self.target)?;
            let path = scratch.join(format!("{}.copy", name.file));
            let fetched = {
                // An object is read in one piece.
                let _memory = self.uploader.memory_to_read(self.from.lineage().segment_size).await;
                self.fetch(name, &path).await
            };
            let copied = match fetched {
                Ok(Some(damaged)) => self.store(name, &path, damaged).await,
                Ok(None) => return Ok(false),
                Err(error) => Err(error),
            };
            // Whatever became of it: it may be a gigabyte.
            tokio::fs::remove_file(&path).await.ok();
            copied
        })
    }

    /// Stores a copy that was read back. Where it cannot be read here by then, that says nothing of the file.
    async fn store(&self, name: Handed, path: &Path, damaged: bool) -> Result<bool, UploadError> {
        let stored = self.uploader.upload_to(self.target, name.file, path.to_owned(), damaged).await;
        let error = match stored {
            Ok(_) => return Ok(true),
            Err(error) => error,
        };
        let copy = path.to_owned();
        let read = move || File::open(copy).and_then(|mut file| io::copy(&mut file, &mut io::sink()));
        match tokio::task::spawn_blocking(read).await {
            Ok(Err(problem)) if error.permanent => {
                Err(here(format!("{} cannot be read: {problem}", path.display())))
            }
            _ => Err(error),
        }
    }

    /// Reads a file back: whether it was accepted although damaged. `None` if there is none. One that cannot be read while the repository
    /// answers keeps no other from being copied, and is left like a damaged one if that lasts. A problem with the scratch directory, which
    /// may be full, ends the comparison: what it keeps from being copied is no file in particular.
    async fn fetch(&self, name: Handed, path: &Path) -> Result<Option<bool>, UploadError> {
        let error = match self.read_into(name, path).await {
            Ok(read) => return Ok(read),
            Err(error @ RepoError::Io { .. }) => {
                return Err(here(format!("{}: {}", path.display(), error_chain(&error))));
            }
            Err(error) => error,
        };
        Err(match unreadable::judge(self.from, error).await {
            Verdict::Error(error) | Verdict::Lasting(error) => error.into(),
            Verdict::Doubtful(error) => {
                let problem = UploadError::from(error);
                self.target.unfinished.doubts(format!("{}: {}", name.file, problem.text));
                UploadError { permanent: true, ..problem }
            }
        })
    }

    async fn read_into(&self, name: Handed, path: &Path) -> Result<Option<bool>, RepoError> {
        let reader = match name.copy {
            Copied::Whole => self.from.read(name.file).await?,
            Copied::Partial(segment, hash) => self.from.read_partial(segment, hash).await?,
            Copied::Ended(segment, end, hash) => self.from.read_ended(segment, end, hash).await?,
        };
        let Some(reader) = reader else { return Ok(None) };
        let what = || format!("{} cannot be written", path.display());
        let file = File::create(path).map_err(|source| RepoError::Io { what: what(), source })?;
        let (_, header) = reader.write_to(file).await?;
        Ok(Some(header.is_some_and(|header| header.damaged)))
    }
}

/// A problem of this machine alone: trying again may help, and the file is as good as any other.
fn here(text: String) -> UploadError {
    UploadError { text, permanent: false }
}

/// What became of the files so far.
#[derive(Debug)]
struct Done<'a> {
    copied: &'a mut usize,
    /// Since the last one that was copied.
    in_a_row: usize,
    failures: usize,
    /// Of the first one.
    failed: Option<anyhow::Error>,
    /// What comparisons before this one tried in vain.
    before: Option<Tried>,
    /// The last file that was tried, if this one ended there.
    end: Option<(TimelineId, String)>,
}

/// Files in a row that may fail before a comparison ends: the repository may refuse all of them.
const FAILURES: usize = 16;

impl<'a> Done<'a> {
    fn new(copied: &'a mut usize, before: Option<Tried>) -> Self {
        Self { copied, in_a_row: 0, failures: 0, failed: None, before, end: None }
    }

    /// Counts a file. An error means that going on is useless.
    fn count(&mut self, name: WalFileName, result: Result<bool, UploadError>) -> anyhow::Result<()> {
        match result {
            Ok(true) => {
                *self.copied += 1;
                self.in_a_row = 0;
            }
            Ok(false) => {}
            Err(UploadError { text, permanent }) => {
                let problem = anyhow!("{name}: {text}");
                if !permanent {
                    return Err(problem);
                }
                self.failures += 1;
                self.in_a_row += 1;
                self.failed.get_or_insert(problem);
            }
        }
        Ok(())
    }

    /// Counts a history. Each comparison tries all of them, whatever became of other files.
    fn count_history(&mut self, name: WalFileName, result: Result<bool, UploadError>) -> anyhow::Result<()> {
        let (in_a_row, failures) = (self.in_a_row, self.failures);
        self.count(name, result)?;
        self.in_a_row = in_a_row;
        if self.before.is_some() {
            self.failures = failures;
        }
        Ok(())
    }

    fn is_over(&self) -> bool {
        self.in_a_row >= FAILURES
    }

    fn ends_at(&mut self, timeline: TimelineId, name: &Handed) {
        self.end = Some((timeline, name.order().0));
    }

    /// Whether a comparison before this one ended behind that file.
    fn was_tried(&self, timeline: TimelineId, name: &Handed) -> bool {
        self.before.as_ref().is_some_and(|before| before.covers(timeline, &name.order().0))
    }

    /// Where the next comparison begins, if this one ended early.
    fn tried(&self) -> Option<Tried> {
        let (timeline, file) = self.end.clone()?;
        let problem = self.first_problem()?;
        Some(Tried { timeline, file, failures: self.all_failures(), problem })
    }

    fn all_failures(&self) -> usize {
        self.failures + self.before.as_ref().map_or(0, |before| before.failures)
    }

    fn first_problem(&self) -> Option<String> {
        let before = self.before.as_ref().map(|before| before.problem.clone());
        before.or_else(|| self.failed.as_ref().map(ToString::to_string))
    }

    /// What cannot be copied.
    fn left(self) -> Option<anyhow::Error> {
        let failures = self.all_failures();
        let problem = self.first_problem()?;
        Some(anyhow!(problem).context(format!("{failures} files cannot be copied")))
    }
}

#[cfg(test)]
mod tests;
