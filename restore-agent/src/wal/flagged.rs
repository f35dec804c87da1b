//! Copies of a segment that were archived though damaged (`push --accept-damaged`): which of them is handed over.
//!
//! PostgreSQL ends recovery in such a copy, so it is handed over only if `fetch_damaged` says so, and only after every
//! repository was asked for a sound one. Two repositories may have different copies: each was read from a failing disk at another
//! moment. The one whose content most repositories have is taken, of those the one in the repository that recovery has its WAL
//! from, of the others the first of the configuration.

use std::cmp::Reverse;

use walpoint_base::WalFileName;
use walpoint_repo::wal::WalArchive;
use walpoint_storage::object::RepositoryId;

use crate::wal::source::{Failed, FetchSource};

/// A repository whose copy is flagged.
#[derive(Debug)]
pub(crate) struct Flagged<'a> {
    /// The repository.
    pub(crate) source: &'a FetchSource,
    /// Its archive.
    pub(crate) wal: WalArchive,
}

/// Why another repository's copy is preferred.
pub(crate) fn failure(source: &FetchSource) -> Failed {
    let why = "its copy was archived although damaged (push --accept-damaged)".to_owned();
    Failed { repository: source.name.clone(), why, refused: false }
}

/// Why a copy that was archived although damaged is not taken: a repository that is not asked may have a sound one.
pub(crate) fn left_out(name: &str) -> Failed {
    let why = "--repo leaves it out, and it may have a sound copy".to_owned();
    Failed { repository: name.to_owned(), why, refused: true }
}

/// The repositories in the order in which their copies of a file are to be taken. `home`: the one that recovery has its WAL from.
pub(crate) async fn in_order<'a>(
    copies: &[Flagged<'a>],
    name: WalFileName,
    home: Option<RepositoryId>,
) -> Vec<&'a FetchSource> {
    // To each copy the first one that has its content.
    let mut contents: Vec<usize> = Vec::new();
    for (at, copy) in copies.iter().enumerate() {
        let mut content = at;
        for (earlier, other) in copies.iter().enumerate().take(at) {
            if contents.get(earlier) != Some(&earlier) {
                continue;
            }
            match copy.wal.same_copy(&other.wal, name).await {
                Ok(Some(true)) => content = earlier,
                Ok(_) => continue,
                Err(error) => tracing::debug!("the copies of \"{name}\" are not compared: {error}"),
            }
            break;
        }
        contents.push(content);
    }
    let home = copies.iter().position(|copy| Some(copy.wal.repository().id()) == home);
    order(&contents, home).into_iter().filter_map(|at| Some(copies.get(at)?.source)).collect()
}

/// The order of copies: `contents` has the same number where the content is the same.
fn order(contents: &[usize], home: Option<usize>) -> Vec<usize> {
    let with = |content: usize| contents.iter().filter(|other| **other == content).count();
    let mut order: Vec<(usize, usize)> = contents.iter().copied().enumerate().collect();
    order.sort_by_key(|(at, content)| (Reverse(with(*content)), Some(*at) != home, *at));
    order.into_iter().map(|(at, _)| at).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_most_have_comes_first_then_the_plans_then_the_first() {
        assert_eq!(order(&[0, 1, 1], None), [1, 2, 0]);
        assert_eq!(order(&[0, 1, 1], Some(0)), [1, 2, 0]);
        assert_eq!(order(&[0, 1, 1], Some(2)), [2, 1, 0]);
        assert_eq!(order(&[0, 1], Some(1)), [1, 0]);
        assert_eq!(order(&[0, 1], None), [0, 1]);
    }
}
