//! What is wrong with what waits, was dropped, or is archived, as the daemon looks for it from time to time.
//!
//! What always holds: no look keeps another from being made, and all that is found is reported together.

use std::io::ErrorKind;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::bail;
use tokio::time::Instant;
use walpoint_base::Diagnostic;
use walpoint_runtime::human;
use walpoint_words::format_chain;

use super::archiver::Archiver;
use super::bypass::Watch;
use super::disk;
use super::dropped::{self, Gap};
use super::postmaster::ServerStart;
use super::queue::INTERVAL;
use super::reach::{self, Looked, UnreachedIn};
use super::ready;
use super::upload::Upload;

/// How often to look whether a command without a daemon dropped anything.
const RECORD_INTERVAL: Duration = Duration::from_secs(60);

/// How often the repositories are asked whether all that is archived can be recovered, as long as it can.
const REACH_INTERVAL: Duration = Duration::from_secs(600);

/// How long what is known here waits for what a repository says.
const TIME_LIMIT: Duration = Duration::from_secs(10);

/// So many looks in a row may each find another segment missing, which is on its way: then the next ones follow later.
const CONFIRMING_LOOKS: u32 = 5;

/// What looks know of earlier ones. It outlasts their task, which is started again whenever something is wrong.
#[derive(Debug)]
pub(crate) struct Looks {
    /// What is archived and cannot be recovered, until a look finds no such thing.
    unreached: Mutex<Option<UnreachedIn>>,
    reach: Mutex<ReachSchedule>,
    bypass: Watch,
}

impl Looks {
    /// Of a process that archives from now on.
    pub(super) fn from_now() -> Self {
        Self { unreached: Mutex::default(), reach: Mutex::default(), bypass: Watch::from_now() }
    }

