//! The command `plan`, and the plan that `restore` carries out.
//!
//! All repositories are asked at the same time, because one may lag behind another: it lacks the newest backup, timeline or
//! restore point, and would give an older answer as if it were the only one. `choice` says which answer counts. A repository
//! that cannot be read is skipped with a warning, and so is one that has not answered [`ask::TIME_LIMIT`] after another one gave a plan.
//!
//! | module | owns |
//! |---|---|
//! | [`ask`] | asking every repository |
//! | [`words`] | notes, hints, refusals and moments in words |
//! | [`text`], [`document`], [`stop`], [`removal`] | plans and refusals for a person and as JSON |
//! | [`remarks`] | what is added to a plan's notes here |
//! | [`mod@probe`] | whether a user can read what recovery reads |

mod ask;
mod document;
mod probe;
mod reason;
mod remarks;
mod removal;
mod stop;
#[cfg(test)]
mod tests;
mod text;
mod words;

use std::sync::Arc;

use anyhow::anyhow;
use clap::Args;
use jiff::Timestamp;
use walpoint_base::Diagnostic;
use walpoint_base::{ClusterName, LineageId, Lsn, TimelineId};
use walpoint_plan::restore::{
    DoubtfulEnd, PlannedSegment, RestorePlan, RestoreRequest, SegmentDecoder, Unreachable,
};
use walpoint_repo::catalog::Catalog;
use walpoint_repo::wal::slices::Superseded;
use walpoint_repo::{Lineage, Repository};
use walpoint_runtime::args::{CommonArgs, Selection};
use walpoint_runtime::exit::{FAILED, Failure, USAGE};
use walpoint_runtime::{help, human, output};
use walpoint_storage::RepoError;
use walpoint_storage::store::StoreSettings;

pub(crate) use self::ask::{ATTEMPTS, planned};
pub(crate) use self::document::PlanReport;
pub(crate) use self::document::{LocationContents, TablespaceDocument};
pub(crate) use self::probe::{ProbeArgs, probe, probe_arguments};
pub(crate) use self::words::{CommandLine, refusal};
use crate::agreement;
use crate::choice::{self, Refused};
use crate::decoder::WalDecoder;
use crate::target::TargetArgs;
use crate::together;

const EXAMPLES: &[(&str, &str)] = &[
    (
        "Plan a restore to the moment before a table was dropped",
        "restore-agent plan --target-time \"2026-11-21 10:14:59+01\"",
    ),
    (
        "Plan a restore to just before a transaction",
        "restore-agent plan --target-xid 4242 --target-exclusive",
    ),
    (
        "Plan a restore to the end of the archive, without a configuration",
        "restore-agent plan --repo s3://backups/prod --cluster main",
    ),
];

/// Options of `plan`.
#[derive(Debug, Clone, Args)]
#[command(after_long_help = help::examples(EXAMPLES))]
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
    pub(crate) cluster: ClusterName,
    /// The cluster's lineage that holds backup and WAL.
    pub(crate) lineage: Lineage,
    pub(crate) plan: RestorePlan,
    /// What this program adds to the plan's notes, one sentence each.
    pub(crate) remarks: Vec<String>,
    /// What is known to be damaged of what the backup needs, and what to do.
    pub(crate) damage: Option<String>,
    /// Whether it reads the WAL of several repositories, which none of them has alone.
    pub(crate) together: bool,
    /// Why the incomplete copy that it ends in is not known to be that end, by what other repositories have.
    pub(crate) doubtful_end: Option<DoubtfulEnd>,
    /// The segments that create tablespaces, as the index that was read for the plan marks them; `None` if it could not be
    /// read up to there.
    pub(crate) creating: Option<Vec<PlannedSegment>>,
    /// Where the last complete record starts that a recovery to the end of the archive replays, if that is known; nothing for another
    /// target.
    pub(crate) last_record: Option<Lsn>,
}

impl Planned {
    /// What a person should know of the plan, one sentence each.
    pub(crate) fn notes(&self, given: &CommandLine) -> Vec<String> {
        let mut notes = words::notes(&self.plan, given);
        notes.extend(self.remarks.iter().cloned());
        notes
    }
}

/// Why there is no plan.
#[derive(Debug)]
pub(crate) enum NoPlan {
    /// The target cannot be reached.
    Unreachable(Box<Unreachable>),
    /// It could not be found out.
    Failed(Failure),
}

