//! The drills of the configuration, and how the last run of each ended, by the evidence in the repositories.
//!
//! Runs are distinguished by the name of their scenario: the last run of a scenario is the newest record that names it, whatever other drills
//! were made since. Each chain is read backward until every scenario was met, and no further than the last 2,000 records.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;

use futures_util::{Stream, StreamExt};
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Serialize;
use walpoint_base::{ClusterName, Diagnostic, ScenarioName};
use walpoint_repo::Repository;
use walpoint_repo::evidence::{Evidence, Kind, Objective, Outcome, ReadRecord, Record};
use walpoint_runtime::args::Selection;
use walpoint_runtime::config::{DrillKind, DrillScenario};
use walpoint_runtime::exit::Failure;
use walpoint_runtime::{config, human};
use walpoint_storage::RepoError;
use walpoint_storage::store::StoreSettings;

use super::document::span;
use crate::target::TargetArgs;

/// So many records are read back from the end of a chain at most.
const RECORDS: u64 = 2_000;

/// The drills of the configuration.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct ScenarioList {
    /// What this is.
    result: Listed,
    /// The cluster.
    cluster: ClusterName,
    /// The drills, by name.
    scenarios: Vec<ListedScenario>,
    /// What of the evidence was not read: messages.
    #[serde(serialize_with = "walpoint_base::diagnostic::parts")]
    #[schemars(with = "Vec<Diagnostic>")]
    notes: Vec<String>,
}

/// The outcome of a list.
#[derive(Debug, Clone, Copy, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
enum Listed {
    /// The drills of the configuration are listed.
    Listed,
}

/// A drill of the configuration.
#[derive(Debug, Serialize, JsonSchema)]
struct ListedScenario {
    /// Its name.
    scenario: ScenarioName,
    /// What it proves.
    kind: ScenarioKind,
    /// The target, in words.
    target: String,
    /// The target of the recovery time. Absent if none is set.
    #[serde(skip_serializing_if = "Option::is_none")]
    rto_target_seconds: Option<f64>,
    /// The target of the recovery point. Absent if none is set.
    #[serde(skip_serializing_if = "Option::is_none")]
    rpo_target_seconds: Option<f64>,
    /// The last run that is on record. Absent if there is none that can be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    last_drill: Option<LastDrill>,
}

/// What a drill proves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
enum ScenarioKind {
    /// That a moment of the past can be recovered.
    Pitr,
    /// That a backup can be restored and becomes consistent.
    Backup,
    /// That tables, a database or the rows of a query can be extracted.
    Extract,
}

/// A run of a drill, as it is on record.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub(super) struct LastDrill {
    /// The repository that has the record.
    repository: String,
    /// The record's number there.
    number: u64,
    /// When it ended.
    time: Timestamp,
    /// How it ended: `partial` if only a target was missed.
    outcome: Outcome,
    /// The recovery time. Absent if it was not measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    rto: Option<Objective>,
    /// The recovery point. Absent if it was not measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    rpo: Option<Objective>,
}

/// The last runs by the names of their scenarios, and what could not be read.
#[derive(Debug, Default)]
pub(super) struct LastDrills {
    runs: BTreeMap<String, LastDrill>,
    short: Vec<ShortLook>,
    notes: Vec<String>,
}

/// A look back that met the last run of these scenarios neither in the records that were read nor at the beginning of the chain.
#[derive(Debug)]
struct ShortLook {
    repository: String,
    scenarios: Vec<String>,
    /// When the oldest record that was read was written.
    oldest: Option<Timestamp>,
}

/// The configured scenario of which a record is a run.
fn scenario_of(record: &Record) -> Option<&str> {
    record.said.scenario_name.as_deref().filter(|_| record.said.kind == Kind::Drill)
}

