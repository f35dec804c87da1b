//! Two repositories of a configuration that are one, reached in two ways: through a link, or under two names of one host. Or one is a
//! copy of the other one.
//!
//! What "both" hold of one place is one copy, so nothing may count them as two. Only the random ID shows it, and a copy has that, too.

use walpoint_storage::object::RepositoryId;

/// Two repositories of the configuration are one.
#[derive(Debug, thiserror::Error)]
#[error(
    "repositories {first} and {second} of the configuration are the same repository, with the ID {id}\nDETAIL: Either both lead to \
     one place, with which all is lost that they hold, or one is a copy of the other. A copy of a repository has its ID, and cannot be \
     used beside it.\nHINT: Set url of one of them to an empty place and run \"archive-agent init\", which creates a repository with \
     an ID of its own there, or remove it from the cluster's repositories."
)]
pub(crate) struct SamePlace {
    /// One of them.
    pub(crate) first: String,
    /// The other one.
    pub(crate) second: String,
    /// The ID that both have.
    pub(crate) id: RepositoryId,
}

/// The repositories that were opened so far.
#[derive(Debug, Default)]
pub(crate) struct DistinctPlaces(Vec<(RepositoryId, String)>);

impl DistinctPlaces {
    /// Adds a repository, unless it is one of those before.
    pub(crate) fn add(&mut self, name: &str, id: RepositoryId) -> Result<(), SamePlace> {
        if let Some((_, first)) = self.0.iter().find(|(before, _)| *before == id) {
            return Err(SamePlace { first: first.clone(), second: name.to_owned(), id });
        }
        self.0.push((id, name.to_owned()));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_repository_under_two_names_is_refused() {
        let mut places = DistinctPlaces::default();
        let id = |n| RepositoryId([n; 16]);
        assert!(places.add("near", id(1)).is_ok() && places.add("far", id(2)).is_ok());
        let refused = places.add("again", id(1)).unwrap_err().to_string();
        assert!(
            refused.starts_with("repositories near and again of the configuration are the same"),
            "{refused}"
        );
        assert!(refused.contains("A copy of a repository has its ID"), "{refused}");
    }
}
