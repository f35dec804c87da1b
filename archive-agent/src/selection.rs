//! The clusters that a command is about.

use std::path::Path;

use walpoint_runtime::args::{CommonArgs, Selection};
use walpoint_runtime::exit::Failure;
use walpoint_storage::store::StoreSettings;

/// The clusters that the options name: one, or all of the configuration.
pub(crate) fn selections(common: &CommonArgs) -> Result<Vec<Selection<StoreSettings>>, Failure> {
    let config = common.read_config::<StoreSettings>()?;
    match config {
        Some(config) if common.cluster.is_none() && common.repo.is_none() && !config.cluster.is_empty() => {
            let one = |name: &_| CommonArgs { cluster: Some(Clone::clone(name)), ..common.clone() }.select();
            config.cluster.keys().map(one).collect()
        }
        _ => Ok(vec![common.select()?]),
    }
}

/// The data directory of a cluster, which archiving cannot do without.
pub(crate) fn pgdata(selection: &Selection<StoreSettings>) -> Result<&Path, Failure> {
    selection.settings.pgdata.as_deref().ok_or_else(|| {
        Failure::usage(anyhow::anyhow!(
            "[cluster.{}] has no pgdata: archiving reads PostgreSQL's data directory, so say where it is",
            selection.cluster
        ))
    })
}