impl LastDrills {
    /// Looks for the last run of each scenario in records of a repository, the newest of them first; `has_older`: it has others before them.
    async fn look_back(
        &mut self,
        repository: &str,
        mut scenarios: BTreeSet<&str>,
        (records, has_older): (impl Stream<Item = (u64, Result<ReadRecord, RepoError>)>, bool),
    ) -> Result<(), RepoError> {
        let mut records = pin!(records);
        let mut oldest = None;
        while !scenarios.is_empty()
            && let Some((_, read)) = records.next().await
        {
            match read {
                Ok(ReadRecord { record, .. }) => {
                    oldest = Some(record.said.time);
                    if scenario_of(&record).is_some_and(|name| scenarios.remove(name)) {
                        self.add(repository, &record);
                    }
                }
                Err(error @ (RepoError::Corrupt { .. } | RepoError::NotFound { .. })) => {
                    self.unread(
                        &format!("a record in repository \"{repository}\" could not be read"),
                        &error,
                    );
                }
                Err(error) => return Err(error),
            }
        }
        if has_older && !scenarios.is_empty() {
            let scenarios = scenarios.into_iter().map(str::to_owned).collect();
            self.short.push(ShortLook { repository: repository.to_owned(), scenarios, oldest });
        }
        Ok(())
    }

    /// Notes of which scenarios a run that was not read may be newer than what is known.
    fn note_short_looks(&mut self) {
        for ShortLook { repository, scenarios, oldest } in std::mem::take(&mut self.short) {
            let is_later = |known: &LastDrill| oldest.is_some_and(|oldest| known.time >= oldest);
            let unknown = scenarios.iter().filter(|name| !self.runs.get(*name).is_some_and(is_later));
            let unknown: Vec<&str> = unknown.map(String::as_str).collect();
            if unknown.is_empty() {
                continue;
            }
            let note = Diagnostic::new(format!(
                "no run of {} is among the last {} records in repository \"{repository}\"",
                unknown.join(", "),
                human::number(RECORDS)
            ));
            self.notes.push(note.detail("Older records were not read.").to_string());
        }
    }

    /// Takes a record of a repository into account.
    fn add(&mut self, repository: &str, record: &Record) {
        let said = &record.said;
        let Some(name) = scenario_of(record) else { return };
        if self.runs.get(name).is_some_and(|known| known.time >= said.time) {
            return;
        }
        let last = LastDrill {
            repository: repository.to_owned(),
            number: record.number,
            time: said.time,
            outcome: said.outcome,
            rto: said.rto,
            rpo: said.rpo,
        };
        self.runs.insert(name.to_owned(), last);
    }

    /// Remembers what could not be read, and why.
    fn unread(&mut self, what: &str, error: &RepoError) {
        let mut note = Diagnostic::new(what);
        note.add_cause(&walpoint_words::error(error));
        self.notes.push(note.to_string());
    }
}

/// The last runs of all scenarios of a cluster, by the evidence in all repositories that can be read.
pub(super) async fn read(selection: &Selection<StoreSettings>) -> LastDrills {
    let mut found = LastDrills::default();
    if selection.settings.drill.is_empty() {
        return found;
    }
    for (name, settings) in &selection.repositories {
        if let Err(error) = read_one((name, settings), selection, &mut found).await {
            found.unread(&format!("the evidence in repository \"{name}\" could not be read"), &error);
        }
    }
    found.note_short_looks();
    found
}

async fn read_one(
    (name, settings): (&str, &StoreSettings),
    selection: &Selection<StoreSettings>,
    found: &mut LastDrills,
) -> Result<(), RepoError> {
    let repository = Repository::open(name, &settings.impatient()).await?;
    let records = Evidence::of(&repository, &selection.cluster).newest(RECORDS).await?;
    let scenarios = selection.settings.drill.keys().map(ScenarioName::as_str).collect();
    found.look_back(name, scenarios, records).await
}

impl ScenarioList {
    /// The drills of a cluster, with the last run of each.
    pub(super) fn of(
        selection: &Selection<StoreSettings>,
        LastDrills { mut runs, notes, .. }: LastDrills,
    ) -> Result<Self, Failure> {
        let listed = |(name, scenario): (&ScenarioName, &DrillScenario)| {
            let seconds = |span| config::duration(span).as_secs_f64();
            Ok(ListedScenario {
                scenario: name.clone(),
                kind: ScenarioKind::of(scenario.kind),
                target: target(scenario)?,
                rto_target_seconds: scenario.rto.map(seconds),
                rpo_target_seconds: scenario.rpo.map(seconds),
                last_drill: runs.remove(name.as_str()),
            })
        };
        let scenarios = selection.settings.drill.iter().map(listed).collect::<Result<_, Failure>>()?;
        Ok(Self { result: Listed::Listed, cluster: selection.cluster.clone(), scenarios, notes })
    }

