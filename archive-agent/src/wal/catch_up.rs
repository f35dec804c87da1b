//! Catching up a repository: what it missed is copied from one that has it.
//!
//! What is missing shows when listings are compared: from the first file that this process knows it missed, and from the
//! repository's newest backup on, or from where an earlier daemon noted that nothing is missing ([`complete`](super::complete)), for what
//! was missed before. Older gaps are left: what is expired on purpose has gaps, too.
//! Nothing is copied behind a segment that has other content in the two: another server wrote there.
//! A copy goes the way of every file. It is checked as it is read back, lies in a scratch directory for a moment, and is
//! checked again as it is sealed for the other repository. A crash leaves the scratch directory; what was not copied is found
//! missing by the next daemon. What cannot be copied is tried again after a while, until nothing is left, by the next daemon as well:
//! as long as files are left, nothing behind them is noted as complete. A repository that acknowledges and does not answer may hold some
//! that the others lack: as long as it was not compared with, files may be left. A file whose object there is damaged is left, too,
//! although a listing shows it ([`blocked`]).
//!
//! While it is behind, nothing is stored in that repository directly ([`beside`](super::beside)): what is acknowledged meanwhile waits,
//! so that nothing lies behind a gap. One that has to acknowledge misses nothing while it has to: it is compared with the others once
//! after each start or reload, because it may not have had to before, and where it got another lineage.

mod acknowledging;
mod copy;
mod elsewhere;
mod ranges;

use std::pin::pin;
use std::sync::Arc;

use anyhow::anyhow;
use walpoint_base::{Diagnostic, SegmentName};
use walpoint_pg::wal::WalIdentity;
use walpoint_repo::wal::WalArchive;
use walpoint_runtime::human;
use walpoint_words::format_chain;

pub(crate) use self::acknowledging::keep_acknowledging;
use self::copy::{Copy, Passed};
use self::elsewhere::Elsewhere;
use self::ranges::Ranges;
use super::archiver::Archiver;
use super::blocked;
use super::target::{Missed, TargetError, WalTarget};
use super::upload::{REST, TIME_LIMIT, Uploader};

/// Catches up the repository with that number whenever it missed something; `working` is called after every success. A
/// failure ends it: it is started again.
pub(crate) async fn keep(
    archiver: Arc<Archiver>,
    repository: usize,
    working: impl Fn(),
) -> anyhow::Result<()> {
    let uploader = archiver.uploader();
    let Some(target) = uploader.targets().get(repository) else { return Ok(()) };
    // In which lineage of which repository it is known what is missing. What was missed before this began is not known yet, nor what was
    // acknowledged by another process.
    let mut known = None;
    let mut elsewhere = Elsewhere::default();
    loop {
        tokio::select! {
            () = has_to_catch_up(target) => {}
            () = elsewhere.was_acknowledged(uploader, target) => {
                target.beside.surprises();
                target.beside.falls_behind();
                continue;
            }
        }
        let (missed, now) = (target.take_missed(), (target.lineages_left(), target.beside.surprised()));
        let failed =
            |error: anyhow::Error| error.context(format!("repository {} is not caught up", target.name()));
        match catch_up(uploader, target, &missed, known == Some(now)).await {
            Ok(CaughtUp { files, left, ended_early, begin, .. }) => {
                say(target, files);
                target.end_rest();
                match left {
                    None => {
                        known = Some(now);
                        target.unfinished.completes();
                        target.is_caught_up();
                        working();
                    }
                    Some(problem) => {
                        begin.into_iter().for_each(|begin| target.beside.is_left_from(begin));
                        // What cannot be copied keeps nothing behind it away, once that was looked at.
                        if !ended_early {
                            target.unfinished.is_left();
                            target.is_caught_up();
                        }
                        target.miss_again(missed);
                        return Err(failed(problem));
                    }
                }
            }
            Err(error) => {
                target.miss_again(missed);
                return Err(failed(error));
            }
        }
    }
}

/// Waits until a repository is behind. It is, too, when it is time to try once more what could not be copied.
async fn has_to_catch_up(target: &WalTarget) {
    let due = match target.unfinished.due() {
        Some(due) => tokio::time::timeout_at(due, target.beside.is_behind()).await.is_err(),
        None => target.missed_any(),
    };
    if due {
        target.beside.falls_behind();
    }
    target.beside.is_behind().await;
}

