//! From settings to a container of Azure's.

use std::sync::Arc;

use object_store::azure::MicrosoftAzureBuilder;

use super::credentials;
use crate::error::Result;
use crate::store::network::{client_options, no_retries, uses_http};
use crate::store::remote::Remote;
use crate::store::settings::StoreSettings;
use crate::store::wrong_url;

/// Objects that one request can delete.
const BULK: usize = 256;

pub(in crate::store) async fn open(
    settings: &StoreSettings,
    container: &str,
    prefix: &str,
) -> Result<Remote> {
    uses_http(settings)?;
    let mut builder = MicrosoftAzureBuilder::from_env()
        .with_container_name(container)
        .with_client_options(client_options(settings)?)
        .with_retry(no_retries());
    if let Some(account) = &settings.account {
        builder = builder.with_account(account);
    }
    if let Some(endpoint) = &settings.endpoint {
        builder = builder
            .with_endpoint(endpoint.trim_end_matches('/').to_owned())
            .with_allow_http(settings.allow_http);
    }
    builder = credentials::add(builder, settings).await?;
    let store = Arc::new(builder.build().map_err(wrong_url)?);
    Ok(Remote::new(store, prefix).with_bulk(Some(BULK)))
}
