//! The command `list`: what a cluster can be restored to, for a person who chooses a target. It reads only, and asks no server.
//!
//! | module | owns |
//! |---|---|
//! | [`read`] | one repository: what it holds, or why it cannot be read |
//! | [`options`] | the options of `plan` for what is listed |
//! | [`document`] | what is printed as JSON |
//! | [`text`], [`table`] | the same for a person |
//!
//! What always holds: a repository that cannot be read is named with its problem, and the others are listed.

mod document;
mod options;
mod read;
mod table;
#[cfg(test)]
mod tests;
mod text;

use clap::Args;
use futures_util::future::join_all;
use jiff::Timestamp;
use walpoint_repo::catalog::Newest;
use walpoint_runtime::args::{CommonArgs, Selection};
use walpoint_runtime::exit::Failure;
use walpoint_runtime::{help, output};
use walpoint_storage::store::StoreSettings;

use self::document::ListDocument;
use self::options::PlanOptions;
use self::read::Listed;
pub(crate) use self::read::newest_commit;

const EXAMPLES: &[(&str, &str)] = &[
    ("List what the cluster of the configuration can be restored to", "restore-agent list"),
    ("List it without a configuration", "restore-agent list --repo s3://backups/prod --cluster main"),
    ("List all restore points with their times", "restore-agent list --restore-points"),
];

/// Options of `list`.
#[derive(Debug, Clone, Copy, Args)]
#[command(after_long_help = help::examples(EXAMPLES))]
pub(crate) struct ListArgs {
    /// List only backups, and all of them [default: windows, and the newest 20 backups and restore points of each lineage].
    #[arg(long)]
    backups: bool,
    /// List only restore points, and all of them [default: as for --backups].
    ///
    /// Finding the time of each takes one request to the store.
    #[arg(long)]
    restore_points: bool,
}

/// What is listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Sections {
    backups: bool,
    restore_points: bool,
    windows: bool,
}

impl ListArgs {
    fn sections(self) -> Sections {
        let chosen = self.backups || self.restore_points;
        Sections {
            backups: self.backups || !chosen,
            restore_points: self.restore_points || !chosen,
            windows: !chosen,
        }
    }

    /// What is looked into. A listing shows all backups, and which of them is of which lineage says its summary.
    fn newest(self) -> Newest {
        let default = Newest::default();
        Newest {
            backups: usize::MAX,
            restore_points: if self.restore_points { usize::MAX } else { default.restore_points },
        }
    }
}

/// Runs the command. Fails if nothing could be listed: no repository could be read, or none has the cluster.
pub(crate) async fn run(common: &CommonArgs, args: &ListArgs) -> Result<(), Failure> {
    let selection: Selection<StoreSettings> = common.select_to_read()?;
    let cluster = &selection.cluster;
    let read = selection.repositories.iter();
    let read = read.map(|(name, settings)| Listed::of(name, settings, cluster, args.newest()));
    let listed = join_all(read).await;
    let options = PlanOptions::of(common, &listed);
    let sections = args.sections();
    if common.json {
        output::json(&ListDocument::new(cluster, Timestamp::now(), &listed, &options, sections))?;
    } else {
        output::text(&text::cluster(cluster, &listed, &options, sections, args.backups))?;
    }
    match listed.iter().any(|repository| repository.contents.is_ok()) {
        true => Ok(()),
        false => Err(read::nothing_listed(cluster, &listed)),
    }
}