fn say(target: &WalTarget, files: usize) {
    if files > 0 {
        tracing::info!(repository = target.name(), files, "caught up");
    }
}

/// What became of a comparison that went through everything.
struct CaughtUp {
    files: usize,
    /// Whether another repository does not answer, with which one that has to acknowledge is to be compared.
    away: bool,
    /// Why some files are not copied.
    left: Option<anyhow::Error>,
    /// Whether a comparison ended early for that: what comes behind those files was not looked at.
    ended_early: bool,
    /// The first segment that was looked for.
    begin: Option<SegmentName>,
}

/// Copies what is missing. `known`: nothing else is missing than what is said to be missed. After an error the repository is opened anew
/// if that may help.
async fn catch_up(
    uploader: &Uploader,
    target: &WalTarget,
    missed: &Missed,
    known: bool,
) -> anyhow::Result<CaughtUp> {
    let caught_up = match damaged_there(uploader, target, known).await {
        // What was moved away by now is missing in the listings of this comparison.
        Ok(damaged) => compare(uploader, target, missed, known).await.map(|caught_up| {
            let left = both(damaged, caught_up.left);
            CaughtUp { left, ..caught_up }
        }),
        Err(error) => Err(error),
    };
    uploader.note_blocked(target).await;
    if let Err(error) = &caught_up {
        target.start_over_after(error).await;
    }
    caught_up
}

/// Why files are not stored there whose objects are damaged. What is `known` includes what earlier processes noted of that.
async fn damaged_there(
    uploader: &Uploader,
    target: &WalTarget,
    known: bool,
) -> anyhow::Result<Option<anyhow::Error>> {
    if target.acknowledges {
        return Ok(None);
    }
    let to = open(target, &uploader.identity().await?).await?;
    Ok(damaged_in(uploader, target, &to, known).await)
}

/// Or why that is not known: the repository is not caught up then, and everything else is copied all the same.
async fn damaged_in(
    uploader: &Uploader,
    target: &WalTarget,
    to: &WalArchive,
    known: bool,
) -> Option<anyhow::Error> {
    let noted = match known {
        true => Ok(()),
        false => uploader.take_blocked(target, to).await,
    };
    let left = blocked::left(uploader, target, to).await;
    both(noted.err(), left.unwrap_or_else(|error| Some(error.into())))
}

/// Two reasons as one.
fn both(one: Option<anyhow::Error>, other: Option<anyhow::Error>) -> Option<anyhow::Error> {
    match (one, other) {
        (Some(one), Some(other)) => {
            Some(anyhow!("{}", Diagnostic::gather("", [format_chain(&one), format_chain(&other)])))
        }
        (one, other) => one.or(other),
    }
}

/// What the comparisons with all repositories leave together.
#[derive(Default)]
struct Together {
    /// Whether one that acknowledges was gone through.
    through: bool,
    left: Option<anyhow::Error>,
    ended_early: bool,
    begin: Option<SegmentName>,
    /// Why the first one could not be compared with that could not, and whether that one acknowledges.
    failed: Option<(bool, anyhow::Error)>,
}

impl Together {
    /// A comparison with a repository that `acknowledges`, or does not, went through. What the ones before it could not give is there if
    /// this one, which holds everything, left nothing; what those behind it cannot give is not.
    fn add(&mut self, acknowledges: bool, passed: Passed) {
        self.through |= acknowledges;
        self.begin = self.begin.into_iter().chain(passed.begin).min();
        if acknowledges && passed.left.is_none() {
            (self.left, self.ended_early) = (None, false);
            return;
        }
        self.ended_early |= passed.ended_early;
        self.left = self.left.take().or(passed.left);
    }

    /// A repository could not be compared with. Those that acknowledge come first.
    fn fails(&mut self, acknowledges: bool, error: anyhow::Error) {
        self.failed.get_or_insert((acknowledges, error));
    }

