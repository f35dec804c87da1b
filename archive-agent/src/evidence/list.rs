//! `evidence list`.

use std::fmt::Write as _;

use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Serialize;
use walpoint_base::diagnostic::shown;
use walpoint_base::{ClusterName, Diagnostic};
use walpoint_repo::evidence::{Kind, ReadRecord, Record};
use walpoint_runtime::args::{CommonArgs, Selection};
use walpoint_runtime::exit::Failure;
use walpoint_runtime::{help, human, output};
use walpoint_storage::store::StoreSettings;

use super::period::{Period, PeriodArgs};
use super::read::{self, LeftOut};

const EXAMPLES: &[(&str, &str)] = &[
    ("Show all records", "archive-agent evidence list"),
    (
        "Show what was erased in 2026",
        "archive-agent evidence list --kind erasure \\\n--from 2026-01-01 --to 2026-12-31",
    ),
];

/// Options of `evidence list`.
#[derive(Debug, Clone, Args)]
#[command(after_long_help = help::examples(EXAMPLES))]
pub(crate) struct ListArgs {
    #[command(flatten)]
    period: PeriodArgs,
    /// List only records of this kind. Can be repeated.
    #[arg(long, value_name = "KIND", value_parser = kinds())]
    kind: Vec<Kind>,
}

/// Reads the name of a kind.
pub(super) fn kinds() -> impl TypedValueParser<Value = Kind> {
    let named = |name: String| Kind::ALL.into_iter().find(|kind| kind.name() == name).unwrap_or(Kind::Other);
    PossibleValuesParser::new(Kind::ALL.map(Kind::name)).map(named)
}

/// What `archive-agent evidence list --json` prints.
#[derive(Debug, Serialize, JsonSchema)]
struct EvidenceListDocument {
    /// The cluster.
    cluster: ClusterName,
    /// The records of each repository.
    repositories: Vec<RepositoryRecords>,
}

walpoint_runtime::document!(EvidenceListDocument, "archive-agent evidence list");

/// The records of one repository.
#[derive(Debug, Serialize, JsonSchema)]
struct RepositoryRecords {
    /// The repository's name in the configuration.
    repository: String,
    /// The records, oldest first.
    records: Vec<ListedRecord>,
    /// Records that cannot be read: messages.
    #[serde(serialize_with = "walpoint_base::diagnostic::parts")]
    #[schemars(with = "Vec<Diagnostic>")]
    unreadable: Vec<String>,
}

/// A record with its hash.
#[derive(Debug, Serialize, JsonSchema)]
struct ListedRecord {
    /// Its hash: SHA-256 of its content, in hexadecimal.
    hash: String,
    #[serde(flatten)]
    record: Record,
}

/// Runs the command.
pub(super) async fn run(
    common: &CommonArgs,
    selection: &Selection<StoreSettings>,
    args: &ListArgs,
) -> Result<(), Failure> {
    let period = args.period.period(Timestamp::now())?;
    let kinds = &args.kind;
    let wanted = |record: &Record| {
        period.has(record.said.time) && (kinds.is_empty() || kinds.contains(&record.said.kind))
    };
    let mut document = EvidenceListDocument { cluster: selection.cluster.clone(), repositories: Vec::new() };
    let mut left_out = LeftOut::default();
    for (name, settings) in &selection.repositories {
        match records(selection, (name, settings), &wanted).await {
            Ok(records) => document.repositories.push(records),
            Err(error) => left_out.repository(name, &error),
        }
    }
    if common.json {
        output::json(&document)?;
    } else {
        output::text(&document.text(period))?;
    }
    document.repositories.iter().for_each(|one| left_out.records(&one.repository, &one.unreadable));
    left_out.end()
}

async fn records(
    selection: &Selection<StoreSettings>,
    (name, settings): (&str, &StoreSettings),
    wanted: &impl Fn(&Record) -> bool,
) -> anyhow::Result<RepositoryRecords> {
    let mut records = Vec::new();
    let take = |ReadRecord { record, hash, .. }: ReadRecord| {
        if wanted(&record) {
            records.push(ListedRecord { hash: hash.to_string(), record });
        }
    };
    let unreadable = read::records(selection, (name, settings), take).await?;
    Ok(RepositoryRecords { repository: name.to_owned(), records, unreadable })
}

impl EvidenceListDocument {
    fn text(&self, period: Period) -> String {
        let mut text = String::new();
        for RepositoryRecords { repository, records, .. } in &self.repositories {
            // Writing to a String cannot fail.
            writeln!(text, "Evidence of cluster {} in {repository}", self.cluster).ok();
            if records.is_empty() {
                text.push_str(if period == Period::default() {
                    "  none\n"
                } else {
                    "  none in this period\n"
                });
            }
            for ListedRecord { record, .. } in records {
                writeln!(text, "{}", line(record)).ok();
            }
        }
        text
    }
}

/// A record in one line.
fn line(record: &Record) -> String {
    let said = &record.said;
    let (time, kind, outcome) = (human::time(said.time), said.kind.name(), said.outcome.name());
    let about = about(record).unwrap_or_default();
    let line = format!(
        "{:>6}  {time}  {kind:<20}  {outcome:<7}  {}  {about}",
        record.number,
        shown(&said.recorded_by)
    );
    line.trim_end().to_owned()
}

/// What a record is about, in a few words.
pub(super) fn about(record: &Record) -> Option<String> {
    let said = &record.said;
    let backups = match &said.backups[..] {
        [] => None,
        [one] => Some(format!("backup {one}")),
        several => Some(human::count(several.len() as u64, "backup")),
    };
    let parts = [backups, said.scenario.clone(), said.note.clone(), said.issues.first().cloned()];
    parts.into_iter().flatten().next().map(|text| shown(&text))
}

#[cfg(test)]
mod tests {
    use walpoint_repo::evidence::{Draft, Outcome};

    use super::*;

    #[test]
    fn what_others_wrote_is_one_line_and_controls_no_terminal() {
        let mut said = Draft::new(Kind::Erasure, Outcome::Partial, "a\r@b".to_owned(), "p".to_owned());
        said.note = Some("n\nHINT: \u{1b}[2J".to_owned());
        let cluster = "main".parse().unwrap();
        let record = Record { number: 7, previous_hash: None, cluster, repository_id: String::new(), said };
        let line = line(&record);
        assert!(!line.contains(char::is_control), "{line:?}");
        assert!(
            line.starts_with("     7  ") && line.contains("  erasure               partial  "),
            "{line:?}"
        );
    }
}
