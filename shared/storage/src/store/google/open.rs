//! From settings to a bucket of Google's.

use std::sync::Arc;

use object_store::gcp::GoogleCloudStorageBuilder;

use super::credentials;
use crate::error::Result;
use crate::store::network::{client_options, no_retries, uses_http};
use crate::store::remote::Remote;
use crate::store::settings::StoreSettings;
use crate::store::wrong_url;

pub(in crate::store) async fn open(settings: &StoreSettings, bucket: &str, prefix: &str) -> Result<Remote> {
    uses_http(settings)?;
    let mut builder = GoogleCloudStorageBuilder::from_env()
        .with_bucket_name(bucket)
        .with_client_options(client_options(settings)?)
        .with_retry(no_retries());
    if let Some(endpoint) = &settings.endpoint {
        builder = builder.with_base_url(endpoint.trim_end_matches('/'));
    }
    builder = credentials::add(builder, settings).await?;
    let store = Arc::new(builder.build().map_err(wrong_url)?);
    Ok(Remote::new(store, prefix).with_bulk(None))
}
