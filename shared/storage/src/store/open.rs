//! From settings to a store. Nothing is sent but, where no credentials are set, one look for the machine's own.

use super::settings::{ConditionalWrites, Provider, StoreSettings};
use super::{Backend, Limits, Store, azure, directory, google, s3};
use crate::error::Result;

pub(super) async fn open(settings: &StoreSettings) -> Result<Store> {
    let limits = Limits::of(&settings.limits)?;
    let name = settings.url.clone();
    let backend = match settings.provider()? {
        Provider::Directory(directory) => {
            let opened = directory::open(directory, limits.read_timeout).await;
            let opened = opened.map_err(|failure| failure.during("the directory".to_owned(), &name))?;
            return Ok(Store::new(name, Backend::Local(opened), limits));
        }
        Provider::S3(s3) => s3::open(s3, &settings.limits).await?,
        Provider::Google(google) => google::open(google, &settings.limits).await?,
        Provider::Azure(azure) => azure::open(azure, &settings.limits).await?,
    };
    let look_first = settings.conditional_writes == ConditionalWrites::LookFirst;
    if look_first {
        tracing::warn!(url = %name, "conditional_writes = \"look-first\": two writers at the same moment may overwrite each other");
    }
    Ok(Store::new(name, Backend::Remote(backend.look_first(look_first)), limits))
}
