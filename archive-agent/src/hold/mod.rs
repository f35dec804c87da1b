//! `archive-agent hold`: what must not be deleted, why, and until when.
//!
//! A hold is placed in every repository of the cluster, or in those that are named. Nothing is ever taken back: removing a
//! hold is an entry of its own ([`walpoint_repo::holds`]). A crash in the middle leaves the hold in some repositories; the
//! same command again places it in the others too, twice at worst, which does no harm.

mod document;
mod numbered;
mod recorded;

use anyhow::{Context, anyhow, bail};
use clap::{Args, Subcommand};
use futures_util::{StreamExt, stream};
use jiff::tz::TimeZone;
use jiff::{Span, Timestamp};
use walpoint_base::target::{self, TimeError};
use walpoint_base::{BackupId, ClusterName, Diagnostic};
use walpoint_repo::Repository;
use walpoint_repo::backup::{AnnouncedSet, AnnouncementReason, Backups, ManifestState};
use walpoint_repo::expire::{clock_ahead, clocks_apart};
use walpoint_repo::holds::{HeldOn, Hold, Holdings, Holds, Placement};
use walpoint_runtime::args::{self, CommonArgs, Selection};
use walpoint_runtime::exit::Failure;
use walpoint_runtime::operator::user;
use walpoint_runtime::{help, output};
use walpoint_storage::RepoError;
use walpoint_storage::store::StoreSettings;
use walpoint_words::format_chain;

pub(crate) use self::document::HoldDocument;
use self::document::HoldsDocument;
use crate::foreign::{self, LocalCluster};
use crate::selection::as_owner;

/// Manifests that are read at once.
const AT_ONCE: usize = 8;

/// The heading of options about what is held.
const HELD: &str = "Backups to hold";

const ADD: &[(&str, &str)] = &[
    (
        "Keep one backup until a date",
        "archive-agent hold add --until 2027-12-31 --reason \"audit 2026\" --backup \\\n\
         20261121T101500Z-00000001-0000000002000028-9f3a0c11",
    ),
    (
        "Keep every backup with a label for 90 days",
        "archive-agent hold add --label before-migration --until 90d \\\n--reason \"until the migration is proven\"",
    ),
];

const LIST: &[(&str, &str)] = &[
    ("Show the holds in force", "archive-agent hold list"),
    ("Also show who removed which hold, and when", "archive-agent hold list --all"),
];

const REMOVE: &[(&str, &str)] = &[("Remove hold 3", "archive-agent hold remove 3")];

/// What `hold` can do.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum HoldCommand {
    /// Place a hold on a backup, or on every backup with a label.
    Add(AddArgs),
    /// List the holds in force.
    #[command(after_long_help = help::examples(LIST))]
    List {
        /// Also list holds that ended or were removed.
        #[arg(long)]
        all: bool,
    },
    /// Remove a hold; the next expire deletes what only it kept.
    Remove(RemoveArgs),
}

/// Options of `hold add`.
#[derive(Debug, Clone, Args)]
#[command(after_long_help = help::examples(ADD))]
pub(crate) struct AddArgs {
    /// Hold this backup.
    #[arg(long, value_name = "ID", required_unless_present = "label", conflicts_with = "label", help_heading = HELD)]
    backup: Option<BackupId>,
    /// Hold every backup with this label, including future ones.
    #[arg(long, value_name = "TEXT", value_parser = args::line, help_heading = HELD)]
    label: Option<String>,
    /// Record this reason, for anyone who finds the hold later.
    #[arg(long, value_name = "TEXT", value_parser = args::line)]
    reason: String,
    /// End the hold at this date or time ("2027-12-31", "2027-12-31 18:00:00+01"), a span from now ("90d"), or "never".
    #[arg(long, value_name = "TIME")]
    until: String,
    /// Record who requested the hold [default: the user that runs the command].
    #[arg(long, value_name = "NAME", value_parser = args::line)]
    who: Option<String>,
}

/// Options of `hold remove`.
#[derive(Debug, Clone, Args)]
#[command(after_long_help = help::examples(REMOVE))]
pub(crate) struct RemoveArgs {
    /// Remove the hold that has this number, as hold list shows it, from every repository that has it, under whatever number. Where the
    /// number belongs to different holds in several repositories, add --repo NAME: the hold is then removed only there.
    number: u64,
    /// Record who removed the hold [default: the user that runs the command].
    #[arg(long, value_name = "NAME", value_parser = args::line)]
    who: Option<String>,
}

/// Runs the command.
pub(crate) async fn run(common: &CommonArgs, command: &HoldCommand) -> Result<(), Failure> {
    let selection = common.select::<StoreSettings>()?;
    if !matches!(command, HoldCommand::List { .. }) {
        as_owner(&selection).await?;
    }
    match command {
        HoldCommand::Add(args) => add(common, &selection, args).await,
        HoldCommand::List { all } => list(common, &selection, *all).await,
        HoldCommand::Remove(args) => remove(common, &selection, args).await,
    }
}

