//! The directories that a restore writes to: apart from each other, from every repository and from other data directories.

use std::collections::BTreeMap;
use std::path::PathBuf;

use walpoint_runtime::args::{CommonArgs, Selection};
use walpoint_storage::store::StoreSettings;

use super::directory;
use super::existing;
use super::identity::Position;
use super::refusal::OutsideRefusal;

/// A directory that is written to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) position: Position,
    /// Another data directory within which it lies.
    pub(super) around: Option<PathBuf>,
}

impl Place {
    /// Looks at a path without links.
    pub(super) fn look(path: PathBuf) -> Self {
        let around = existing::around(&path).map(ToOwned::to_owned);
        Self { position: Position::of(path), around }
    }
}

/// The repositories of the cluster that are directories. One that `--repo` leaves out is as little to be written to as those that are read.
pub(super) fn local_repositories(common: &CommonArgs) -> anyhow::Result<Vec<PathBuf>> {
    let (selection, _): (Selection<StoreSettings>, _) =
        common.select_all().map_err(|failure| failure.error)?;
    let directories = selection.repositories.iter().filter_map(|(_, settings)| settings.directory());
    // One that cannot be looked at is passed over in planning too.
    Ok(directories.filter_map(|directory| directory::resolve(&directory).ok()).collect())
}

/// Refuses places that lie within each other, or within a repository or another data directory. Decided by what was found alone.
pub(super) fn require_apart(
    mut places: Vec<&Place>,
    repositories: &[Position],
) -> Result<(), OutsideRefusal> {
    // Sorted by components, what lies in a directory follows it.
    places.sort_by_key(|place| place.position.path());
    let by_name = places.windows(2).find_map(|pair| match pair {
        [outer, inner] if inner.position.path().starts_with(outer.position.path()) => {
            Some((&outer.position, &inner.position))
        }
        _ => None,
    });
    if let Some((outer, inner)) = by_name.or_else(|| by_identity(&places)) {
        let (outer, inner) = (outer.path().to_owned(), inner.path().to_owned());
        return Err(OutsideRefusal::WithinEachOther { outer, inner });
    }
    for place in &places {
        let path = || place.position.path().to_owned();
        let overlaps = |repository: &&Position| {
            repository.lies_within(&place.position) || place.position.lies_within(repository)
        };
        if let Some(repository) = repositories.iter().find(overlaps) {
            let repository = repository.path().to_owned();
            return Err(OutsideRefusal::WithRepository { place: path(), repository });
        }
        if let Some(data) = &place.around {
            return Err(OutsideRefusal::WithinData { place: path(), data: data.clone() });
        }
    }
    Ok(())
}

/// Two places one of which is, or lies within, the other one by another name, as a bind mount gives it.
fn by_identity<'a>(places: &[&'a Place]) -> Option<(&'a Position, &'a Position)> {
    let mut known = BTreeMap::new();
    for Place { position, .. } in places {
        if let Some(twin) = position.identity().and_then(|identity| known.insert(identity, position)) {
            return Some((twin, position));
        }
    }
    places.iter().find_map(|Place { position, .. }| {
        let outer = position.above().find_map(|identity| known.get(&identity).copied());
        outer.map(|outer| (outer, position))
    })
}

#[cfg(test)]
mod tests {
    use walpoint_base::durable;

    use super::super::identity::fixtures::position;
    use super::*;

    fn place(path: &str, inodes: &[u64]) -> Place {
        Place { position: position(path, inodes), around: None }
    }

    #[test]
    fn places_lie_apart_whatever_they_are_called() {
        // `/` is inode 1; `/a` is 2 and holds 3; `/b` is 4.
        let (a, inner) = (place("/a", &[1, 2]), place("/a/inner", &[1, 2, 3]));
        let (b, new) = (place("/b", &[1, 4]), place("/b/new", &[1, 4]));
        let (alias, in_alias) = (place("/alias", &[1, 2]), place("/alias/inner/new", &[1, 2, 3]));
        let within = |outer: &Place, inner: &Place| {
            let path = |place: &Place| place.position.path().to_owned();
            Err(OutsideRefusal::WithinEachOther { outer: path(outer), inner: path(inner) })
        };
        for (places, is) in [
            (vec![&b, &a], Ok(())),
            (vec![&new, &inner], Ok(())),
            (vec![&inner, &a], within(&a, &inner)),
            (vec![&a, &a], within(&a, &a)),
            (vec![&new, &b], within(&b, &new)),
            // By other names, as links and mounts give them.
            (vec![&a, &alias], within(&a, &alias)),
            (vec![&a, &in_alias], within(&a, &in_alias)),
            (vec![&in_alias, &b], Ok(())),
        ] {
            assert_eq!(require_apart(places.clone(), &[]), is, "{places:?}");
        }
    }

    #[test]
    fn a_repository_that_is_not_read_is_a_repository_all_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        let mut text = "[cluster.main]\nrepositories = [\"near\", \"far\"]\n".to_owned();
        for name in ["near", "far"] {
            std::fs::create_dir(root.join(name)).unwrap();
            text += &format!("[repository.{name}]\nurl = \"file://{}\"\n", root.join(name).display());
        }
        let config = root.join("walpoint.toml");
        durable::create(&config, text.as_bytes()).unwrap();
        for repo in [vec![], vec!["near".parse().unwrap()]] {
            let common = CommonArgs { config: Some(config.clone()), repo, ..CommonArgs::default() };
            assert_eq!(local_repositories(&common).unwrap(), [root.join("near"), root.join("far")]);
        }
    }

    #[test]
    fn no_place_lies_around_or_within_a_repository_or_within_another_data_directory() {
        let a = place("/a", &[1, 2]);
        let with = |repository: &Position| {
            let repository = repository.path().to_owned();
            Err(OutsideRefusal::WithRepository { place: "/a".into(), repository })
        };
        for (repository, is_refused) in [
            (position("/a", &[1, 2]), true),
            (position("/a/repository", &[1, 2, 9]), true),
            (position("/", &[1]), true),
            (position("/alias/repository", &[1, 2, 9]), true),
            (position("/alias/not/mounted", &[1, 2]), true),
            (position("/b", &[1, 4]), false),
            (position("/ab", &[1, 5]), false),
        ] {
            let is = if is_refused { with(&repository) } else { Ok(()) };
            assert_eq!(require_apart(vec![&a], std::slice::from_ref(&repository)), is, "{repository:?}");
        }
        let within = Place { around: Some("/data".into()), ..place("/data/new", &[1, 6]) };
        let refused = OutsideRefusal::WithinData { place: "/data/new".into(), data: "/data".into() };
        assert_eq!(require_apart(vec![&a, &within], &[]), Err(refused));
    }
}
