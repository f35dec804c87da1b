//! The command `plan`, and the plan that `restore` carries out.
//!
//! All repositories are asked at the same time, because one may lag behind another: it lacks the newest backup, timeline or
//! restore point, and would give an older answer as if it were the only one. `choice` says which answer counts. A repository
//! that cannot be read is skipped with a warning, and so is one that has not answered [`PATIENCE`] after another one gave a plan.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::anyhow;
use clap::Args;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use jiff::Timestamp;
use walpoint_base::{BackupId, ClusterName, LineageId, TimelineId};
use walpoint_plan::restore::{
    PlanReport, Replayed, Request, RestorePlan, SegmentDecoder, TablespaceDocument, Unreachable, text,
};
use walpoint_repo::backup::{Backups, CondemnedPacks, CondemnedReason, NumberedCondemned};
use walpoint_repo::catalog::Catalog;
use walpoint_repo::lineage::AckMember;
use walpoint_repo::planning::{self, creating_segments};
use walpoint_repo::{Lineage, Repository};
use walpoint_runtime::args::{CommonArgs, Selection};
use walpoint_runtime::exit::{FAILED, Failure, USAGE};
use walpoint_runtime::output;
use walpoint_storage::RepoError;
use walpoint_storage::store::StoreSettings;

use crate::agreement;
use crate::choice::{self, Refused};
use crate::decoder::WalDecoder;
use crate::target::TargetArgs;
use crate::together;

/// How long a plan that one repository gave waits for the answers of the others. A store that hangs answers after minutes.
const PATIENCE: Duration = Duration::from_secs(20);

/// Options of `plan`.
#[derive(Debug, Clone, Args)]
pub(crate) struct PlanArgs {
    #[command(flatten)]
    target: TargetArgs,
}

/// A plan and what it is about.
#[derive(Debug, Clone)]
pub(crate) struct Planned {
    /// The repository that it reads from.
    pub(crate) repository: Repository,
    /// The one that the backup's files are read from: the same, unless they are damaged in it and another has them.
    pub(crate) files_from: Repository,
    /// The cluster.
    pub(crate) cluster: ClusterName,
    /// The cluster's lineage that holds backup and WAL.
    pub(crate) lineage: Lineage,
    /// The plan.
    pub(crate) plan: RestorePlan,
    /// What is known to be damaged of what the backup needs, and what to do.
    pub(crate) damage: Option<String>,
    /// Whether it reads the WAL of several repositories, which none of them has alone.
    pub(crate) together: bool,
    /// Why the incomplete copy that it ends in is not known to be that end, by what other repositories have.
    pub(crate) doubtful_end: Option<String>,
    /// The segments that create tablespaces, as the index that was read for the plan marks them; `None` if it could not be
    /// read up to there.
    pub(crate) creating: Option<Vec<Replayed>>,
}

/// Why there is no plan.
#[derive(Debug)]
pub(crate) enum NoPlan {
    /// The target cannot be reached.
    Unreachable(Box<Unreachable>),
    /// It could not be found out.
    Failed(Failure),
}

impl<E: Into<Failure>> From<E> for NoPlan {
    fn from(failure: E) -> Self {
        Self::Failed(failure.into())
    }
}

/// Runs the command.
pub(crate) async fn run(common: &CommonArgs, args: &PlanArgs) -> Result<(), Failure> {
    let request = args.target.request(None, false, Timestamp::now(), None)?;
    match make(common, &request).await {
        Ok(planned) => print(common, &planned, &[]),
        Err(no_plan) => refuse(common, no_plan),
    }
}