async fn add(
    common: &CommonArgs,
    selection: &Selection<StoreSettings>,
    args: &AddArgs,
) -> Result<(), Failure> {
    let at = Timestamp::now();
    let until = end(&args.until, at).map_err(Failure::usage)?;
    if args.reason.trim().is_empty() {
        return Err(Failure::usage(anyhow!(
            "--reason is empty\nHINT: State the reason: the next person to find the hold needs to know it."
        )));
    }
    let on = match (args.backup, &args.label) {
        (Some(id), _) => HeldOn::Backup(id),
        (None, Some(label)) => HeldOn::Label(label.clone()),
        (None, None) => return Err(Failure::usage(anyhow!("neither --backup nor --label is given"))),
    };
    let who = args.who.clone().unwrap_or_else(user);
    let placement = Placement { on, reason: args.reason.clone(), who, at, until };
    let mut document = HoldsDocument::new(&selection.cluster);
    let (mut failed, own) = (Vec::new(), LocalCluster::of(selection).await.if_known());
    for (name, settings) in &selection.repositories {
        match place((selection, &own), (name, settings), &placement, &args.until).await {
            Ok(hold) => document.add(name, vec![HoldDocument::of(&hold, at)]),
            Err(error) => failed.push(format!("repository {name}: {}", format_chain(&error))),
        }
    }
    print(common, &document)?;
    match failed.is_empty() {
        true => Ok(()),
        false => Err(Diagnostic::gather("the hold was not placed everywhere", failed).into()),
    }
}

/// Places a hold in one repository. `wanted` is its end as it was given.
async fn place(
    (selection, own): (&Selection<StoreSettings>, &LocalCluster),
    (name, settings): (&str, &StoreSettings),
    placement: &Placement,
    wanted: &str,
) -> anyhow::Result<Hold> {
    let (repository, cluster) = (Repository::open(name, settings).await?, &selection.cluster);
    // It would keep another cluster's backups, and not those that are meant.
    foreign::refuse(&repository, cluster, own).await?;
    if let Some(until) = placement.until
        && let Some(ahead) = clock_ahead(repository.store()).await?
    {
        let apart = clocks_apart(repository.store(), ahead);
        end_by_store(wanted, until, Timestamp::now() + ahead, apart)?;
    }
    if let HeldOn::Backup(id) = placement.on {
        match Backups::of(&repository, cluster).standing(id).await? {
            ManifestState::Finished(_) => {}
            ManifestState::Unfinished => {
                bail!("it has no finished backup {id}\nHINT: \"archive-agent status\" lists the backups.")
            }
            ManifestState::Aborted(_) => bail!("backup {id} was aborted before it was finished"),
        }
    }
    let number = Holds::of(&repository, cluster).add(placement).await?;
    let held = look_at_held(&repository, cluster, &placement.on, number).await;
    recorded::placed(&repository, selection, number, placement).await;
    held?;
    Ok(Hold { number, placed: placement.clone(), removed: None })
}

/// What became of the backups that a new hold is meant for, see [`look_again`]; warns if there are none.
async fn look_at_held(
    repository: &Repository,
    cluster: &ClusterName,
    on: &HeldOn,
    number: u64,
) -> anyhow::Result<()> {
    let (backups, name) = (Backups::of(repository, cluster), repository.name());
    let label = match on {
        HeldOn::Backup(id) => return look_again(&backups, name, &[*id], number).await,
        HeldOn::Label(label) => label,
    };
    match labelled(repository, cluster, label).await {
        Ok(ids) if ids.is_empty() => tracing::warn!(
            "no finished backup of cluster {cluster} in repository {name} has the label {label:?}: the hold keeps those still to \
             come"
        ),
        Ok(ids) => look_again(&backups, name, &ids, number).await?,
        // The hold is placed.
        Err(error) => tracing::debug!("cannot determine whether a backup has the label: {error}"),
    }
    Ok(())
}

/// An `expire` that read the holds before this one was placed does not know it: fails if it has deleted one of the backups, and warns
/// of those which it may yet delete.
async fn look_again(backups: &Backups, name: &str, ids: &[BackupId], number: u64) -> anyhow::Result<()> {
    let announced = backups.announcements().await?.read;
    let expired =
        announced.iter().map(|one| &one.announcement).filter(|one| one.reason == AnnouncementReason::Expired);
    let expired = AnnouncedSet::new(expired);
    for id in ids {
        if !matches!(backups.standing(*id).await?, ManifestState::Finished(_)) {
            bail!("backup {id} was deleted while hold {number} was placed, which does not keep it");
        }
        if expired.has_backup(*id) {
            tracing::warn!(
                "backup {id} is marked for deletion in repository {name}: an expire that is running now may not know hold \
                 {number}\nHINT: When that has ended, check with \"archive-agent status\" that the backup is there."
            );
        }
    }
    Ok(())
}