impl NoPlan {
    /// What a command ends with, without what can be reached instead.
    pub(crate) fn failure(self) -> Failure {
        match self {
            Self::Failed(failure) => failure,
            Self::Unreachable(unreachable) => {
                let error = Diagnostic::new(refusal(&unreachable)).detail("Nothing was touched.").into();
                Failure { status: FAILED, error }
            }
        }
    }
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
        Err(no_plan) => Err(refused(common, no_plan)),
    }
}

/// Plans, or says why not.
pub(crate) async fn make(common: &CommonArgs, request: &RestoreRequest) -> Result<Planned, NoPlan> {
    let selection: Selection<StoreSettings> = common.select_to_read()?;
    let decoder: Arc<dyn SegmentDecoder> = Arc::new(WalDecoder);
    let mut known = Known::of(&selection, ask::ask_all(&selection, request, &decoder).await);
    // The answer to a question that has several is not to be had from a repository that knows only one of them.
    if let Some(several) = choice::ambiguous(&mut known.refusals) {
        return Err(NoPlan::Unreachable(Box::new(several)));
    }
    compare(&mut known.plans, &mut known.catalogs, &selection.cluster).await?;
    let youngest =
        known.plans.iter().filter_map(|planned| Some((planned.lineage.id, planned.plan.youngest?)));
    let youngest: Vec<(LineageId, TimelineId)> = youngest.collect();
    let best = choice::best(std::mem::take(&mut known.plans));
    let Some(mut planned) = known.or_together(best, &selection, request, &decoder).await? else {
        return Err(known.no_plan());
    };
    // Recovery asks all repositories, and meets what any of them knows.
    let others = youngest.iter().filter(|(lineage, _)| *lineage == planned.lineage.id);
    planned.plan.youngest = planned.plan.youngest.and(others.map(|(_, timeline)| *timeline).max());
    let skipped = known.skipped.iter().map(|name| remarks::without(name, &planned.plan));
    let skipped: Vec<String> = skipped.collect();
    planned.remarks.extend(skipped);
    let by_url = selection.chosen && common.names().is_empty();
    let retired = remarks::retired(&selection, &planned, by_url).await;
    planned.remarks.extend(retired);
    if let Some(doubt) = planned.doubtful_end.take() {
        let Planned { plan, lineage, .. } = &planned;
        let end = Unreachable::of_end(plan, request.timeline, lineage.into(), lineage.segment_size, doubt);
        return Err(NoPlan::Unreachable(Box::new(end)));
    }
    if let Some(unreachable) = choice::contradicting(&planned, &mut known.refusals, &known.catalogs) {
        return Err(NoPlan::Unreachable(Box::new(unreachable)));
    }
    for Refused { repository, refusal } in &known.refusals {
        tracing::warn!("repository \"{}\" is not used: {}", repository.name(), words::refusal(refusal));
    }
    Ok(planned)
}

/// What the repositories say.
#[derive(Default)]
struct Known<'a> {
    plans: Vec<Planned>,
    refusals: Vec<Refused>,
    catalogs: Vec<Catalog>,
    /// Why one could not be read, the first of several.
    failure: Option<RepoError>,
    /// Those that were not asked, or have not answered.
    skipped: Vec<&'a str>,
}

impl<'a> Known<'a> {
    /// The answers by what they are. What is left out is logged.
    fn of(selection: &'a Selection<StoreSettings>, answers: Vec<Option<ask::RepositoryAnswer>>) -> Self {
        let mut known = Self::default();
        for ((name, _), answer) in selection.repositories.iter().zip(answers) {
            match answer {
                None => {
                    tracing::warn!(
                        "repository \"{name}\" was skipped: it did not answer within {} after another \
                         repository led to a plan\nDETAIL: \
                         What only it has is not in the plan.",
                        human::span(ask::TIME_LIMIT)
                    );
                    known.skipped.push(name);
                }
                Some(Ok((catalog, answer))) => {
                    known.catalogs.push(catalog);
                    match answer {
                        Ok(planned) => known.plans.push(planned),
                        Err(refused) => known.refusals.push(*refused),
                    }
                }
                Some(Err(error)) => {
                    if selection.repositories.len() > 1 {
                        tracing::warn!(
                            "repository \"{name}\" was skipped: {}",
                            walpoint_words::error(&error)
                        );
                    }
                    known.skipped.push(name);
                    known.failure.get_or_insert(error);
                }
            }
        }
        known
    }