    fn reach(&self) -> MutexGuard<'_, ReachSchedule> {
        self.reach.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// When the repositories are asked next whether all that is archived can be recovered.
#[derive(Debug, Default)]
struct ReachSchedule {
    /// At once, if there is none.
    next: Option<Instant>,
    /// The server that asked last when it was set.
    server: Option<ServerStart>,
}

impl ReachSchedule {
    /// Whether it is time: also after another start of the server, before which it may have archived nothing.
    fn is_due(&mut self, server: Option<ServerStart>) -> bool {
        if std::mem::replace(&mut self.server, server) != server {
            self.next = None;
        }
        self.next.is_none_or(|next| Instant::now() >= next)
    }
}

/// Looks whether anything is wrong with what waits, was dropped, or is archived; `working` is called whenever nothing is. An error says
/// all that is: it is started again.
pub(crate) async fn tell(archiver: Arc<Archiver>, working: impl Fn()) -> anyhow::Result<()> {
    loop {
        if let Some(problem) = together(look(&archiver).await) {
            return Err(problem);
        }
        working();
        let dropped = archiver.queue().dropped.notified();
        if tokio::time::timeout(RECORD_INTERVAL, dropped).await.is_ok() {
            // The command puts it on record when it has heard of it.
            tokio::time::sleep(INTERVAL).await;
            archiver.queue().looks.reach().next = None;
        }
    }
}

/// All that is wrong, and what could not be determined. Each look is made whatever the others find.
async fn look(archiver: &Archiver) -> Vec<anyhow::Error> {
    let (uploader, looks) = (archiver.uploader(), &archiver.queue().looks);
    // What is on no record here shows in the repository, which takes more to read.
    let reach = async {
        if !looks.reach().is_due(archiver.asking().server()) {
            return [None, None];
        }
        let reached = is_reached(&looks.unreached, || reach::look(uploader)).await;
        let damaged = reach::damaged(uploader).await;
        if matches!((&reached, &damaged), (Ok(true), Ok(None))) {
            looks.reach().next = Some(Instant::now() + REACH_INTERVAL);
        }
        [reached.err(), problem(damaged.map(|found| found.map(anyhow::Error::msg)))]
    };
    let mut reach = std::pin::pin!(reach);
    // A store that hangs holds the look at it up, and nothing that is known without it.
    loop {
        let mut found = known_here(archiver).await;
        let limit = if found.is_empty() { RECORD_INTERVAL } else { TIME_LIMIT };
        tokio::select! {
            reached = &mut reach => {
                found.extend(reached.into_iter().flatten());
                return found;
            }
            () = archiver.queue().dropped.notified() => tokio::time::sleep(INTERVAL).await,
            () = tokio::time::sleep(limit) => if !found.is_empty() { return found },
        }
    }
}

/// What is wrong by what this server knows itself: first what lasts, and costs another gap with each segment.
async fn known_here(archiver: &Archiver) -> Vec<anyhow::Error> {
    let (uploader, looks) = (archiver.uploader(), &archiver.queue().looks);
    let bypass = tokio::time::timeout(TIME_LIMIT, looks.bypass.look(uploader));
    let lately = archiver.queue().dropped_lately();
    let gap = async { Ok(Gap::of(&dropped::on_record(uploader, &lately).await?)) };
    let (bypass, requested, gap) = tokio::join!(bypass, see_requested(archiver), gap);
    [problem(bypass.unwrap_or(Ok(None))), requested.err(), problem(gap)].into_iter().flatten().collect()
}

/// What a look found, or why it could not be made.
fn problem<E: Into<anyhow::Error>>(looked: anyhow::Result<Option<E>>) -> Option<anyhow::Error> {
    looked.map_or_else(Some, |found| found.map(Into::into))
}

/// Several problems as one error, in the words of all. It is a gap only if all are: `check` shows gaps by itself, and of a daemon's
/// problems the others.
fn together(mut problems: Vec<anyhow::Error>) -> Option<anyhow::Error> {
    let mut texts: Vec<String> = Vec::new();
    for text in problems.iter().map(format_chain) {
        if !texts.contains(&text) {
            texts.push(text);
        }
    }
    let is_gap = |problem: &anyhow::Error| problem.is::<Gap>() || problem.is::<UnreachedIn>();
    problems.sort_by_key(is_gap);
    let first = problems.into_iter().next()?;
    Some(if texts.len() > 1 { first.context(Diagnostic::gather("", texts).to_string()) } else { first })
}

/// Whether PostgreSQL requests the archiving of what waits. An error says that it does not.
async fn see_requested(archiver: &Archiver) -> anyhow::Result<()> {
    see_waiting(archiver).await?;
    // A standby's WAL waits until its promotion, where it archives at all.
    if let Some(span) = archiver.asking().neglected().await?
        && archiver.uploader().written_timeline().await?.is_some()
    {
        bail!(
            "WAL is waiting in {}, and PostgreSQL has not requested its archiving for {}\nHINT: Check \
             pg_stat_archiver, and archive_command: it hangs, or it does not call archive-push.",
            archiver.wal_directory().display(),
            human::span(span)
        );
    }
    Ok(())
}

/// Notes whether files wait. The look-ahead does so too, and may be switched off.
pub(crate) async fn see_waiting<U: Upload>(archiver: &Archiver<U>) -> anyhow::Result<()> {
    let status = ready::status_directory(archiver);
    let directory = status.clone();
    let waiting = match disk::run(&status, move || ready::scan(&directory, 1, None)).await? {
        Ok(found) => found.count > 0,
        // PostgreSQL makes it when it starts.
        Err(error) if error.kind() == ErrorKind::NotFound => false,
        Err(error) => bail!("{} cannot be read: {error}", status.display()),
    };
    archiver.asking().see(waiting);
    Ok(())
}

/// Whether all that is archived can be recovered, as far as that is known. An error says what cannot, as long as it is the same in the
/// same words; `known` is that until a look finds nothing.
async fn is_reached<F: Future<Output = anyhow::Result<Looked>>>(
    known: &Mutex<Option<UnreachedIn>>,
    look: impl Fn() -> F,
) -> anyhow::Result<bool> {
    let get = || known.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let set = |now| *known.lock().unwrap_or_else(PoisonError::into_inner) = now;
    let (reported, mut before) = (get(), None::<UnreachedIn>);
    for looks in 0..CONFIRMING_LOOKS {
        if looks > 0 {
            // An upload may be overtaken by the next one.
            tokio::time::sleep(INTERVAL).await;
        }
        match look().await? {
            Looked::Nothing => {
                set(None);
                return Ok(true);
            }
            Looked::Unknown => break,
            Looked::Found(found) if reported.as_ref().is_some_and(|reported| reported.is_same(&found)) => {
                break;
            }
            Looked::Found(found) => match before {
                Some(same) if same.is_same(&found) => {
                    set(Some(same));
                    break;
                }
                _ => before = Some(found),
            },
        }
    }
    match get() {
        Some(unreached) => Err(unreached.into()),
        None => Ok(false),
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::two;
    use super::*;

    /// Promise 7: neither what is wrong nor what could not be determined keeps the rest from being looked at.
    #[tokio::test]
    async fn no_look_hides_another() {
        let (main, _far, uploader, _) = two().await;
        // Neither is the record of dropped WAL a file nor is there a pg_control.
        std::fs::create_dir(main.pgdata().join("pg_wal").join(walpoint_base::dropped::FILE)).unwrap();
        std::fs::remove_dir(main.pgdata().join("pg_wal/archive_status")).unwrap();
        let text = "no directory";
        walpoint_base::durable::replace(&main.pgdata().join("pg_wal/archive_status"), text.as_bytes(), 0o600)
            .unwrap();
        let archiver = Archiver::new(uploader, Duration::from_secs(1), None);
        let text = format_chain(&together(look(&archiver).await).unwrap());
        for problem in
            ["pg_control cannot be read", "archive_status cannot be read", "walpoint-dropped, cannot"]
        {
            assert_eq!(text.matches(problem).count(), 1, "{problem}: {text}");
        }
    }

    #[test]
    fn problems_are_reported_together_and_are_a_gap_only_if_all_are() {
        let gap = || anyhow::Error::from(Gap::example());
        let unreached = || UnreachedIn::of("00000001000000000000000D", "00000001000000010000000F").into();
        let other = || anyhow::anyhow!("PostgreSQL asks for nothing\nHINT: Check pg_stat_archiver.");
        assert!(together(vec![]).is_none());
        let is_gap = |problem: &anyhow::Error| {
            problem.chain().any(|cause| cause.is::<Gap>() || cause.is::<UnreachedIn>())
        };
        let gaps = together(vec![gap(), unreached()]).unwrap();
        assert!(is_gap(&gaps));
        let all = together(vec![gap(), other(), unreached(), other()]).unwrap();
        assert!(!is_gap(&all), "check has to show the other one");
        for (problem, parts) in [(gaps, 2), (all, 3)] {
            let text = format_chain(&problem);
            let message = text.lines().next().unwrap();
            assert_eq!(message.split("; ").count(), parts, "{text}");
            assert!(text.contains("was dropped") && text.contains("HINT: Take a new backup."), "{text}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn another_start_of_the_server_is_looked_at_soon() {
        let mut schedule = ReachSchedule::default();
        let server = |start| Some(ServerStart { pid: 1, start });
        assert!(schedule.is_due(None) && schedule.is_due(server(1)));
        schedule.next = Some(Instant::now() + REACH_INTERVAL);
        assert!(!schedule.is_due(server(1)) && schedule.is_due(server(2)) && schedule.is_due(server(2)));
        schedule.next = Some(Instant::now() + REACH_INTERVAL);
        tokio::time::advance(REACH_INTERVAL).await;
        assert!(schedule.is_due(server(2)));
    }

    fn found(missing: &str, last: u32) -> Looked {
        Looked::Found(UnreachedIn::of(
            &format!("0000000100000000000000{missing}"),
            &format!("00000001000000010000{last:04X}"),
        ))
    }

    /// What the looks say one after the other, the last of them for ever.
    async fn looked(
        known: &Mutex<Option<UnreachedIn>>,
        mut script: Vec<fn(u32) -> Looked>,
    ) -> Result<bool, String> {
        script.reverse();
        let script = Mutex::new((script, 0_u32));
        let look = || async {
            let mut script = script.lock().unwrap();
            script.1 += 1;
            let next = if script.0.len() > 1 { script.0.pop().unwrap() } else { script.0[0] };
            Ok(next(script.1))
        };
        is_reached(known, look).await.map_err(|error| error.to_string())
    }

    #[tokio::test(start_paused = true)]
    async fn a_gap_is_told_however_much_is_archived_behind_it_until_it_is_gone() {
        let known = Mutex::new(None);
        let gap: fn(u32) -> Looked = |last| found("0D", last);
        let told = looked(&known, vec![gap]).await.unwrap_err();
        assert!(told.contains("cannot pass segment 00000001000000000000000D"), "{told}");
        // The task is started again while more is archived, an upload is overtaken, or the repository does not answer.
        let overtaken: fn(u32) -> Looked = |last| found(&format!("{:02X}", 0x20 + last), last);
        let unknown: fn(u32) -> Looked = |_| Looked::Unknown;
        for script in [vec![overtaken, gap], vec![overtaken], vec![unknown]] {
            assert_eq!(looked(&known, script).await.unwrap_err(), told, "in the same words");
        }
        let other: fn(u32) -> Looked = |last| found("1F", last);
        let moved = looked(&known, vec![other]).await.unwrap_err();
        assert!(moved.contains("segment 00000001000000000000001F"), "{moved}");
        let same = || async { Ok(other(1)) };
        let error = is_reached(&known, same).await.unwrap_err();
        assert!(error.is::<UnreachedIn>(), "its kind shows, too");
        let nothing: fn(u32) -> Looked = |_| Looked::Nothing;
        assert!(looked(&known, vec![nothing]).await.unwrap());
        assert!(looked(&known, vec![overtaken, nothing]).await.unwrap());
        assert!(!looked(&known, vec![overtaken]).await.unwrap(), "it is looked at again soon");
    }
}
