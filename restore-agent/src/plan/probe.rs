//! `restore-agent probe`: whether a user can read what recovery will read. `restore` runs it as PostgreSQL's user.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::anyhow;
use clap::Args;
use walpoint_base::ClusterName;
use walpoint_repo::Repository;
use walpoint_runtime::args::{CommonArgs, Selection};
use walpoint_runtime::exit::Failure;
use walpoint_storage::store::StoreSettings;

use super::failed;

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
    let selection: Selection<StoreSettings> = common.select_to_read()?;
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
                "{} cannot be entered, and something would be restored below it: {error}\nHINT: Let that user in, or choose \
                 another place.",
                at.display()
            )
        })?;
    }
    Ok(())
}

/// The arguments of `restore-agent` that run [`probe`] with the same selection, and enter these directories.
pub(crate) fn probe_arguments<'a>(
    config: Option<&Path>,
    repo: &[String],
    cluster: &ClusterName,
    enter: impl Iterator<Item = &'a Path>,
) -> Vec<OsString> {
    let mut arguments: Vec<OsString> =
        ["probe", "--quiet", "--cluster", cluster.as_str()].map(OsString::from).to_vec();
    if let Some(config) = config {
        arguments.extend(["--config".into(), config.into()]);
    }
    for repo in repo {
        arguments.extend(["--repo".into(), repo.into()]);
    }
    for directory in enter {
        arguments.extend(["--enter".into(), directory.into()]);
    }
    arguments
}