    /// For a person at a terminal.
    pub(super) fn text(&self) -> String {
        let mut text = match self.scenarios.is_empty() {
            true => format!("cluster {} has no scenarios\n", self.cluster),
            false => format!("scenarios of cluster {}:\n", self.cluster),
        };
        for scenario in &self.scenarios {
            let ListedScenario { scenario: name, kind, target, .. } = scenario;
            text.push_str(&format!("  {name}: {}, {target}\n", kind.name()));
            let none = if self.notes.is_empty() { "no run is on record" } else { "no run is known" };
            text.push_str(&format!("    {}\n", scenario.last().unwrap_or_else(|| none.to_owned())));
        }
        for note in &self.notes {
            text.push_str(&format!("{}\n", human::hanging("note: ", note)));
        }
        text
    }
}

impl ListedScenario {
    /// The last run, in words; `None` if there is none that can be read.
    fn last(&self) -> Option<String> {
        let last = self.last_drill.as_ref()?;
        let outcome = match last.outcome {
            Outcome::Success => "passed",
            Outcome::Partial => "MISSED a target",
            Outcome::Failed => "FAILED",
        };
        let shown = |seconds: f64| human::span(span(seconds));
        let measured = |what: &str, measured: Option<Objective>| {
            let measured = measured.map(|measured| {
                // The target of that run; today's may be another one.
                let target = measured.target_seconds.map(|target| format!(" (target: {})", shown(target)));
                format!(", {what} {}{}", shown(measured.measured_seconds), target.unwrap_or_default())
            });
            measured.unwrap_or_default()
        };
        Some(format!(
            "{outcome} {}{}{}",
            human::time(last.time),
            measured("recovery time", last.rto),
            measured("recovery point", last.rpo)
        ))
    }
}

impl ScenarioKind {
    fn of(kind: DrillKind) -> Self {
        match kind {
            DrillKind::Pitr => Self::Pitr,
            DrillKind::Backup => Self::Backup,
            DrillKind::Extract => Self::Extract,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Pitr => DrillKind::Pitr.name(),
            Self::Backup => DrillKind::Backup.name(),
            Self::Extract => DrillKind::Extract.name(),
        }
    }
}

