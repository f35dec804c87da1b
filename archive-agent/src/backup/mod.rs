//! `archive-agent backup`: a base backup of a running cluster, read from its data directory, or sent by its server.
//!
//! | module | owns |
//! |---|---|
//! | [`preflight`] | proving beforehand that it can succeed |
//! | [`request`] | what is asked of it, and the signal that ends it |
//! | [`attempt`] | the way from the leases to the manifests |
//! | [`deleted_wal`] | whether the WAL it begins with can still arrive |
//! | [`lease`] | one backup of the cluster at a time |
//! | [`source`] | where the files come from: the data directory, or the server that sends them |
//! | [`memory`] | how many threads and buffers that takes |
//! | [`replica`] | its copies, one in each repository |
//! | [`publish`], [`needed_wal`], [`needed_history`] | announcing it once the WAL it needs is there |
//! | [`own_wal`] | whether that is the WAL of the server which was copied |
//! | [`database_copies`] | whether replay would copy a database otherwise than the server did |
//! | [`report`] | what is reported at the end |
//! | [`recorded`] | what is put on record as evidence |
//!
//! What always holds: the manifest is created last, after every segment of WAL that the backup needs was found in the
//! repository. Whatever ends the command before, there is no backup: an intent stays behind, which says what the next
//! backup may use and `expire` removes.
//!
//! The modules import each other in one direction, from `attempt` over `report`, `publish`, `source` and `replica` down to
//! `begun` and `request`.

mod attempt;
mod begun;
mod database_copies;
mod deleted_wal;
mod lease;
mod memory;
mod needed_history;
mod needed_wal;
mod own_wal;
mod preflight;
mod publish;
mod recorded;
mod replica;
mod report;
mod request;
mod source;

use std::time::Instant;

use anyhow::anyhow;
use bytesize::ByteSize;
use clap::Args;
use tokio_util::sync::CancellationToken;
use walpoint_base::Diagnostic;
use walpoint_runtime::args::{self, CommonArgs};
use walpoint_runtime::exit::Failure;
use walpoint_runtime::{help, output, shutdown};
use walpoint_storage::store::{Rate, StoreSettings};

use self::report::BackupReport;
use self::request::{BackupRequest, INTERRUPTED};
use crate::check::remote::why_remote;

/// The heading of options about what is stored where.
const STORED: &str = "Backup content";
/// The heading of options about how the cluster is read.
const READ: &str = "Reading the cluster";

const EXAMPLES: &[(&str, &str)] = &[
    ("Back up the cluster into each of its repositories", "archive-agent backup"),
    (
        "Before a risky change, label the backup and keep it for 90 days",
        "archive-agent backup --label before-migration\n\
         archive-agent hold add --label before-migration --until 90d \\\n\
         --reason \"until the migration is proven\"",
    ),
    ("Store every block again, in one repository", "archive-agent backup --full --repo far"),
];

/// Options of `backup`.
#[derive(Debug, Clone, Args)]
#[command(after_long_help = help::examples(EXAMPLES))]
pub(crate) struct BackupArgs {
    /// Label the backup with this line of text; retention rules and holds can select it by the label.
    #[arg(long, value_name = "TEXT", value_parser = args::line, default_value = "", hide_default_value = true)]
    label: String,
    /// Store every block, even those that an earlier backup already holds.
    ///
    /// By default, a backup stores only what changed since the last one. Either way the backup is complete: a restore never replays
    /// a chain.
    #[arg(long, help_heading = STORED)]
    full: bool,
    /// Receive the cluster from the server (BASE_BACKUP) instead of reading its data directory [default: if the data directory is
    /// not visible here].
    #[arg(long, help_heading = READ)]
    remote: bool,
    /// Fail, without taking a backup, if a page is damaged.
    #[arg(long, help_heading = READ)]
    strict: bool,
    /// Start with a fast checkpoint (the default).
    #[arg(long, help_heading = READ)]
    fast: bool,
    /// Start with a spread checkpoint, which spreads out the I/O and may take minutes.
    #[arg(long, conflicts_with = "fast", help_heading = READ)]
    spread: bool,
    /// Limit the rate to SIZE per second (for example 20MiB; 0 for no limit) of what is stored in all repositories together [default:
    /// max_rate of the configuration].
    ///
    /// This is an average: single seconds may exceed it.
    #[arg(long, value_name = "SIZE", value_parser = args::rate, help_heading = STORED)]
    max_rate: Option<ByteSize>,
    /// Start even if another backup of the cluster holds the lease. If that backup is still running, both continue. Do not start a
    /// third one before it has ended, because the third one may abort it.
    #[arg(long, help_heading = help::OVERRIDES)]
    steal_lease: bool,
}

/// Runs the command.
pub(crate) async fn run(common: &CommonArgs, args: &BackupArgs) -> Result<(), Failure> {
    let began = Instant::now();
    let stop = shutdown::on_signal()?;
    let (mut selection, names) = common.select_all::<StoreSettings>()?;
    let mut chosen = preflight::choose(&mut selection, names, !common.repo.is_empty());
    let request = BackupRequest {
        label: args.label.clone(),
        fast: !args.spread,
        full: args.full,
        steal_lease: args.steal_lease,
        strict: args.strict,
        rate: Rate::limit(args.max_rate.or(selection.settings.max_rate).map(|rate| rate.as_u64())),
        selection: &selection,
        stop: &stop,
        show_progress: common.show_progress(),
    };
    let made = make(&request, &mut chosen, args.remote).await;
    if let Err(failure) = &made {
        recorded::failed(&selection, &chosen, failure, began.elapsed()).await;
    }
    let mut report = made?;
    report.seconds = began.elapsed().as_secs_f64();
    recorded::made(&selection, &chosen, &report).await;
    if common.json {
        output::json(&report)?;
    } else {
        output::text(&report.text())?;
    }
    match report.failed.is_empty() {
        true => Ok(()),
        false => {
            let what = format!("backup {} is not in every repository", report.backup);
            Err(Diagnostic::gather(&what, &report.failed).into())
        }
    }
}

/// Proves that it can succeed, and makes the backup.
async fn make(
    request: &BackupRequest<'_>,
    chosen: &mut preflight::Chosen,
    remote: bool,
) -> Result<BackupReport, Failure> {
    let BackupRequest { selection, stop, full, .. } = *request;
    match why_remote(remote, selection) {
        None => {
            let proof = Box::pin(preflight::prove(selection, chosen, full));
            let examined = unless_stopped(stop, proof).await?;
            Ok(Box::pin(attempt::make(request, examined, chosen)).await?)
        }
        Some(why) => {
            tracing::info!("the server sends the cluster (BASE_BACKUP), {why}");
            let proof = Box::pin(preflight::prove_remote(selection, chosen, full));
            let examined = unless_stopped(stop, proof).await?;
            Ok(Box::pin(attempt::make(request, examined, chosen)).await?)
        }
    }
}

/// What a proof gives, unless a signal comes first.
async fn unless_stopped<T>(
    stop: &CancellationToken,
    proof: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    tokio::select! {
        proven = proof => proven,
        () = stop.cancelled() => Err(anyhow!(INTERRUPTED).into()),
    }
}