/// Plans, or says why not.
pub(crate) async fn make(common: &CommonArgs, request: &Request) -> Result<Planned, NoPlan> {
    let selection: Selection<StoreSettings> = common.select()?;
    let decoder: Arc<dyn SegmentDecoder> = Arc::new(WalDecoder);
    let answers = ask_all(&selection, request, &decoder).await;
    let mut refusals: Vec<Refused> = Vec::new();
    let mut failure: Option<RepoError> = None;
    let mut plans: Vec<Planned> = Vec::new();
    let mut catalogs: Vec<Catalog> = Vec::new();
    let mut skipped: Vec<&str> = Vec::new();
    for ((name, _), answer) in selection.repositories.iter().zip(answers) {
        let Some(answer) = answer else {
            tracing::warn!(
                "repository \"{name}\" was skipped: {} s after another one gave a plan it has not answered; what only it has \
                 is not in the plan",
                PATIENCE.as_secs()
            );
            skipped.push(name);
            continue;
        };
        match answer {
            Ok((catalog, answer)) => {
                catalogs.push(catalog);
                match answer {
                    Ok(planned) => plans.push(planned),
                    Err(refused) => refusals.push(*refused),
                }
            }
            Err(error) => {
                if selection.repositories.len() > 1 {
                    tracing::warn!("repository \"{name}\" was skipped: {error}");
                }
                skipped.push(name);
                failure.get_or_insert(error);
            }
        }
    }
    // The answer to a question that has several is not to be had from a repository that knows only one of them.
    if let Some(several) = choice::ambiguous(&mut refusals) {
        return Err(NoPlan::Unreachable(Box::new(several)));
    }
    compare(&mut plans, &mut catalogs, &selection.cluster).await?;
    let youngest = plans.iter().filter_map(|planned| Some((planned.lineage.id, planned.plan.youngest?)));
    let youngest: Vec<(LineageId, TimelineId)> = youngest.collect();
    let mut best = choice::best(plans);
    let outreached = best.as_ref().is_some_and(|planned| together::is_outreached(planned, &catalogs));
    if outreached || best.is_none() && catalogs.len() > 1 && together::may_help(&refusals) {
        let mut together = together::plan(&catalogs, request, &decoder).await;
        compare(&mut together.plans, &mut catalogs, &selection.cluster).await?;
        match (choice::best(together.plans), &best) {
            (Some(planned), None) => best = Some(planned),
            (Some(planned), Some(alone)) if choice::reach(&planned, alone).is_gt() => best = Some(planned),
            (Some(_), Some(_)) => {}
            (None, Some(alone)) => {
                if let Some(refusal) = together::refusal_of(alone, together.refusals) {
                    return Err(NoPlan::Unreachable(Box::new(refusal)));
                }
            }
            (None, None) => together::explain(&mut refusals, together.refusals),
        }
        // What one of them lacks was looked for in all.
        if let Some(planned) = best.as_ref().filter(|planned| planned.together) {
            let own = |refused: &Refused| {
                refused.refusal.lineage.as_ref().is_none_or(|lineage| lineage.id == planned.lineage.id)
            };
            refusals.retain(|refused| !own(refused));
        }
    }
    if let Some(mut planned) = best {
        // Recovery asks all repositories, and meets what any of them knows.
        let known = youngest.iter().filter(|(lineage, _)| *lineage == planned.lineage.id);
        planned.plan.youngest = planned.plan.youngest.and(known.map(|(_, timeline)| *timeline).max());
        let notes: Vec<String> = skipped.iter().map(|name| without(name, &planned.plan)).collect();
        planned.plan.notes.extend(notes);
        planned.plan.notes.extend(retired(&selection, &planned).await);
        if let Some(why) = planned.doubtful_end.take() {
            let end = Unreachable::of_end(
                &planned.plan,
                request.timeline,
                (&planned.lineage).into(),
                planned.lineage.segment_size,
                why,
            );
            return Err(NoPlan::Unreachable(Box::new(end)));
        }
        return match choice::contradicting(&planned, &mut refusals) {
            Some(unreachable) => Err(NoPlan::Unreachable(Box::new(unreachable))),
            None => {
                for Refused { repository, refusal } in &refusals {
                    tracing::warn!("repository \"{}\" is not used: {refusal}", repository.name());
                }
                Ok(planned)
            }
        };
    }
    match (choice::telling(refusals), failure) {
        (Some(unreachable), _) => Err(NoPlan::Unreachable(Box::new(unreachable))),
        (None, Some(error)) => Err(NoPlan::Failed(failed(error))),
        (None, None) => Err(NoPlan::Failed(Failure::usage(anyhow!("no repository is configured")))),
    }
}

