//! The directories that a restore writes to: apart from each other, from every repository and from other data directories.

use std::path::PathBuf;

use anyhow::{Context, bail};
use walpoint_repo::store::StoreSettings;
use walpoint_runtime::args::{CommonArgs, Selection};

use super::directory::{self, Marker, State};
use super::existing;
use super::ground::Ground;
use super::layout::Layout;

/// The repositories of this command line that are directories.
pub(super) fn local_repositories(common: &CommonArgs) -> anyhow::Result<Vec<PathBuf>> {
    let selection: Selection<StoreSettings> = common.select().map_err(|failure| failure.error)?;
    let directories = selection.repositories.iter().filter_map(|(_, settings)| settings.directory());
    // One that cannot be looked at is passed over in planning too.
    Ok(directories.filter_map(|directory| directory::resolve(&directory).ok()).collect())
}

/// Every directory that will be written to. Refuses them if they lie within each other, or within what is somebody else's.
pub(super) fn check(
    layout: &Layout,
    ground: &Ground,
    marker: &Marker,
    repositories: &[PathBuf],
) -> anyhow::Result<Vec<PathBuf>> {
    if let State::Unfinished(earlier) = &ground.state
        && (&earlier.repository, &earlier.cluster) != (&marker.repository, &marker.cluster)
    {
        bail!(
            "{} holds the unfinished restore of cluster {} from another repository; empty it first",
            layout.pgdata().display(),
            earlier.cluster
        );
    }
    let mut places = vec![layout.pgdata().to_owned()];
    for other in layout.others() {
        places.push(directory::resolve(&other).with_context(|| other.display().to_string())?);
    }
    // Sorted by components, what lies in a directory follows it.
    places.sort();
    for pair in places.windows(2) {
        if let [outer, inner] = pair
            && inner.starts_with(outer)
        {
            bail!(
                "{} and {} would lie within each other; choose other places with --tablespace OLD=NEW, --wal-dir or \
                 --extra-dir: nothing was changed",
                outer.display(),
                inner.display()
            );
        }
    }
    for place in &places {
        let (shown, hint) = (place.display(), "choose another place: nothing was changed");
        if let Some(repository) = repositories.iter().find(|r| r.starts_with(place) || place.starts_with(r)) {
            bail!("{shown} and the repository {} lie within each other; {hint}", repository.display());
        }
        if let Some(other) = existing::around(place) {
            bail!("{shown} lies within {}, which is a data directory of its own; {hint}", other.display());
        }
    }
    Ok(places)
}