    /// What a comparison leaves of which `all` or one that acknowledges had to go through. Of what was stored before each of them had
    /// to acknowledge, one may hold what another one lacks: until both were compared with, it is not known that nothing is missing.
    fn end(self, all: bool) -> anyhow::Result<(Option<anyhow::Error>, bool, Option<SegmentName>)> {
        let Self { through, left, ended_early, begin, failed } = self;
        let not_compared = match failed {
            Some((_, error)) if all || !through => return Err(error),
            failed => failed.filter(|(acknowledges, _)| *acknowledges).map(|(_, error)| error),
        };
        Ok((both(left, not_compared), ended_early, begin))
    }
}

async fn compare(
    uploader: &Uploader,
    target: &WalTarget,
    missed: &Missed,
    known: bool,
) -> anyhow::Result<CaughtUp> {
    let cluster = uploader.identity().await?;
    let to = match target.acknowledges {
        true => target.archive(&cluster).await?,
        false => open(target, &cluster).await?,
    };
    if !target.acknowledges {
        uploader.record_in(&cluster, (target, &to)).await;
    }
    let ranges = Ranges::of(uploader, (target, &to), &cluster, missed, known).await?;
    let (mut files, mut together) = (0, Together::default());
    let mut away = false;
    // Those that acknowledge hold everything. What one of them cannot give, another repository may.
    let (first, others): (Vec<_>, Vec<_>) = uploader.targets().iter().partition(|source| source.acknowledges);
    for source in first.into_iter().chain(others).filter(|source| source.name() != target.name()) {
        let from = source.archive(&cluster).await.map_err(anyhow::Error::new);
        let is_away = from.is_err();
        let result = match &from {
            Ok(from) => {
                // Compared with itself, a repository lacks nothing.
                uploader.is_no_other(target, &to)?;
                let copy = Copy { uploader, target, source: source.name(), from, to: &to };
                copy.missing(&ranges, &mut files).await
            }
            Err(_) => Ok(Passed::default()),
        };
        // A repository that is gone lists nothing that could be missing.
        let there = source.look_again().await.map_err(anyhow::Error::new);
        match from.and(result).and_then(|passed| there.map(|()| passed)) {
            Ok(passed) => together.add(source.acknowledges, passed),
            Err(error) if target.acknowledges && is_away => {
                tracing::debug!(
                    repository = target.name(),
                    "not compared with {}: {}",
                    source.name(),
                    format_chain(&error)
                );
                away = true;
            }
            Err(error) => {
                source.start_over_after(&error).await;
                together.fails(source.acknowledges, error);
            }
        }
    }
    target.look_again().await?;
    let (left, ended_early, begin) = together.end(target.acknowledges)?;
    Ok(CaughtUp { files, away, left, ended_early, begin })
}

