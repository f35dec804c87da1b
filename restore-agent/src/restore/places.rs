//! The directories that a restore writes to: apart from each other, from every repository and from other data directories.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, bail};
use walpoint_runtime::args::{CommonArgs, Selection};
use walpoint_storage::store::StoreSettings;

use super::decided::Decided;
use super::directory::{self, Contents, Marker};
use super::existing;
use super::identity::{self, Identity};
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
    decided: &Decided,
    marker: &Marker,
    repositories: &[PathBuf],
) -> anyhow::Result<Vec<PathBuf>> {
    if let Contents::Unfinished(earlier) = &decided.contents
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
    let by_name = places.windows(2).find_map(|pair| match pair {
        [outer, inner] if inner.starts_with(outer) => Some((outer, inner)),
        _ => None,
    });
    if let Some((outer, inner)) = by_name.or_else(|| by_identity(&places)) {
        bail!(
            "{} and {} would lie within each other; choose other places with --tablespace OLD=NEW, --wal-dir or \
             --extra-dir: nothing was changed",
            outer.display(),
            inner.display()
        );
    }
    for place in &places {
        let (shown, hint) = (place.display(), "choose another place: nothing was changed");
        let overlaps = |repository: &&PathBuf| {
            identity::lies_within(repository, place) || identity::lies_within(place, repository)
        };
        if let Some(repository) = repositories.iter().find(overlaps) {
            bail!("{shown} and the repository {} lie within each other; {hint}", repository.display());
        }
        if let Some(other) = existing::around(place) {
            bail!("{shown} lies within {}, which is a data directory of its own; {hint}", other.display());
        }
    }
    Ok(places)
}

/// Two places one of which is, or lies within, the other one by another name, as a bind mount gives it.
fn by_identity(places: &[PathBuf]) -> Option<(&PathBuf, &PathBuf)> {
    let mut known = BTreeMap::new();
    for place in places {
        if let Some(twin) = Identity::of(place).and_then(|identity| known.insert(identity, place)) {
            return Some((twin, place));
        }
    }
    places.iter().find_map(|place| {
        let outer = place.ancestors().skip(1).find_map(|ancestor| known.get(&Identity::of(ancestor)?));
        outer.map(|outer| (*outer, place))
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn one_directory_under_two_names_is_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::create_dir_all(path("a/inner")).unwrap();
        fs::create_dir_all(path("b")).unwrap();
        symlink(path("a"), path("alias")).unwrap();
        assert_eq!(by_identity(&[path("a"), path("b")]), None);
        assert_eq!(by_identity(&[path("a"), path("alias")]), Some((&path("a"), &path("alias"))));
        assert_eq!(
            by_identity(&[path("alias/inner/new"), path("a")]),
            Some((&path("a"), &path("alias/inner/new")))
        );
    }
}
