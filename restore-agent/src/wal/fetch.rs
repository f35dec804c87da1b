//! `restore-agent fetch NAME PATH`: one file of WAL, without a prefetcher.
//!
//! The path leads to the whole, verified file or to what was there before. Killed in the middle, this leaves a temporary
//! file beside it, which a later fetch removes.

use std::path::{Path, PathBuf};

use clap::Args;
use jiff::SignedDuration;
use walpoint_base::{
    Diagnostic, RECOVERY_ORIGIN, TimelineId, WalDirectory, WalFileName, durable, tablespace,
};
use walpoint_runtime::args::{CommonArgs, Selection};
use walpoint_runtime::config::{self, HistoryOutage};
use walpoint_runtime::{help, owner};
use walpoint_storage::store::StoreSettings;
use walpoint_words::format_chain;

use crate::wal::archive::{ClusterArchive, FetchResult, Landed, Proof};
use crate::wal::atomic_file::{self, Durability};
use crate::wal::branch::{self, AskedSegment};
use crate::wal::histories::HistoryCache;
use crate::wal::pass::Pass;
use crate::wal::refusal::Remedy;
use crate::wal::retry_budget::{self, STANDBY_ATTEMPT};
use crate::wal::{abandoned, creates, parents};

/// The file is there.
const DONE: u8 = 0;
/// Proven not to be in the archive; on a standby also: ask again.
const ABSENT: u8 = 1;
/// PostgreSQL must stop: going on could lose data.
pub(crate) const STOP: u8 = 255;

const EXAMPLES: &[(&str, &str)] = &[(
    "Fetch a segment by hand",
    "restore-agent fetch 000000010000000000000008 /tmp/000000010000000000000008",
)];

/// Options of `fetch`.
#[derive(Debug, Args)]
#[command(after_long_help = help::examples(EXAMPLES))]
pub(crate) struct FetchArgs {
    /// Fetch the file of this name (%f).
    pub(crate) name: String,
    /// Write it to this path (%p).
    pub(crate) path: PathBuf,
    /// Time left to answer a standby.
    #[arg(long, hide = true)]
    pub(crate) within: Option<SignedDuration>,
}

/// Fetches one file; the exit status as `restore_command` has to give it.
pub(crate) async fn run(common: &CommonArgs, args: &FetchArgs) -> u8 {
    let name = match args.name.parse::<WalFileName>() {
        Ok(name) => name,
        Err(error) => {
            tracing::error!("{error}\nHINT: restore_command must pass %f and then %p.");
            return STOP;
        }
    };
    let place = WalDirectory::around(&args.path);
    let standby = place.as_ref().is_some_and(WalDirectory::is_standby);
    let own = place.as_ref().is_some_and(|place| place.has_own_history(name));
    // Whatever becomes of it: what was refused before counts for this question or for none.
    let server = place.as_ref().filter(|place| place.server);
    let pass = server.and_then(|place| Pass::in_wal(&place.wal).ask(name));
    let leaving = place.as_ref().filter(|place| own || (place.leaves_recovery() && name.is_never_written()));
    // The recovery is over: what it began with binds no later one.
    if let Some(place) = leaving
        && let Err(error) = durable::remove(&place.wal.join(RECOVERY_ORIGIN))
    {
        tracing::debug!("what the recovery began with is not forgotten: {error}");
    }
    if own {
        tracing::info!(
            "\"{name}\" is this server's own: PostgreSQL has it in pg_wal, so no repository is read for it"
        );
        return ABSENT;
    }
    if let Some(directory) = args.path.parent().filter(|d| !d.as_os_str().is_empty())
        && let Err(error) = durable::remove_abandoned(directory)
    {
        tracing::debug!("could not clean up {}: {error}", directory.display());
    }
    // What a repository has to say of it comes before.
    let probe = server.is_some_and(|place| abandoned::is_probe(place, name));
    if !probe && let Some(outcome) = place.as_ref().and_then(|p| from_cache(p, name, &args.path)) {
        return conclude(name, standby, HistoryOutage::Missing, &outcome);
    }
    if let Some(place) = &place
        && let Err(error) = owner::require(&place.pgdata)
    {
        return conclude(
            name,
            standby,
            HistoryOutage::Missing,
            &FetchResult::Uncertain(format_chain(&error)),
        );
    }
    match common.select_to_read::<StoreSettings>() {
        Ok(selection) => {
            let policy = selection.settings.standby_history_outage;
            let outcome = Box::pin(attempts(selection, name, (place.as_ref(), pass), args)).await;
            if let (Some(place), FetchResult::Landed(landed)) = (&place, &outcome)
                && let Err(refusal) = permit(place, landed)
            {
                tracing::error!("\"{name}\" is withheld: {refusal}");
                if let Err(error) = durable::remove(&args.path) {
                    tracing::debug!("{} stays: {error}", args.path.display());
                }
                return STOP;
            }
            conclude(name, standby, policy, &outcome)
        }
        // Without a configuration there is nothing to try.
        Err(failure) => {
            let outcome = FetchResult::Uncertain(format_chain(&failure.error));
            conclude(name, standby, HistoryOutage::Missing, &outcome)
        }
    }
}

