//! The drills of the configuration: one by its name, all of them in turn, and a list of them.

use std::collections::BTreeMap;

use anyhow::anyhow;
use schemars::JsonSchema;
use serde::Serialize;
use tokio_util::sync::CancellationToken;
use walpoint_base::nearest::nearest;
use walpoint_base::{ClusterName, Diagnostic, ScenarioName};
use walpoint_runtime::args::{CommonArgs, Selection};
use walpoint_runtime::config::DrillScenario;
use walpoint_runtime::exit::{FAILED, Failure};
use walpoint_runtime::output;
use walpoint_storage::store::StoreSettings;

use super::document::{DrillDocument, DrillReport, DrillResult};
use super::last::{self, ScenarioList};
use super::{DrillArgs, Drilled, Order, ended, stopped};

/// What all drills of the configuration found.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Drills")]
pub(super) struct DrillsReport {
    /// The outcome: passed if every drill passed.
    result: DrillResult,
    /// The cluster.
    cluster: ClusterName,
    /// The drills, in the order in which they were made.
    scenarios: Vec<ScenarioRun>,
}

/// A drill of the configuration, as it was made.
#[derive(Debug, Serialize, JsonSchema)]
struct ScenarioRun {
    /// Its name.
    scenario: ScenarioName,
    /// The outcome.
    result: ScenarioResult,
    /// What it found. Absent if it could not run.
    #[serde(skip_serializing_if = "Option::is_none")]
    drill: Option<DrillReport>,
    /// Why it failed or could not run. Absent if it passed.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "walpoint_base::diagnostic::parts")]
    #[schemars(with = "Option<Diagnostic>")]
    error: Option<String>,
}

/// The outcome of one of several drills.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
enum ScenarioResult {
    /// Every check passed, and no target was missed.
    Passed,
    /// A check failed, a target was missed, the report could not be written, or something of the copy is left.
    Failed,
    /// It could not run.
    NotRun,
}

/// The options of a drill of the configuration.
pub(super) fn named(
    common: &CommonArgs,
    args: &DrillArgs,
    name: &ScenarioName,
) -> Result<DrillArgs, Failure> {
    let selection: Selection<StoreSettings> = common.select_to_read()?;
    match selection.settings.drill.get(name) {
        Some(scenario) => {
            args.require_use_in(name, scenario)?;
            Ok(args.over(name, scenario))
        }
        None => Err(unknown(&selection, name)),
    }
}

fn unknown(selection: &Selection<StoreSettings>, name: &ScenarioName) -> Failure {
    let cluster = &selection.cluster;
    let known: Vec<&str> = selection.settings.drill.keys().map(ScenarioName::as_str).collect();
    if known.is_empty() {
        return none(cluster);
    }
    let error = Diagnostic::new(format!("cluster \"{cluster}\" has no scenario \"{name}\""))
        .detail(format!("It has: {}.", known.join(", ")));
    Failure::usage(match nearest(name.as_str(), known) {
        Some(meant) => error.hint(format!("Perhaps you meant \"{meant}\".")),
        None => error,
    })
}

/// The configuration has no drill.
fn none(cluster: &ClusterName) -> Failure {
    let error = Diagnostic::new(format!("the configuration has no scenario of cluster \"{cluster}\""));
    Failure::usage(error.hint(format!("Write a table [cluster.{cluster}.drill.NAME].")))
}

/// Makes all drills of the configuration, in the order of their names. Fails if one of them does.
pub(super) async fn all(
    common: &CommonArgs,
    args: &DrillArgs,
    interrupted: &CancellationToken,
) -> Result<(), Failure> {
    let selection: Selection<StoreSettings> = common.select_to_read()?;
    if selection.settings.drill.is_empty() {
        return Err(none(&selection.cluster));
    }
    let make = async |name: &ScenarioName, scenario: &DrillScenario| {
        tracing::info!("scenario \"{name}\" begins");
        let args = args.over(name, scenario);
        Order { common, args: &args, is_alone: false }.make(interrupted).await
    };
    let runs = in_turn(&selection.settings.drill, interrupted, make).await;
    let report = DrillsReport::of(&selection.cluster, runs);
    match common.json {
        true => output::json(&DrillDocument::Several(&report))?,
        false => output::text(&report.text())?,
    }
    report.verdict()
}

/// Makes drills in the order of their names. After an interruption none begins, and each of these is one that did not run.
async fn in_turn(
    drills: &BTreeMap<ScenarioName, DrillScenario>,
    interrupted: &CancellationToken,
    make: impl AsyncFn(&ScenarioName, &DrillScenario) -> Result<Drilled, Failure>,
) -> Vec<ScenarioRun> {
    let mut runs = Vec::new();
    for (name, scenario) in drills {
        let made = match interrupted.is_cancelled() {
            true => Err(stopped()),
            false => make(name, scenario).await,
        };
        runs.push(ScenarioRun::of(name, made));
    }
    runs
}

