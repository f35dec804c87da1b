//! `archive-agent verify`: proves that what is kept is there and is what was written; exits 3 if something is not.
//!
//! The work is done by [`walpoint_repo::verify`]; here is what knows PostgreSQL's pages and WAL, and what is told.

mod content;
mod document;
mod recorded;
mod text;

use std::sync::Arc;
use std::time::Duration;

use anyhow::anyhow;
use clap::Args;
use jiff::Timestamp;
use walpoint_base::{BackupId, Diagnostic};
use walpoint_repo::Repository;
use walpoint_repo::expire::outlook;
use walpoint_repo::verify::{Depth, Verified, VerifyOptions, verify};
use walpoint_runtime::args::{self, CommonArgs, Selection};
use walpoint_runtime::exit::{FINDINGS, Failure};
use walpoint_runtime::progress::ByteProgress;
use walpoint_runtime::{help, human, output};
use walpoint_storage::store::StoreSettings;
use walpoint_words::format_chain;

use self::content::PgContent;
use self::document::VerifyDocument;
use crate::selection::{as_owner, is_wrong_settings};

/// Uploads of neighbours end within seconds of each other; a gap that stays is reported so much later.
const OVERTAKEN: Duration = Duration::from_secs(10);

/// The heading of options about how much is read.
const READ: &str = "How much to read [default: every byte]";

const EXAMPLES: &[(&str, &str)] = &[
    ("Read every byte of everything that is kept", "archive-agent verify"),
    (
        "Every night, read for one hour, and continue where the last run stopped",
        "archive-agent verify --budget 1h",
    ),
    ("Check that nothing is missing, in one repository", "archive-agent verify --light --repo far"),
    (
        "Verify one backup and the WAL that makes it consistent",
        "archive-agent verify --backup \\\n20261121T101500Z-00000001-0000000002000028-9f3a0c11",
    ),
];

/// Options of `verify`.
#[derive(Debug, Clone, Args)]
#[command(after_long_help = help::examples(EXAMPLES))]
pub(crate) struct VerifyArgs {
    /// Verify only this backup, and the WAL that makes it consistent.
    #[arg(long, value_name = "ID")]
    backup: Option<BackupId>,
    /// Check only which objects exist and how long they are, and read only small ones.
    #[arg(long, group = "depth", help_heading = READ)]
    light: bool,
    /// Read this share of all objects, such as 10% or 0.1; the next run continues where this one stops.
    #[arg(long, value_name = "SHARE", group = "depth", value_parser = share, help_heading = READ)]
    sample: Option<f64>,
    /// Read objects for this long, such as 30m or "1h 30m"; the next run continues where this one stops.
    #[arg(long, value_name = "SPAN", group = "depth", value_parser = args::span, help_heading = READ)]
    budget: Option<Duration>,
}

/// Runs the command.
pub(crate) async fn run(common: &CommonArgs, args: &VerifyArgs) -> Result<(), Failure> {
    let selection = common.select::<StoreSettings>()?;
    if args.sample.is_some() || args.budget.is_some() {
        // These remember where the next run continues.
        as_owner(&selection).await?;
    }
    let options = VerifyOptions {
        backup: args.backup,
        depth: match (args.light, args.sample, args.budget) {
            (true, ..) => Depth::Light,
            (_, Some(share), _) => Depth::Sample(share),
            (_, _, Some(span)) => Depth::Budget(span),
            _ => Depth::Full,
        },
        overtaken: OVERTAKEN,
        host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
        agent: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let (mut all, mut failed): (Vec<Verified>, Vec<String>) = (Vec::new(), Vec::new());
    let mut wrong_settings = true;
    for (name, settings) in &selection.repositories {
        let waiting = ByteProgress::waiting(&format!("verifying repository {name}"), common.show_progress());
        let verified = one(&selection, name, settings, &options).await;
        waiting.end();
        match verified {
            Ok(verified) => all.push(verified),
            Err(error) => {
                wrong_settings &= is_wrong_settings(&error);
                failed.push(format!("repository {name}: {}", format_chain(&error)));
            }
        }
    }
    if common.json {
        let repositories = all.iter().map(document::VerifiedRepository::of).collect();
        let cluster = &selection.cluster;
        output::json(&VerifyDocument { cluster, repositories, failed: &failed })?;
    } else {
        for verified in &all {
            output::text(&text::of(verified))?;
        }
    }
    let found: u64 = all.iter().map(|verified| verified.finding_count).sum();
    match (failed.is_empty(), found) {
        (true, 0) => Ok(()),
        (true, found) => Err(Failure {
            status: FINDINGS,
            error: anyhow!("verify found {}", human::count(found, "problem")),
        }),
        (false, _) => {
            let error = Diagnostic::gather("verify could not finish", &failed);
            Err(if wrong_settings { Failure::usage(error) } else { error.into() })
        }
    }
}

async fn one(
    selection: &Selection<StoreSettings>,
    name: &str,
    settings: &StoreSettings,
    options: &VerifyOptions,
) -> anyhow::Result<Verified> {
    let repository = Repository::open(name, settings).await?;
    let policy = crate::expire::policy(selection.settings.retention.as_ref());
    let outlook = outlook(&repository, &selection.cluster, &policy, Timestamp::now()).await?;
    let verified = verify(&repository, &selection.cluster, &outlook, Arc::new(PgContent), options).await?;
    recorded::verified(&repository, selection, &outlook, options, &verified).await;
    Ok(verified)
}

/// `10%` or `0.1`.
fn share(text: &str) -> Result<f64, String> {
    let (number, of) = match text.strip_suffix('%') {
        Some(percent) => (percent, 100.0),
        None => (text, 1.0),
    };
    let share = number.trim().parse::<f64>().map(|number| number / of);
    share
        .ok()
        .filter(|share| *share > 0.0 && *share <= 1.0)
        .ok_or_else(|| "a share is above 0 and at most 100%, such as 10%".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_as_people_write_them() {
        for (text, expected) in [("10%", 0.1), ("0.25", 0.25), ("100%", 1.0), ("1", 1.0)] {
            assert!((share(text).unwrap() - expected).abs() < 1e-9, "{text}");
        }
        for bad in ["", "0", "-1", "101%", "2", "x", "NaN"] {
            assert!(share(bad).is_err(), "{bad}");
        }
    }
}