    /// The best plan of one repository, or one over the WAL of all of them where that goes further.
    async fn or_together(
        &mut self,
        mut best: Option<Planned>,
        selection: &Selection<StoreSettings>,
        request: &RestoreRequest,
        decoder: &Arc<dyn SegmentDecoder>,
    ) -> Result<Option<Planned>, NoPlan> {
        let outreached =
            best.as_ref().is_some_and(|planned| together::is_outreached(planned, &self.catalogs));
        let helps = || self.catalogs.len() > 1 && together::may_help(&self.refusals);
        if !(outreached || best.is_none() && helps()) {
            return Ok(best);
        }
        let mut together = together::plan(&self.catalogs, request, decoder).await;
        compare(&mut together.plans, &mut self.catalogs, &selection.cluster).await?;
        match (choice::best(together.plans), &best) {
            (Some(planned), None) => best = Some(planned),
            (Some(planned), Some(alone)) if choice::reach(&planned, alone).is_gt() => best = Some(planned),
            (Some(_), Some(_)) => {}
            (None, Some(alone)) => {
                if let Some(refusal) = together::refusal_of(alone, together.refusals) {
                    return Err(NoPlan::Unreachable(Box::new(refusal)));
                }
            }
            (None, None) => together::explain(&mut self.refusals, together.refusals),
        }
        // What one of them lacks was looked for in all.
        if let Some(planned) = best.as_ref().filter(|planned| planned.together) {
            let own = |refused: &Refused| {
                refused.refusal.lineage.as_ref().is_none_or(|lineage| lineage.id == planned.lineage.id)
            };
            self.refusals.retain(|refused| !own(refused));
        }
        Ok(best)
    }

    /// Why there is no plan.
    fn no_plan(self) -> NoPlan {
        match (choice::telling(self.refusals), self.failure) {
            (Some(unreachable), _) => NoPlan::Unreachable(Box::new(unreachable)),
            (None, Some(error)) => NoPlan::Failed(failed(error)),
            (None, None) => NoPlan::Failed(Failure::usage(anyhow!("no repository is configured"))),
        }
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
            "{what}: two servers archived there\nHINT: Name the repository whose server you mean: --repo NAME --cluster \
             {cluster}. To recover to the end of the archive, name the other one in lost_repositories, too: otherwise recovery \
             stops there, because a repository that acknowledges WAL may have more."
        ))));
    }
    for (planned, end) in plans.iter_mut().zip(compared.ends) {
        planned.doubtful_end = end;
    }
    Ok(())
}

/// A failure to read a repository: wrong settings are the fault of the configuration.
fn failed(error: RepoError) -> Failure {
    let status = if matches!(error, RepoError::Settings { .. }) { USAGE } else { FAILED };
    let superseded = Superseded::is_why(&error);
    let error = anyhow::Error::from(error);
    Failure { status, error: if superseded { error.context(KEEPS_CHANGING) } else { error } }
}

/// What it means that what plans count on was replaced each time.
const KEEPS_CHANGING: &str = "could not plan: the WAL that the server streams was replaced while it was read, several times in a row\n\
    HINT: Run the same command again.";

/// Prints the plan, and the tablespaces that replay creates, if it is known what lies there.
pub(crate) fn print(
    common: &CommonArgs,
    planned: &Planned,
    tablespaces: &[TablespaceDocument],
) -> Result<(), Failure> {
    let size = planned.lineage.segment_size;
    let given = CommandLine::given();
    let mut notes = planned.notes(&given);
    notes.extend(planned.damage.clone());
    if common.json {
        return output::json(&PlanReport::plan(&planned.plan, notes, tablespaces, (size, &given)));
    }
    let text = text::plan(&planned.plan, &notes, size);
    output::text(&(text + &text::tablespaces(tablespaces)))
}

/// Tells why there is no plan, what is missing, and what can be reached.
pub(crate) fn refused(common: &CommonArgs, no_plan: NoPlan) -> Failure {
    refused_to(common, no_plan, output::text)
}

/// The same, with the text printed elsewhere: where standard output is for something else.
pub(crate) fn refused_to(
    common: &CommonArgs,
    no_plan: NoPlan,
    print: impl FnOnce(&str) -> Result<(), Failure>,
) -> Failure {
    if let NoPlan::Unreachable(unreachable) = &no_plan {
        let given = CommandLine::given();
        let printed = match common.json {
            true => output::json(&PlanReport::refusal(unreachable, &given)),
            false => print(&text::unreachable(unreachable, &given)),
        };
        if let Err(failure) = printed {
            return failure;
        }
    }
    no_plan.failure()
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