/// Compares what the plans lead to with what every repository has: two servers' WAL is never used together. Notes where the end of a
/// plan is in doubt.
async fn compare(
    plans: &mut [Planned],
    catalogs: &mut [Catalog],
    cluster: &ClusterName,
) -> Result<(), NoPlan> {
    let compared = agreement::compare(plans, catalogs).await;
    if let Some(what) = compared.different {
        return Err(NoPlan::Failed(Failure::from(anyhow!(
            "{what}: two servers archived there. HINT: Name the repository whose server you mean: --repo URL --cluster {cluster}."
        ))));
    }
    for (planned, end) in plans.iter_mut().zip(compared.ends) {
        planned.doubtful_end = end;
    }
    Ok(())
}

/// What it means that a repository was skipped.
fn without(name: &str, plan: &RestorePlan) -> String {
    let skipped = format!("Repository \"{name}\" was skipped: what only it has is not in this plan.");
    if plan.youngest.is_none() {
        return skipped;
    }
    format!(
        "{skipped} If it has a younger timeline than {}, that is the latest one. Where recovery meets it, PostgreSQL stops (exit status \
         255), and you have to restore again.",
        plan.timeline
    )
}

/// What it means that repositories acknowledge WAL of the lineage and are not configured.
async fn retired(selection: &Selection<StoreSettings>, planned: &Planned) -> Option<String> {
    let lineage = &planned.lineage;
    let missing = |members: &[AckMember]| -> Vec<String> {
        let configured = |name: &String| selection.repositories.iter().any(|(known, _)| known == name);
        let without = &selection.settings.fetch_without;
        let others = members.iter().filter(|member| member.repository != planned.repository.id());
        let names = others.map(|member| &member.name);
        names
            .filter(|name| !configured(name) && !without.contains(name))
            .map(|name| format!("\"{name}\""))
            .collect()
    };
    // Who acknowledges now is asked only where those that did at first are not all there.
    if missing(&lineage.ack).is_empty() {
        return None;
    }
    let acknowledging = planned.repository.acknowledging(lineage).await;
    let acknowledging =
        acknowledging.inspect_err(|error| tracing::debug!("who acknowledges is not known: {error}")).ok()?;
    let missing = missing(&acknowledging.members);
    (!missing.is_empty()).then(|| {
        format!(
            "WAL of lineage {} is acknowledged by {} too, which this configuration does not have: what only that has is not in this \
             plan, and recovery past the end of the archive waits for its word. HINT: If it is gone for good, name it in \
             fetch_without.",
            lineage.id,
            missing.join(" and ")
        )
    })
}

/// What one repository says.
type Answer = Result<(Catalog, Result<Planned, Box<Refused>>), RepoError>;

/// The repositories' answers, in the order of the configuration; nothing from those that hang while another one has a plan.
async fn ask_all(
    selection: &Selection<StoreSettings>,
    request: &Request,
    decoder: &Arc<dyn SegmentDecoder>,
) -> Vec<Option<Answer>> {
    let asked = selection.repositories.iter().enumerate().map(|(at, (name, settings))| async move {
        (at, make_from(name, settings, &selection.cluster, request, decoder).await)
    });
    let mut asked: FuturesUnordered<_> = asked.collect();
    let mut answers: Vec<Option<Answer>> = selection.repositories.iter().map(|_| None).collect();
    let mut deadline: Option<tokio::time::Instant> = None;
    loop {
        let next = match deadline {
            None => asked.next().await,
            Some(deadline) => tokio::time::timeout_at(deadline, asked.next()).await.unwrap_or(None),
        };
        let Some((at, answer)) = next else { return answers };
        if matches!(answer, Ok((_, Ok(_)))) {
            deadline.get_or_insert_with(|| tokio::time::Instant::now() + PATIENCE);
        }
        if let Some(place) = answers.get_mut(at) {
            *place = Some(answer);
        }
    }
}