/// The finished backups that have this label. One that cannot be read has none.
async fn labelled(
    repository: &Repository,
    cluster: &ClusterName,
    label: &str,
) -> Result<Vec<BackupId>, RepoError> {
    let mut found = Vec::new();
    let backups = &Backups::of(repository, cluster);
    let listed = backups.list().await?;
    let mut standings = stream::iter(listed.iter().rev().map(|listed| listed.id))
        .map(|id| async move { (id, backups.standing(id).await) })
        .buffered(AT_ONCE);
    while let Some((id, standing)) = standings.next().await {
        match standing {
            Ok(ManifestState::Finished(summary)) if summary.facts.label == label => found.push(id),
            Ok(_) | Err(RepoError::Corrupt { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

async fn list(common: &CommonArgs, selection: &Selection<StoreSettings>, all: bool) -> Result<(), Failure> {
    let now = Timestamp::now();
    let mut document = HoldsDocument::new(&selection.cluster);
    let (mut unreadable, mut unread, mut wrong_settings) = (Vec::new(), Vec::new(), true);
    for (name, settings) in &selection.repositories {
        let Holdings { holds, damaged } = match look(selection, name, settings).await {
            Ok(holdings) => holdings,
            Err(error) => {
                wrong_settings &= matches!(error, RepoError::Settings { .. });
                let error = walpoint_words::error(&error).to_string();
                unread.push(format!("repository {name}: {error}"));
                document.add_unread(name, error);
                continue;
            }
        };
        let shown = holds.iter().filter(|hold| all || hold.is_in_force(now));
        document.add(name, shown.map(|hold| HoldDocument::of(hold, now)).collect());
        unreadable.extend(
            damaged
                .iter()
                .map(|damaged| format!("repository {name}: {}", walpoint_words::error(&damaged.error()))),
        );
    }
    print(common, &document)?;
    match unreadable.is_empty() {
        true if !document.has_read() => {
            let error = Diagnostic::gather("no repository could be read", unread);
            Err(if wrong_settings { Failure::usage(error) } else { error.into() })
        }
        true => Ok(()),
        false => Err(Diagnostic::gather("", unreadable).into()),
    }
}

async fn look(
    selection: &Selection<StoreSettings>,
    name: &str,
    settings: &StoreSettings,
) -> Result<Holdings, RepoError> {
    // A repository that does not answer is waited for only as long as a person would.
    let repository = Repository::open(name, &settings.impatient()).await?;
    Holds::of(&repository, &selection.cluster).look().await
}

async fn remove(
    common: &CommonArgs,
    selection: &Selection<StoreSettings>,
    args: &RemoveArgs,
) -> Result<(), Failure> {
    let at = Timestamp::now();
    let who = args.who.clone().unwrap_or_else(user);
    let mut document = HoldsDocument::new(&selection.cluster);
    let (mut all, own) = (Vec::new(), LocalCluster::of(selection).await);
    for (name, settings) in &selection.repositories {
        let repository = Repository::open(name, settings).await?;
        // The next expire of the cluster that has it would delete what it keeps.
        let refused = foreign::refuse(&repository, &selection.cluster, &own).await;
        refused.with_context(|| format!("repository {name}"))?;
        let holds = Holds::of(&repository, &selection.cluster);
        let known = holds.look().await?;
        let damaged = known.damaged.iter().any(|damaged| damaged.number == args.number);
        if damaged && selection.repositories.len() > 1 {
            return Err(Failure::usage(anyhow!(
                "hold {0} of repository {name} cannot be read\nDETAIL: Each repository has numbers of its \
                 own.\nHINT: If you mean that hold, add --repo {name}. Otherwise, add --repo with the \
                 name of the other repository.",
                args.number
            )));
        }
        if damaged {
            // What it held, and whether it is in other repositories, nobody knows.
            holds.remove(args.number, &who, at).await?;
            recorded::removed(&repository, selection, args.number, &who, None).await;
            tracing::warn!(
                "hold {} of repository {name} could not be read\nDETAIL: It counts as removed.",
                args.number
            );
            return print(common, &document);
        }
        all.push((repository, holds, known.holds));
    }
    let known: Vec<(&str, &[Hold])> =
        all.iter().map(|(repository, _, placed)| (repository.name(), placed.as_slice())).collect();
    let meant = numbered::placement(args.number, &known, at)?;
    for (repository, holds, placed) in all {
        let name = repository.name();
        let Some(mut hold) = placed.into_iter().find(|hold| hold.placed == meant) else { continue };
        if hold.removed.is_none() {
            holds.remove(hold.number, &who, at).await?;
            recorded::removed(&repository, selection, hold.number, &who, Some(&hold.placed)).await;
            hold.removed = Some((who.clone(), at));
        }
        document.add(name, vec![HoldDocument::of(&hold, at)]);
    }
    print(common, &document)
}

fn print(common: &CommonArgs, document: &HoldsDocument) -> Result<(), Failure> {
    match common.json {
        true => output::json(document),
        false => output::text(&document.text()),
    }
}

/// When a hold ends: `None` for never. Without a zone a date is one of UTC, and its last moment counts.
fn end(text: &str, now: Timestamp) -> anyhow::Result<Option<Timestamp>> {
    let text = text.trim();
    if text == "never" {
        return Ok(None);
    }
    let day = text.parse::<jiff::civil::Date>().ok().filter(|_| text.len() == "2027-12-31".len());
    let end = if let Some(day) = day {
        day.tomorrow()?.to_zoned(TimeZone::UTC)?.timestamp()
    } else if let Ok(span) = text.parse::<Span>() {
        now.to_zoned(TimeZone::UTC).checked_add(span)?.timestamp()
    } else {
        let parsed = target::parse_time(text, now).map_err(|error| match error {
            TimeError::Unreadable(_) => anyhow!(
                "--until {text} cannot be read\nHINT: Give a date (\"2027-12-31\"), a time with its zone (\"2027-12-31 \
                 18:00:00+01\"), a span from now (\"90d\") or \"never\"."
            ),
            TimeError::Twice { .. } | TimeError::Never { .. } | TimeError::SeveralZones { .. } => anyhow!("--until: {error}"),
        });
        parsed?.to_time()
    };
    if end <= now {
        bail!("--until {text} is in the past: such a hold protects nothing");
    }
    Ok(Some(end))
}

/// Fails if a hold would end at another time than was meant, by the store's clock, by which `expire` reads it. `apart`: that the clocks
/// disagree.
fn end_by_store(
    text: &str,
    until: Timestamp,
    store_now: Timestamp,
    apart: Option<String>,
) -> anyhow::Result<()> {
    let Some(apart) = apart else { return Ok(()) };
    if text.trim().parse::<Span>().is_ok() {
        bail!(
            "{apart}\nDETAIL: --until {text} counts from this machine's clock, and expire uses the store's, so the hold would end too \
             early or too late.\nHINT: Set the clocks right (NTP) and run it again, or give the end as a date or a time."
        );
    }
    if until <= store_now {
        bail!(
            "{apart}\nDETAIL: By the store's clock, --until {text} is in the past: such a hold protects nothing.\nHINT: Set the clocks \
             right (NTP) and run it again."
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_as_people_write_them() {
        let now: Timestamp = "2026-11-21T12:00:00Z".parse().unwrap();
        for (text, expected) in [
            ("never", None),
            ("2026-12-31", Some("2027-01-01T00:00:00Z")),
            ("90d", Some("2027-02-19T12:00:00Z")),
            ("1y", Some("2027-11-21T12:00:00Z")),
            ("2026-12-31 18:00:00+01", Some("2026-12-31T17:00:00Z")),
        ] {
            let expected = expected.map(|text| text.parse().unwrap());
            assert_eq!(end(text, now).unwrap(), expected, "{text}");
        }
        for bad in ["", "soon", "2026-11-20", "3 days ago", "2026-12-31 18:00:00", "-1d"] {
            assert!(end(bad, now).is_err(), "{bad:?}");
        }
        // The day on which clocks are turned back has that time twice.
        let twice = end("2027-10-31 02:30:00[Europe/Rome]", now).unwrap_err().to_string();
        assert!(twice.contains("2027-10-31 02:30:00+02:00") && twice.contains("+01:00"), "{twice}");
    }

    /// K1: an end that counts from a wrong clock is refused, and so is one that the store's clock has passed.
    #[test]
    fn an_end_holds_by_the_stores_clock() {
        let now: Timestamp = "2026-11-21T12:00:00Z".parse().unwrap();
        let store: Timestamp = "2026-11-23T12:00:00Z".parse().unwrap();
        let apart = || Some("the store is 172800 s ahead of this machine's clock".to_owned());
        let of = |text: &str, apart| end_by_store(text, end(text, now).unwrap().unwrap(), store, apart);
        for (text, says) in [("1d", "counts from"), ("90d", "counts from"), ("2026-11-22", "is in the past")]
        {
            let refused = of(text, apart()).unwrap_err().to_string();
            assert!(
                refused.starts_with("the store is 172800 s ahead") && refused.contains(says),
                "{refused}"
            );
            assert!(of(text, None).is_ok(), "the clocks agree");
        }
        assert!(of("2026-12-31", apart()).is_ok(), "it ends when it was meant to");
    }
}
