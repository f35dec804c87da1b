//! Replacing a copy: the only object that is not created once.
//!
//! Nothing rests on such an object. It repeats what can be found out from objects that are created once, and its readers do
//! without if it is missing, damaged or out of date. So one attempt is enough, and that a store refuses it (retention, rights to
//! create only) is the caller's to ignore.

use super::limits::Limits;
use super::{Backend, Store, counts};
use crate::error::Result;
use crate::object::SealedObject;

impl Store {
    /// Stores an object in the place of what may be there, in one attempt. A crash leaves the old one or the new one.
    pub async fn replace_copy(&self, object: &SealedObject) -> Result<()> {
        let (key, pieces) = (&object.key, &object.pieces);
        let length = pieces.iter().map(|piece| piece.len() as u64).sum();
        counts::add(&self.inner.counts.put, 1);
        counts::add(&self.inner.counts.bytes_out, length);
        let limit = self.inner.limits.sending(length);
        let replaced = match &self.inner.backend {
            Backend::Local(local) => Limits::within(limit, local.replace(key.as_str(), pieces)).await,
            Backend::Remote(remote) => Limits::within(limit, remote.replace(key.as_str(), pieces)).await,
        };
        replaced.map_err(|failure| failure.about(key, self.name()))
    }
}