async fn make_from(
    name: &str,
    settings: &StoreSettings,
    cluster: &ClusterName,
    request: &Request,
    decoder: &Arc<dyn SegmentDecoder>,
) -> Answer {
    let mut catalog = Catalog::open(name, settings, cluster).await?;
    let repository = catalog.repository().clone();
    let plan = match planning::prove_from(&mut catalog, request, decoder, Timestamp::now()).await? {
        Ok(plan) => plan,
        Err(refusal) => return Ok((catalog, Err(Box::new(Refused { repository, refusal: *refusal })))),
    };
    let planned = planned(&mut catalog, plan).await?;
    Ok((catalog, Ok(planned)))
}

/// A plan that was made from a catalog, and what is known about it.
pub(crate) async fn planned(catalog: &mut Catalog, plan: RestorePlan) -> Result<Planned, RepoError> {
    let (repository, cluster) = (catalog.repository().clone(), catalog.cluster().clone());
    let known = catalog.lineages_mut().iter_mut().find(|known| known.id() == plan.lineage);
    let known = known.ok_or_else(|| RepoError::Internal(format!("lineage {} is not known", plan.lineage)))?;
    let damage = match known_damage(&repository, &cluster, known.condemned(), plan.backup.id).await {
        Ok(damage) => damage,
        Err(error @ (RepoError::Corrupt { .. } | RepoError::NotFound { .. })) => Some(error.to_string()),
        // What verify found is no condition of a restore.
        Err(error) => {
            tracing::debug!("what verify found cannot be read: {error}");
            None
        }
    };
    // The restore meets what cannot be read, and says so.
    let creating = creating_segments(known, &plan).await.ok();
    let lineage = known.lineage().clone();
    let files_from = repository.clone();
    Ok(Planned {
        repository,
        files_from,
        cluster,
        lineage,
        plan,
        damage,
        together: false,
        doubtful_end: None,
        creating,
    })
}

/// What `verify` or a backup found damaged of what the backup needs, and what to do. `condemned`: what is condemned, if that
/// was read for the plan.
async fn known_damage(
    repository: &Repository,
    cluster: &ClusterName,
    condemned: Option<&[NumberedCondemned]>,
    backup: BackupId,
) -> Result<Option<String>, RepoError> {
    let backups = Backups::of(repository, cluster);
    let mut condemned = match condemned {
        Some(condemned) => condemned.to_vec(),
        None => backups.condemned().await?.read,
    };
    condemned.retain(|one| one.condemned.reason == CondemnedReason::Damaged);
    if condemned.is_empty() {
        return Ok(None);
    }
    let reader = backups.open(backup).await?;
    let manifest = reader.manifest();
    let needs = |packs: &CondemnedPacks| {
        manifest.packs.packs().iter().any(|pack| {
            let owner = manifest.backups.get(usize::from(pack.backup.0));
            owner.is_some_and(|owner| packs.names(*owner, pack.pack))
        })
    };
    let found = condemned.iter().find(|one| one.condemned.packs.iter().any(needs));
    Ok(found.map(|found| {
        format!(
            "on {:.0} a pack was found damaged that backup {backup} needs, so restoring it may fail: archive-agent verify says \
             more, --backup takes another one (archive-agent status lists them)",
            found.condemned.written
        )
    }))
}

/// A failure to read a repository: wrong settings are the fault of the configuration.
fn failed(error: RepoError) -> Failure {
    let status = if matches!(error, RepoError::Settings { .. }) { USAGE } else { FAILED };
    Failure { status, error: error.into() }
}