/// Whether a server may replay a file; the error says why not. A standby is refused too: if it asked again, it would stream
/// the same record from its upstream and replay it.
fn permit(place: &WalDirectory, landed: &Landed) -> Result<(), String> {
    if !place.server {
        return Ok(());
    }
    let missing = tablespace::permit(&place.pgdata, &creates::replayed(place, landed.creates.clone()))?;
    missing.iter().for_each(|text| tracing::warn!("{text}"));
    Ok(())
}

async fn attempts(
    selection: Selection<StoreSettings>,
    name: WalFileName,
    (place, pass): (Option<&WalDirectory>, Option<TimelineId>),
    args: &FetchArgs,
) -> FetchResult {
    let budget = config::duration(selection.settings.fetch_timeout);
    let archive = ClusterArchive::new(selection, place);
    // PostgreSQL syncs what it restores itself.
    let durability = if place.is_some() { Durability::Readers } else { Durability::Ours };
    let attempt =
        || async { archive.fetch(name, &args.path, Proof::Wanted, durability).await.in_the_only_place() };
    let server = place.filter(|place| place.server);
    if let Some(place) = server {
        if let Some(why) = abandoned::passed_over(&archive, place, name).await {
            return FetchResult::Absent(why);
        }
        if let Some(known) = from_cache(place, name, &args.path) {
            return known;
        }
    }
    let standby = place.filter(|place| place.is_standby());
    let outcome = if standby.is_some() {
        let within = args.within.map_or(STANDBY_ATTEMPT, config::duration);
        retry_budget::at_once(within, Box::pin(attempt())).await
    } else {
        let tell = |why: &str| tracing::warn!("waiting for \"{name}\": {why}");
        retry_budget::until_certain(budget, attempt, tell).await
    };
    let outcome = match (outcome, name, server) {
        (FetchResult::Landed(landed), WalFileName::Segment(segment), Some(place)) => {
            let asked = AskedSegment { name: segment, pass, standby: standby.is_some() };
            on_the_path(&archive, place, asked, &args.path, landed).await
        }
        (outcome, ..) => outcome,
    };
    if let (Some(place), false) = (server, matches!(outcome, FetchResult::Landed(_))) {
        Pass::in_wal(&place.wal).refuse(name, pass);
    }
    if let (Some(place), FetchResult::Landed(_), WalFileName::Segment(segment)) = (server, &outcome, name) {
        parents::put(&archive, place, segment, &args.path).await;
    }
    let Some(place) = standby else { return outcome };
    if let (FetchResult::Landed(_), WalFileName::History(timeline)) = (&outcome, name) {
        let kept = std::fs::read(&args.path)
            .and_then(|content| HistoryCache::in_wal(&place.wal).put(timeline, &content));
        if let Err(error) = kept {
            tracing::warn!("\"{name}\" is not kept for the next outage: {error}");
        }
    }
    outcome
}

/// What a server may have of a segment: what belongs to the path that it follows. Nothing else stays at `path`.
async fn on_the_path(
    archive: &ClusterArchive,
    place: &WalDirectory,
    asked: AskedSegment,
    path: &Path,
    landed: Landed,
) -> FetchResult {
    let size = archive.segment_size();
    let cut = |until| size.map_or(Ok(()), |size| branch::cut(path, until, size));
    let outcome = branch::on_the_path(archive, place, asked, landed, cut).await;
    if !matches!(outcome, FetchResult::Landed(_))
        && let Err(error) = durable::remove(path)
    {
        tracing::debug!("{} stays: {error}", path.display());
    }
    outcome
}

/// A history that need not be asked for.
fn from_cache(place: &WalDirectory, name: WalFileName, path: &Path) -> Option<FetchResult> {
    let WalFileName::History(timeline) = name else { return None };
    if !place.server {
        return None;
    }
    let content = HistoryCache::in_wal(&place.wal).get(place.recovery, timeline)?;
    atomic_file::land(path, &content, Durability::Readers).ok()?;
    let size = u64::try_from(content.len()).unwrap_or_default();
    Some(FetchResult::Landed(Landed::of(size)))
}

