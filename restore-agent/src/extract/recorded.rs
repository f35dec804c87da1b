//! What an extraction puts on record as evidence, in the repository from which the files came.

use std::time::Duration;

use walpoint_base::diagnostic::shown;
use walpoint_repo::evidence::{Draft, Kind, Outcome};
use walpoint_runtime::args::CommonArgs;
use walpoint_runtime::exit::Failure;
use walpoint_storage::store::StoreSettings;
use walpoint_words::{format_chain, recording};

use super::ExtractArgs;
use crate::plan::Planned;

/// Records how it ended. `into`: the place on a server that it was loaded into, without secrets. What was refused before anything was restored is none, and neither is a list.
pub(super) async fn ended<T>(
    common: &CommonArgs,
    args: &ExtractArgs,
    into: Option<&str>,
    planned: &Planned,
    (extracted, took): (&Result<T, Failure>, Duration),
) {
    let outcome = if extracted.is_ok() { Outcome::Success } else { Outcome::Failed };
    let said = Draft {
        lineage: Some(planned.lineage.id),
        target: Some(planned.plan.target.to_string()),
        seconds: Some(took.as_secs_f64()),
        ..crate::evidence(Kind::Extract, outcome)
    };
    let issue = extracted.as_ref().err().map(|failure| format_chain(&failure.error));
    let said =
        said.about([planned.plan.backup.id]).with_scenario(scenario(args)).with_note(&what(args, into));
    // It was selected a moment ago.
    let Ok(selection) = common.select_to_read::<StoreSettings>() else { return };
    recording::append(&planned.files_from, &selection, &said.with_issues(issue)).await;
}

fn scenario(args: &ExtractArgs) -> &'static str {
    match (&args.query, args.tables.is_empty() && args.schemas.is_empty()) {
        (Some(_), _) => "rows of a query",
        (None, true) => "a database",
        (None, false) => "tables",
    }
}

/// What was read, and where it went. The text of a query may hold what is no auditor's business.
fn what(args: &ExtractArgs, into: Option<&str>) -> String {
    let mut what = format!("database {}", shown(args.database.as_deref().unwrap_or_default()));
    for (kind, patterns) in [("table", &args.tables), ("schema", &args.schemas)] {
        for pattern in patterns {
            what.push_str(&format!(", {kind} {}", shown(pattern)));
        }
    }
    if let Some(output) = &args.output {
        what.push_str(&format!(", to {}", shown(&output.to_string_lossy())));
    }
    if let Some(place) = into {
        what.push_str(&format!(", into {place}"));
    }
    what
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: ExtractArgs,
    }

    #[test]
    fn what_was_read_is_named_and_a_query_is_not() {
        for (line, scenario_is, what_is) in [
            (&["--database", "shop"][..], "a database", "database shop"),
            (
                &["--database", "shop", "--table", "a*", "--schema", "b", "--output", "/x/y.sql"],
                "tables",
                "database shop, table a*, schema b, to /x/y.sql",
            ),
            (&["--database", "shop", "--query", "select secret"], "rows of a query", "database shop"),
        ] {
            let args = Line::parse_from(["extract"].iter().chain(line)).args;
            assert!(
                what(&args, Some("schema b at app@db1:5432/shop"))
                    .ends_with(", into schema b at app@db1:5432/shop")
            );
            assert_eq!((scenario(&args), what(&args, None).as_str()), (scenario_is, what_is));
        }
    }
}