/// Opens a repository. One that does not answer soon rests meanwhile, so that no acknowledgement asks it whose WAL it holds.
async fn open(target: &WalTarget, cluster: &WalIdentity) -> Result<WalArchive, TargetError> {
    let mut opening = pin!(target.archive(cluster));
    loop {
        match tokio::time::timeout(TIME_LIMIT, &mut opening).await {
            Ok(opened) => {
                return opened.inspect_err(|error| {
                    if error.is_transient() {
                        target.rest(REST);
                    }
                });
            }
            Err(_) => {
                if !target.rests() {
                    tracing::warn!(
                        repository = target.name(),
                        "no answer within {} from this repository, which does not have to acknowledge\nDETAIL: What it misses \
                         is copied later.",
                        human::span(TIME_LIMIT)
                    );
                }
                target.rest(REST);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use walpoint_base::WalFileName;
    use walpoint_storage::RepoError;

    use super::super::complete;
    use super::super::fixtures::{Bed, two};
    use super::super::opening::OpenedTarget;
    use super::super::target::in_the_way;
    use super::*;

    #[tokio::test]
    async fn a_repository_whose_directory_was_replaced_is_opened_anew_after_a_comparison() {
        let bed = Bed::new().await;
        let target = bed.target(false);
        let repository = target.open_now().await.unwrap();
        *target.opened.lock().await = Some(OpenedTarget { repository, archive: None });
        let away: RepoError = bed.unavailable();
        target.start_over_after(&anyhow::Error::new(away).context("in an outage")).await;
        assert!(target.opened.lock().await.is_some(), "it is the same one");
        bed.replace_directory();
        let refused = bed.archive.timelines().await.unwrap_err();
        target.start_over_after(&anyhow::Error::new(refused).context("not caught up")).await;
        assert!(target.opened.lock().await.is_none());
        target.open_now().await.unwrap();
    }

    #[tokio::test]
    async fn a_note_that_cannot_be_read_is_reported_beside_what_is_left_and_ends_no_comparison() {
        let (main, far, uploader, _) = two().await;
        let (target, name) = (&uploader.targets()[1], "000000010000000000000005");
        far.put(name, 1).await;
        far.damage(name);
        let file: WalFileName = name.parse().unwrap();
        let read = far.archive.can_be_read(&far.archive.paths().file(file)).await;
        target.blocked.add(file, &TargetError::Repository(in_the_way(read.unwrap_err())));
        let left = async |known| {
            let left = damaged_in(&uploader, target, &far.archive, known).await;
            left.map_or_else(String::new, |left| format_chain(&left))
        };
        let damaged = left(false).await;
        assert!(
            damaged.contains("1 file cannot be stored") && !damaged.contains(complete::FILE),
            "{damaged}"
        );
        std::fs::create_dir(main.pgdata().join("pg_wal").join(complete::FILE)).unwrap();
        let both = left(false).await;
        let noted = format!("{} cannot be read", complete::FILE);
        assert!(both.contains("1 file cannot be stored") && both.contains(&noted), "{both}");
        assert!(!left(true).await.contains(&noted), "it was read before");
    }

    #[test]
    fn what_only_another_repository_has_is_left_though_one_that_acknowledges_left_nothing() {
        let left = || Passed { left: Some(anyhow::anyhow!("damaged")), ended_early: true, begin: None };
        let together = |passed: Vec<(bool, Passed)>| {
            let mut together = Together::default();
            passed.into_iter().for_each(|(acknowledges, passed)| together.add(acknowledges, passed));
            (together.through, together.left.is_some(), together.ended_early)
        };
        assert_eq!(together(vec![(true, Passed::default()), (false, left())]), (true, true, true));
        assert_eq!(together(vec![(true, left()), (true, Passed::default())]), (true, false, false));
        assert_eq!(together(vec![(true, left()), (false, Passed::default())]), (true, true, true));
    }

    #[test]
    fn one_that_acknowledges_and_was_away_is_compared_with_later() {
        let end = |all: bool, compared: &[(bool, bool)]| {
            let mut together = Together::default();
            for (acknowledges, answers) in compared {
                match answers {
                    true => together.add(*acknowledges, Passed::default()),
                    false => together.fails(*acknowledges, anyhow::anyhow!("away")),
                }
            }
            together.end(all).map(|(left, ..)| left.map(|left| left.to_string())).map_err(|e| e.to_string())
        };
        let away = "away".to_owned();
        for compared in [[(true, true), (true, false)], [(true, false), (true, true)]] {
            assert_eq!(end(false, &compared), Ok(Some(away.clone())), "it may hold what the other one lacks");
            assert_eq!(end(true, &compared), Err(away.clone()));
        }
        assert_eq!(end(false, &[(true, true), (false, false)]), Ok(None));
        assert_eq!(end(false, &[(true, false), (false, true)]), Err(away));
    }

    #[tokio::test]
    async fn what_could_not_be_copied_is_tried_again_though_nothing_is_known_to_be_missed() {
        let bed = Bed::new().await;
        let target = bed.target(false);
        tokio::time::pause();
        has_to_catch_up(&target).await;
        // As after a first comparison of which files were left.
        target.unfinished.is_left();
        target.is_caught_up();
        let begun = tokio::time::Instant::now();
        has_to_catch_up(&target).await;
        let first = begun.elapsed();
        assert!(first > Duration::ZERO);
        target.unfinished.is_left();
        target.is_caught_up();
        has_to_catch_up(&target).await;
        assert!(begun.elapsed() > first * 2, "the pause grows");

        target.unfinished.completes();
        target.is_caught_up();
        let waits = tokio::time::timeout(Duration::from_secs(100_000), has_to_catch_up(&target)).await;
        assert!(waits.is_err(), "nothing is left");
    }
}
