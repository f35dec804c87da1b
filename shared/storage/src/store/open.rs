//! From settings to a store. Nothing is sent but, where no credentials are set, one look for the machine's own.

use super::settings::{ConditionalWrites, Location, StoreSettings};
use super::{Backend, Store, azure, directory, google, s3};
use crate::error::Result;

pub(super) async fn open(settings: &StoreSettings) -> Result<Store> {
    let limits = settings.limits()?;
    let name = settings.url.clone();
    let backend = match settings.location()? {
        Location::Directory(path) => {
            let opened = directory::open(&path, limits.read_timeout).await;
            let opened = opened.map_err(|failure| failure.during("the directory".to_owned(), &name))?;
            return Ok(Store::new(name, Backend::Local(opened), limits));
        }
        Location::S3 { bucket, prefix } => s3::open(settings, &bucket, &prefix).await?,
        Location::Google { bucket, prefix } => google::open(settings, &bucket, &prefix).await?,
        Location::Azure { container, prefix } => azure::open(settings, &container, &prefix).await?,
    };
    let look_first = settings.conditional_writes == ConditionalWrites::LookFirst;
    if look_first {
        tracing::warn!(store = %name, "conditional_writes = \"look-first\": two writers at the same moment may overwrite each other");
    }
    Ok(Store::new(name, Backend::Remote(backend.look_first(look_first)), limits))
}
