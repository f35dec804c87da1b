//! The clusters that a command is about.

use std::path::Path;

use walpoint_base::ClusterName;
use walpoint_repo::expire::CLOCK;
use walpoint_runtime::args::{CommonArgs, RepoArgument, Selection};
use walpoint_runtime::config::{ClusterSettings, Config};
use walpoint_runtime::exit::Failure;
use walpoint_runtime::owner;
use walpoint_storage::RepoError;
use walpoint_storage::store::StoreSettings;

use crate::wal::disk;

/// The clusters that the options name: one, or all of the configuration that are in the repositories named.
pub(crate) fn selections(common: &CommonArgs) -> Result<Vec<Selection<StoreSettings>>, Failure> {
    let config = common.read_config::<StoreSettings>()?;
    let Some(config) = config.filter(|config| common.cluster.is_none() && !config.cluster.is_empty()) else {
        return Ok(vec![common.select()?]);
    };
    if common.url()?.is_some() {
        return Ok(vec![common.select()?]);
    }
    let names = common.names();
    if let Some(unknown) = names.iter().find(|name| !config.repository.contains_key(**name)) {
        return Err(unknown_repository(unknown, &config));
    }
    let one = |(cluster, settings): (&ClusterName, &ClusterSettings)| {
        let here = |repo: &RepoArgument| settings.repositories.contains(&repo.to_string());
        let repo: Vec<RepoArgument> = common.repo.iter().filter(|repo| here(repo)).cloned().collect();
        let asked = names.is_empty() || !repo.is_empty();
        asked.then(|| {
            CommonArgs { cluster: Some(cluster.clone()), repo, ..common.clone() }.select::<StoreSettings>()
        })
    };
    let found: Vec<_> = config.cluster.iter().filter_map(one).collect::<Result<_, Failure>>()?;
    match found.is_empty() {
        true => Err(Failure::usage(anyhow::anyhow!(
            "--repo {}: no cluster of the configuration has this repository",
            names.join(", ")
        ))),
        false => Ok(found),
    }
}

/// A repository that the configuration does not have.
pub(crate) fn unknown_repository(name: &str, config: &Config<StoreSettings>) -> Failure {
    let known = config.repository.keys().cloned().collect::<Vec<_>>().join(", ");
    Failure::usage(anyhow::anyhow!(
        "--repo {name}: the configuration has no [repository.{name}]\nDETAIL: It has: {known}."
    ))
}

/// Whether a repository could not be opened because its settings are wrong: a command that only failed so has the status of wrong
/// usage.
pub(crate) fn is_wrong_settings(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(RepoError::Settings { setting, .. }) if *setting != CLOCK)
}

/// The data directory of a cluster, which archiving cannot do without.
pub(crate) fn pgdata(selection: &Selection<StoreSettings>) -> Result<&Path, Failure> {
    selection.settings.pgdata.as_deref().ok_or_else(|| {
        Failure::usage(anyhow::anyhow!(
            "[cluster.{}] has no pgdata: archiving reads PostgreSQL's data directory\nHINT: Set pgdata to its path.",
            selection.cluster
        ))
    })
}

/// Refuses a command that writes to repositories unless it runs as PostgreSQL's user, where that user's data directory is visible. One
/// that hangs refuses nothing: repositories take care of what another user creates in them.
pub(crate) async fn as_owner(selection: &Selection<StoreSettings>) -> Result<(), Failure> {
    let Some(pgdata) = selection.settings.pgdata.clone() else { return Ok(()) };
    let directory = pgdata.clone();
    let own = move || if directory.exists() { owner::require(&directory) } else { Ok(()) };
    Ok(disk::look(&pgdata, own).await.unwrap_or(Ok(()))?)
}
