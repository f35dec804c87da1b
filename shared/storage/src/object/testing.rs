//! What tests seal with.
#![allow(clippy::unwrap_used, reason = "for tests, which fail loudly")]

use super::{MasterKey, RepositoryId, Sealer};

/// One sealer of each sort.
pub fn sealers() -> Vec<Sealer> {
    let repository = RepositoryId([9; 16]);
    let encrypted = Sealer::encrypted(repository, MasterKey::new([42; 32])).unwrap();
    vec![Sealer::plain(repository), encrypted]
}