/// Lists the drills of the configuration.
pub(super) async fn list(common: &CommonArgs) -> Result<(), Failure> {
    let selection: Selection<StoreSettings> = common.select_to_read()?;
    let list = ScenarioList::of(&selection, last::read(&selection).await)?;
    match common.json {
        true => output::json(&DrillDocument::Scenarios(&list)),
        false => output::text(&list.text()),
    }
}

impl ScenarioRun {
    fn of(name: &ScenarioName, made: Result<Drilled, Failure>) -> Self {
        let scenario = name.clone();
        let (result, drill, failure) = match made {
            Err(failure) => (ScenarioResult::NotRun, None, Some(failure)),
            Ok(Drilled { closed, result, report }) => match ended(result, closed) {
                Ok(()) => (ScenarioResult::Passed, Some(report), None),
                Err(failure) => (ScenarioResult::Failed, Some(report), Some(failure)),
            },
        };
        let error = failure.map(|failure| walpoint_words::format_chain(&failure.error));
        if let Some(why) = &error {
            tracing::warn!("scenario \"{name}\": {why}");
        }
        Self { scenario, result, drill, error }
    }

    /// In a line.
    fn text(&self) -> String {
        let result = match self.result {
            ScenarioResult::Passed => "passed ",
            ScenarioResult::Failed => "FAILED ",
            ScenarioResult::NotRun => "NOT RUN",
        };
        let why = self.error.as_ref().and_then(|error| error.lines().next());
        let why = why.map_or(String::new(), |why| format!(": {why}"));
        format!("  {result}  {}{why}\n", self.scenario)
    }
}

impl DrillsReport {
    fn of(cluster: &ClusterName, scenarios: Vec<ScenarioRun>) -> Self {
        let has_passed = scenarios.iter().all(|run| run.result == ScenarioResult::Passed);
        let result = if has_passed { DrillResult::Passed } else { DrillResult::Failed };
        Self { result, cluster: cluster.clone(), scenarios }
    }

    fn text(&self) -> String {
        let runs: String = self.scenarios.iter().map(ScenarioRun::text).collect();
        format!("scenarios of cluster {}:\n{runs}", self.cluster)
    }

    /// Fails if a drill failed or could not run.
    fn verdict(&self) -> Result<(), Failure> {
        let failed = self.scenarios.iter().filter(|run| run.result != ScenarioResult::Passed);
        let failed: Vec<&str> = failed.map(|run| run.scenario.as_str()).collect();
        if failed.is_empty() {
            return Ok(());
        }
        let of = self.scenarios.len();
        let error = anyhow!("{} of {of} scenarios failed: {}", failed.len(), failed.join(", "));
        Err(Failure { status: FAILED, error })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_drill_that_an_interruption_kept_from_running_has_not_passed() {
        let scenario = || toml::from_str::<DrillScenario>("kind = \"backup\"").unwrap();
        let drills = ["a", "b"].map(|name| (name.parse::<ScenarioName>().unwrap(), scenario()));
        let interrupted = CancellationToken::new();
        let make = async |_: &ScenarioName, _: &DrillScenario| {
            interrupted.cancel();
            Err(anyhow!("no space").into())
        };
        let runs = in_turn(&BTreeMap::from(drills), &interrupted, make).await;
        let cluster: ClusterName = "main".parse().unwrap();
        let report = DrillsReport::of(&cluster, runs);
        assert_eq!(report.result, DrillResult::Failed);
        assert_eq!(
            report.text(),
            "scenarios of cluster main:\n  NOT RUN  a: no space\n  NOT RUN  b: the drill was interrupted\n"
        );
    }

    #[test]
    fn one_that_fails_or_cannot_run_fails_all_and_is_named() {
        let run = |name: &str, result, error: Option<&str>| ScenarioRun {
            scenario: name.parse().unwrap(),
            result,
            drill: None,
            error: error.map(str::to_owned),
        };
        let cluster: ClusterName = "main".parse().unwrap();
        let passed = || run("a", ScenarioResult::Passed, None);
        assert!(DrillsReport::of(&cluster, vec![passed()]).verdict().is_ok());
        let failed = run("b", ScenarioResult::Failed, Some("the drill failed: 1 check failed"));
        let not_run = run("c", ScenarioResult::NotRun, Some("no space\nHINT: Make room."));
        let report = DrillsReport::of(&cluster, vec![passed(), failed, not_run]);
        assert_eq!(report.result, DrillResult::Failed);
        let failure = report.verdict().unwrap_err();
        assert_eq!(failure.status, FAILED);
        assert_eq!(failure.to_string(), "2 of 3 scenarios failed: b, c");
        assert_eq!(
            report.text(),
            "scenarios of cluster main:\n  passed   a\n  FAILED   b: the drill failed: 1 check failed\n  NOT RUN  c: no space\n"
        );
    }
}