/// The target in words: a relative time as it is written, because it is another moment at each run.
fn target(scenario: &DrillScenario) -> Result<String, Failure> {
    let options = TargetArgs::default().over(scenario);
    match options.relative() {
        Some(time) => Ok(format!("time {time}")),
        None => Ok(options.request(None, false, Timestamp::now(), None)?.target.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use futures_util::stream;
    use walpoint_repo::evidence::{Draft, RecordHash};

    use super::*;

    fn record(number: u64, time: &str, name: Option<&str>, outcome: Outcome) -> Record {
        let mut said = Draft::new(Kind::Drill, outcome, "a@b".to_owned(), "p".to_owned());
        said.time = time.parse().unwrap();
        said.scenario_name = name.map(str::to_owned);
        said.rto = Some(Objective::of(Some(60.0), 90.0));
        Record {
            number,
            previous_hash: None,
            cluster: "main".parse().unwrap(),
            repository_id: String::new(),
            said,
        }
    }

    #[test]
    fn the_last_run_is_the_newest_record_of_the_same_scenario() {
        let mut found = LastDrills::default();
        found.add("near", &record(1, "2026-11-20T10:00:00Z", Some("nightly"), Outcome::Success));
        found.add("near", &record(2, "2026-11-21T10:00:00Z", Some("nightly"), Outcome::Partial));
        found.add("near", &record(3, "2026-11-22T10:00:00Z", Some("weekly"), Outcome::Failed));
        found.add("near", &record(4, "2026-11-23T10:00:00Z", None, Outcome::Success));
        found.add("far", &record(9, "2026-11-19T10:00:00Z", Some("nightly"), Outcome::Success));
        let mut other = record(10, "2026-11-24T10:00:00Z", Some("nightly"), Outcome::Success);
        other.said.kind = Kind::Other;
        found.add("far", &other);
        let last = found.runs.get("nightly").unwrap();
        assert_eq!((last.repository.as_str(), last.number, last.outcome), ("near", 2, Outcome::Partial));
        assert_eq!(found.runs.get("weekly").unwrap().number, 3);
        assert_eq!(found.runs.len(), 2);
    }

    #[tokio::test]
    async fn a_chain_is_read_back_until_every_scenario_was_met() {
        let read = Cell::new(0);
        let records = |of: &[(u64, &str, Option<&str>)]| {
            let each = of.iter().map(|(number, time, name)| {
                let record = record(*number, time, *name, Outcome::Success);
                let hash = RecordHash::of(b"");
                (*number, Ok::<_, RepoError>(ReadRecord { record, hash, content: bytes::Bytes::new() }))
            });
            stream::iter(each.collect::<Vec<_>>()).inspect(|_| read.set(read.get() + 1))
        };
        let mut found = LastDrills::default();
        let near = [
            (2004, "2026-11-24T10:00:00Z", Some("nightly")),
            (2003, "2026-11-23T10:00:00Z", None),
            (2002, "2026-11-22T10:00:00Z", Some("weekly")),
            (2001, "2026-11-21T10:00:00Z", Some("nightly")),
        ];
        let scenarios = || BTreeSet::from(["nightly", "weekly"]);
        found.look_back("near", scenarios(), (records(&near), true)).await.unwrap();
        assert_eq!(read.get(), 3);
        let numbers = |found: &LastDrills| {
            ["nightly", "weekly"].map(|name| found.runs.get(name).map(|last| last.number))
        };
        assert_eq!(numbers(&found), [Some(2004), Some(2002)]);
        // What was not read of another repository is older than what is known, and may be newer.
        let far = [(7000, "2026-11-25T10:00:00Z", None), (6999, "2026-11-23T10:00:00Z", None)];
        found.look_back("far", scenarios(), (records(&far[..1]), false)).await.unwrap();
        found.look_back("far", scenarios(), (records(&near[2..3]), true)).await.unwrap();
        found.note_short_looks();
        assert_eq!(found.notes, [] as [String; 0]);
        found.look_back("far", scenarios(), (records(&far), true)).await.unwrap();
        found.note_short_looks();
        assert_eq!(
            found.notes,
            [
                "no run of weekly is among the last 2,000 records in repository \"far\"\nDETAIL: Older records were not read."
            ]
        );
        assert_eq!(numbers(&found), [Some(2004), Some(2002)]);
    }

    #[test]
    fn a_list_says_how_the_last_run_ended_and_where_nothing_is_known() {
        let read = |text: &str| toml::from_str::<DrillScenario>(text).unwrap();
        let mut selection = Selection {
            cluster: "main".parse().unwrap(),
            settings: config::ClusterSettings::with_repositories(Vec::new()),
            repositories: Vec::new(),
            chosen: false,
            config: None,
        };
        let empty = ScenarioList::of(&selection, LastDrills::default()).unwrap();
        assert_eq!(empty.text(), "cluster main has no scenarios\n");
        let drill = &mut selection.settings.drill;
        drill.insert(
            "nightly".parse().unwrap(),
            read("kind = \"pitr\"\ntarget_time = \"1 hour ago\"\nrto = \"2m\""),
        );
        drill.insert("weekly".parse().unwrap(), read("kind = \"backup\""));
        let mut found = LastDrills { notes: vec!["near\nHINT: Try.".to_owned()], ..LastDrills::default() };
        found.add("near", &record(2, "2026-11-21T10:00:00Z", Some("nightly"), Outcome::Partial));
        found.add("near", &record(3, "2026-11-21T10:00:00Z", Some("gone"), Outcome::Success));
        let list = ScenarioList::of(&selection, found).unwrap().text();
        assert_eq!(
            list,
            "scenarios of cluster main:\n  nightly: pitr, time 1 hour ago\n    MISSED a target 2026-11-21T10:00:00Z, recovery time 1m \
             30s (target: 1m)\n  weekly: backup, the end of the backup\n    no run is known\nnote: near\n      HINT: Try.\n"
        );
    }
}