/// Prints the plan, and the tablespaces that replay creates, if it is known what lies there.
pub(crate) fn print(
    common: &CommonArgs,
    planned: &Planned,
    tablespaces: &[TablespaceDocument],
) -> Result<(), Failure> {
    let mut plan = planned.plan.clone();
    plan.notes.extend(planned.damage.clone());
    if common.json {
        let report = PlanReport::of(&Ok(plan), planned.lineage.segment_size);
        return output::json(&report.with_tablespaces(tablespaces));
    }
    let text = text::plan(&plan, planned.lineage.segment_size);
    output::text(&(text + &text::tablespaces(tablespaces)))
}

/// Tells why there is no plan, what is missing, and what can be reached.
pub(crate) fn refuse(common: &CommonArgs, no_plan: NoPlan) -> Result<(), Failure> {
    match no_plan {
        NoPlan::Failed(failure) => Err(failure),
        NoPlan::Unreachable(unreachable) => {
            let error = anyhow!("{unreachable}; nothing was touched");
            if common.json {
                let size = unreachable.segment_size;
                output::json(&PlanReport::of(&Err(unreachable), size))?;
            } else {
                output::text(&text::unreachable(&unreachable))?;
            }
            Err(Failure { status: FAILED, error })
        }
    }
}

/// Options of `probe`.
#[derive(Debug, Clone, Args)]
pub(crate) struct ProbeArgs {
    /// A directory that has to be entered. Can be repeated.
    #[arg(long = "enter", value_name = "DIR")]
    enter: Vec<PathBuf>,
}

/// Opens what recovery will read, and writes nothing. One repository is enough: recovery needs no more.
pub(crate) async fn probe(common: &CommonArgs, args: &ProbeArgs) -> Result<(), Failure> {
    for directory in &args.enter {
        enter(directory)?;
    }
    let selection: Selection<StoreSettings> = common.select()?;
    let mut failure = None;
    for (name, settings) in &selection.repositories {
        match Repository::open(name, settings).await {
            Ok(_) => return Ok(()),
            Err(error) => {
                failure.get_or_insert(error);
            }
        }
    }
    Err(failure.map_or_else(|| Failure::usage(anyhow!("no repository is configured")), failed))
}

/// Fails if this user cannot get into a directory; names the outermost one that keeps him out.
fn enter(directory: &Path) -> anyhow::Result<()> {
    let mut outermost_first: Vec<&Path> = directory.ancestors().collect();
    outermost_first.reverse();
    for at in outermost_first {
        rustix::fs::access(at, rustix::fs::Access::EXEC_OK).map_err(|error| {
            anyhow!(
                "{} cannot be entered ({error}), and something would be restored below it: let that user in, or choose another \
                 place",
                at.display()
            )
        })?;
    }
    Ok(())
}

/// The arguments of `restore-agent` that run [`probe`] with the same selection, and enter these directories.
pub(crate) fn probe_arguments<'a>(
    config: Option<&Path>,
    repo: Option<&str>,
    cluster: &ClusterName,
    enter: impl Iterator<Item = &'a Path>,
) -> Vec<OsString> {
    let mut arguments: Vec<OsString> =
        ["probe", "--quiet", "--cluster", cluster.as_str()].map(OsString::from).to_vec();
    if let Some(config) = config {
        arguments.extend(["--config".into(), config.into()]);
    }
    if let Some(repo) = repo {
        arguments.extend(["--repo".into(), repo.into()]);
    }
    for directory in enter {
        arguments.extend(["--enter".into(), directory.into()]);
    }
    arguments
}

/// Where recovery ends, in words.
pub(crate) fn recovery_ends(plan: &RestorePlan) -> String {
    let place = format!("{} on timeline {}", plan.target, plan.timeline);
    match &plan.stop {
        Some(stop) => {
            let xid = stop.xid.map(|x| format!(", transaction {x}")).unwrap_or_default();
            let time = stop.time.map(|t| format!(", {t}")).unwrap_or_default();
            format!("{place}: the record at {}{xid}{time} decides", stop.record)
        }
        None => format!("{place}: at or after {}", plan.until),
    }
}
