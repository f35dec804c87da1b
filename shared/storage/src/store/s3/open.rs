//! From settings to a bucket of S3's.

use std::sync::Arc;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey, Checksum};

use super::credentials;
use super::settings::S3Settings;
use crate::error::{RepoError, Result};
use crate::store::evidence::Connector;
use crate::store::limits::LimitSettings;
use crate::store::network::{no_retries, wrong_url};
use crate::store::remote::Remote;

pub(in crate::store) async fn open(settings: &S3Settings, limits: &LimitSettings) -> Result<Remote> {
    let S3Settings { bucket, network, .. } = settings;
    let plain_http = network.uses_http()?;
    let client = network.client_options(limits).await?;
    let mut builder = AmazonS3Builder::from_env()
        .with_bucket_name(&bucket.name)
        .with_client_options(client)
        .with_http_connector(Connector::default())
        .with_retry(no_retries());
    if let Some(endpoint) = network.endpoint() {
        builder = builder.with_endpoint(endpoint);
    }
    if let Some(region) = &settings.region {
        builder = builder.with_region(region);
    }
    let custom = builder.get_config_value(&AmazonS3ConfigKey::Endpoint).is_some();
    builder = builder.with_virtual_hosted_style_request(!settings.path_style.unwrap_or(custom));
    builder = with_payload(builder, settings, plain_http)?;
    builder = with_encryption(builder, settings)?;
    builder = credentials::add(builder, settings).await?;
    // A store may know no bulk requests, or refuse them.
    let single = Arc::new(builder.clone().with_disable_bulk_delete(true).build().map_err(wrong_url)?);
    let remote = Remote::new(Arc::new(builder.build().map_err(wrong_url)?), &bucket.prefix);
    Ok(remote.with_single(single).with_storage_class(settings.storage_class.as_deref()))
}

/// What of the settings opening refuses, wherever they lead.
pub(in crate::store) fn contradictions(settings: &S3Settings) -> Vec<RepoError> {
    let refused = [
        settings.network.uses_http().err(),
        with_payload(AmazonS3Builder::new(), settings, false).err(),
        with_encryption(AmazonS3Builder::new(), settings).err(),
        credentials::contradiction(settings),
    ];
    refused.into_iter().flatten().collect()
}

/// How bodies are protected on their way.
fn with_payload(
    builder: AmazonS3Builder,
    settings: &S3Settings,
    plain_http: bool,
) -> Result<AmazonS3Builder> {
    let signing = settings.payload_signing.unwrap_or(plain_http);
    let builder = builder.with_unsigned_payload(!signing);
    match settings.checksum.as_deref().unwrap_or(if signing { "none" } else { "crc64nvme" }) {
        "none" => Ok(builder),
        "crc64nvme" => Ok(builder.with_checksum_algorithm(Checksum::CRC64NVME)),
        "sha256" => Ok(builder.with_checksum_algorithm(Checksum::SHA256)),
        other => {
            let what = format!("{other:?} is none of crc64nvme, sha256 and none");
            Err(RepoError::settings("checksum", what))
        }
    }
}

/// How the server encrypts what it keeps.
fn with_encryption(builder: AmazonS3Builder, settings: &S3Settings) -> Result<AmazonS3Builder> {
    match settings.sse.as_deref() {
        None if settings.sse_kms_key.is_some() => {
            Err(RepoError::settings("sse_kms_key", "is only used with sse = \"aws:kms\" or \"aws:kms:dsse\""))
        }
        None => Ok(builder),
        Some("AES256") => Ok(builder.with_config(sse_key("aws_server_side_encryption")?, "AES256")),
        Some("aws:kms") => {
            Ok(builder.with_sse_kms_encryption(settings.sse_kms_key.as_deref().unwrap_or_default()))
        }
        Some("aws:kms:dsse") => {
            Ok(builder.with_dsse_kms_encryption(settings.sse_kms_key.as_deref().unwrap_or_default()))
        }
        Some(other) => {
            let what = format!("{other:?} is none of AES256, aws:kms and aws:kms:dsse");
            Err(RepoError::settings("sse", what))
        }
    }
}

fn sse_key(name: &str) -> Result<AmazonS3ConfigKey> {
    name.parse().map_err(|_| RepoError::Internal(format!("{name} is not known to the object store library")))
}