/// The exit status for an outcome, after its reason was told.
fn conclude(name: WalFileName, standby: bool, policy: HistoryOutage, outcome: &FetchResult) -> u8 {
    match outcome {
        FetchResult::Landed(landed) => {
            if !landed.note.is_empty() {
                tracing::warn!("{}", landed.note);
            }
            DONE
        }
        FetchResult::Absent(why) => {
            tracing::info!("{why}");
            ABSENT
        }
        FetchResult::Uncertain(why) | FetchResult::Unwritten(why) => {
            unfetched(name, standby && later(name, policy), why, Remedy::Fix)
        }
        FetchResult::Refused(why, remedy) => unfetched(name, standby && later(name, policy), why, *remedy),
    }
}

/// The exit status for a file that may exist, after it was said why there is none. `again`: it will be asked for again.
fn unfetched(name: WalFileName, again: bool, why: &str, remedy: Remedy) -> u8 {
    if again {
        tracing::warn!("{}", postponed(name, why, remedy));
        return ABSENT;
    }
    tracing::error!("{}", refusal(name, why, remedy));
    STOP
}

/// Whether a standby is told "missing" for a file that may well exist.
pub(crate) fn later(name: WalFileName, policy: HistoryOutage) -> bool {
    !matches!((name, policy), (WalFileName::History(_), HistoryOutage::Stop))
}

/// Why a standby gets no file at the moment.
pub(crate) fn postponed(name: WalFileName, why: &str, remedy: Remedy) -> String {
    let postponed = Diagnostic::new(format!("\"{name}\" cannot be fetched at the moment: {why}"))
        .detail("This standby will retry.");
    remedy.restore_again().iter().fold(postponed, Diagnostic::hint).into()
}

/// Why PostgreSQL is stopped, and what to do.
pub(crate) fn refusal(name: WalFileName, why: &str, remedy: Remedy) -> String {
    let start_again = || "Fix the cause and start PostgreSQL again: recovery continues.".to_owned();
    Diagnostic::new(format!("could not fetch \"{name}\": {why}"))
        .detail(
            "PostgreSQL stops, because ending recovery without a file that may exist could lose transactions.",
        )
        .hint(remedy.restore_again().unwrap_or_else(start_again))
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hint_follows_the_remedy_and_not_the_words() {
        let name: WalFileName = "000000010000000000000002".parse().unwrap();
        let why = "\"Restore again\" is the name of a file";
        let text = refusal(name, why, Remedy::Fix);
        assert!(
            text.ends_with("\nHINT: Fix the cause and start PostgreSQL again: recovery continues."),
            "{text}"
        );
        for remedy in [
            Remedy::Restore,
            Remedy::RestoreAlong,
            Remedy::RestoreAlongOrStay("1".parse().unwrap()),
            Remedy::RestorePart,
        ] {
            let (stopped, later) = (refusal(name, "why", remedy), postponed(name, "why", remedy));
            assert!(
                stopped.contains("\nHINT: Restore again") && !stopped.contains("Fix the cause"),
                "{stopped}"
            );
            assert!(later.contains("\nHINT: Restore again"), "{later}");
        }
        assert!(!postponed(name, "why", Remedy::Fix).contains("HINT"));
    }

    #[test]
    fn the_status_follows_the_certainty() {
        let segment: WalFileName = "000000010000000000000002".parse().unwrap();
        let history: WalFileName = "00000002.history".parse().unwrap();
        let (missing, stop) = (HistoryOutage::Missing, HistoryOutage::Stop);
        let (landed, absent) = (FetchResult::Landed(Landed::of(1)), FetchResult::Absent("gone".into()));
        let (uncertain, refused) =
            (FetchResult::Uncertain("down".into()), FetchResult::Refused("another's".into(), Remedy::Fix));
        for (name, standby, policy, outcome, status) in [
            (segment, false, missing, &landed, 0),
            (segment, false, missing, &absent, 1),
            (segment, false, missing, &uncertain, 255),
            (segment, false, missing, &refused, 255),
            (history, false, missing, &refused, 255),
            (history, false, missing, &uncertain, 255),
            (segment, true, stop, &absent, 1),
            (segment, true, stop, &uncertain, 1),
            (segment, true, stop, &refused, 1),
            (history, true, stop, &refused, 255),
            (history, true, missing, &uncertain, 1),
            (history, true, stop, &uncertain, 255),
        ] {
            assert_eq!(
                conclude(name, standby, policy, outcome),
                status,
                "{name} {standby} {policy:?} {outcome:?}"
            );
        }
    }
}
