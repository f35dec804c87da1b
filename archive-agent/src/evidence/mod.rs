//! `archive-agent evidence`: what was done with a cluster and what was proven, as a chain of records.
//!
//! | module | owns |
//! |---|---|
//! | [`record`] | what a person records |
//! | [`list`], [`head`], [`verify`] | the records, the end of the chain, whether the chain is what was written |
//! | [`summary`], [`tally`] | counts, objectives met, which backups were proven |
//! | [`export`], [`page`] | the audit pack, and the page in it |
//! | [`read`] | reading the records for a report, and what cannot be read |
//! | [`period`] | the options that say from when to when |
//!
//! The chain itself is [`walpoint_repo::evidence`], and what other commands record is in their `recorded.rs`. Each repository of a cluster has a chain of its own.

mod export;
mod head;
mod list;
mod page;
mod period;
mod read;
mod record;
mod summary;
mod tally;
mod verify;

use clap::Subcommand;
use walpoint_repo::Repository;
use walpoint_repo::evidence::{Draft, Evidence, Kind, Outcome};
use walpoint_runtime::args::{CommonArgs, Selection};
use walpoint_runtime::exit::Failure;
use walpoint_runtime::{help, operator};
use walpoint_storage::store::StoreSettings;

use self::export::ExportArgs;
use self::list::ListArgs;
use self::record::RecordArgs;
use self::summary::SummaryArgs;
use self::verify::VerifyEvidenceArgs;
use crate::selection::as_owner;

const HEAD: &[(&str, &str)] = &[(
    "Note the end of the chain where the repository's writers cannot change it",
    "archive-agent evidence head --repo main >> /mnt/audit/walpoint-heads",
)];

/// What `evidence` can do.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum EvidenceCommand {
    /// List the records.
    List(ListArgs),
    /// Count the records of each kind and show which backups were proven.
    Summary(SummaryArgs),
    /// Verify that no record was changed, removed or moved; exits 3 if one was.
    ///
    /// Records that were removed at the end show only against --head, or where evidence/head in the repository still names them.
    Verify(VerifyEvidenceArgs),
    /// Record an activity, such as a drill, an erasure or a change outside Walpoint.
    Record(Box<RecordArgs>),
    /// Print the hash and the number of the last record.
    ///
    /// They stand for all records up to it. Keep them where the repository's writers cannot change them, for verify --head.
    #[command(after_long_help = help::examples(HEAD))]
    Head,
    /// Write an audit pack that can be verified without Walpoint.
    Export(ExportArgs),
}

/// Runs the command.
pub(crate) async fn run(common: &CommonArgs, command: &EvidenceCommand) -> Result<(), Failure> {
    let selection = common.select::<StoreSettings>()?;
    match command {
        EvidenceCommand::List(args) => list::run(common, &selection, args).await,
        EvidenceCommand::Summary(args) => summary::run(common, &selection, args).await,
        EvidenceCommand::Verify(args) => verify::run(common, &selection, args).await,
        EvidenceCommand::Record(args) => {
            as_owner(&selection).await?;
            record::run(common, &selection, args).await
        }
        EvidenceCommand::Head => head::run(common, &selection).await,
        EvidenceCommand::Export(args) => export::run(common, &selection, args).await,
    }
}

/// A record of this program and the person that runs it.
pub(crate) fn draft(kind: Kind, outcome: Outcome) -> Draft {
    Draft::new(
        kind,
        outcome,
        operator::user(),
        concat!("archive-agent ", env!("WALPOINT_VERSION")).to_owned(),
    )
}

/// The evidence of the selected cluster in one of its repositories.
async fn open(
    selection: &Selection<StoreSettings>,
    (name, settings): (&str, &StoreSettings),
) -> anyhow::Result<Evidence> {
    Ok(Evidence::of(&Repository::open(name, settings).await?, &selection.cluster))
}

/// The one repository that is meant: each has a chain of its own.
fn the_repository<'a>(
    selection: &'a Selection<StoreSettings>,
    option: &str,
) -> Result<(&'a str, &'a StoreSettings), Failure> {
    match &selection.repositories[..] {
        [(name, settings)] => Ok((name, settings)),
        several => {
            let known = several.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", ");
            Err(Failure::usage(anyhow::anyhow!(
                "{option} is about one repository, and cluster {} has several\nDETAIL: It has: {known}. Each has a chain of its \
                 own.\nHINT: Choose one with --repo.",
                selection.cluster
            )))
        }
    }
}
