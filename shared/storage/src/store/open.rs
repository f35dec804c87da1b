//! From settings to a store. Nothing is sent but, where no credentials are set, one look for the machine's own.

use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey, Checksum};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::{BackoffConfig, Certificate, ClientOptions, ObjectStore, RetryConfig};
use walpoint_base::secret::{Secret, SecretSource};

use super::credentials::RotatingKey;
use super::directory::Local;
use super::limits::Limits;
use super::remote::Remote;
use super::settings::{ConditionalWrites, Location, StoreSettings};
use super::{Backend, Store, wrong_url};
use crate::error::{RepoError, Result};

/// Where clouds tell a machine who it is; the same address at all three.
const METADATA: &str = "169.254.169.254:80";

pub(super) async fn open(settings: &StoreSettings) -> Result<Store> {
    let limits = settings.limits()?;
    let name = settings.url.clone();
    let backend = match settings.location()? {
        Location::Directory(path) => {
            let opened = Limits::within(limits.read_timeout, Local::open(&path)).await;
            let opened = opened.map_err(|failure| failure.during("the directory".to_owned(), &name))?;
            return Ok(Store::new(name, Backend::Local(opened), limits));
        }
        Location::S3 { bucket, prefix } => {
            let remote = Remote::new(s3(settings, &bucket).await?, &prefix);
            remote.with_storage_class(settings.storage_class.as_deref())
        }
        Location::Google { bucket, prefix } => {
            Remote::new(google(settings, &bucket).await?, &prefix).with_bulk(None)
        }
        Location::Azure { container, prefix } => {
            Remote::new(azure(settings, &container).await?, &prefix).with_bulk(Some(256))
        }
    };
    let look_first = settings.conditional_writes == ConditionalWrites::LookFirst;
    if look_first {
        tracing::warn!(store = %name, "conditional_writes = \"look-first\": two writers at the same moment may overwrite each other");
    }
    Ok(Store::new(name, Backend::Remote(backend.look_first(look_first)), limits))
}

async fn s3(settings: &StoreSettings, bucket: &str) -> Result<Arc<dyn ObjectStore>> {
    let plain_http = uses_http(settings)?;
    let mut builder = AmazonS3Builder::from_env()
        .with_bucket_name(bucket)
        .with_client_options(client_options(settings)?)
        .with_retry(no_retries());
    if let Some(endpoint) = &settings.endpoint {
        builder = builder.with_endpoint(endpoint.trim_end_matches('/'));
    }
    if let Some(region) = &settings.region {
        builder = builder.with_region(region);
    }
    let custom = builder.get_config_value(&AmazonS3ConfigKey::Endpoint).is_some();
    builder = builder.with_virtual_hosted_style_request(!settings.path_style.unwrap_or(custom));
    let signing = settings.payload_signing.unwrap_or(plain_http);
    builder = builder.with_unsigned_payload(!signing);
    builder = match settings.checksum.as_deref().unwrap_or(if signing { "none" } else { "crc64nvme" }) {
        "none" => builder,
        "crc64nvme" => builder.with_checksum_algorithm(Checksum::CRC64NVME),
        "sha256" => builder.with_checksum_algorithm(Checksum::SHA256),
        other => {
            let what = format!("{other:?} is none of crc64nvme, sha256 and none");
            return Err(RepoError::settings("checksum", what));
        }
    };
    builder = match settings.sse.as_deref() {
        None if settings.sse_kms_key.is_some() => {
            return Err(RepoError::settings(
                "sse_kms_key",
                "is only used with sse = \"aws:kms\" or \"aws:kms:dsse\"",
            ));
        }
        None => builder,
        Some("AES256") => builder.with_config(sse_key("aws_server_side_encryption")?, "AES256"),
        Some("aws:kms") => {
            builder.with_sse_kms_encryption(settings.sse_kms_key.as_deref().unwrap_or_default())
        }
        Some("aws:kms:dsse") => {
            builder.with_dsse_kms_encryption(settings.sse_kms_key.as_deref().unwrap_or_default())
        }
        Some(other) => {
            return Err(RepoError::settings(
                "sse",
                format!("{other:?} is none of AES256, aws:kms and aws:kms:dsse"),
            ));
        }
    };
    builder = match RotatingKey::from_settings(settings)? {
        Some(key) => {
            key.check().await?;
            builder.with_credentials(Arc::new(key))
        }
        None => {
            let set = |key| builder.get_config_value(&key).is_some();
            let from_environment = set(AmazonS3ConfigKey::AccessKeyId)
                || set(AmazonS3ConfigKey::WebIdentityTokenFile)
                || set(AmazonS3ConfigKey::ContainerCredentialsRelativeUri)
                || set(AmazonS3ConfigKey::ContainerCredentialsFullUri)
                || set(AmazonS3ConfigKey::SkipSignature);
            if !from_environment && !has_metadata().await {
                return Err(no_credentials(
                    "access_key_id",
                    "set access_key_id and secret_access_key_file (or …_command), or AWS_ACCESS_KEY_ID and \
                     AWS_SECRET_ACCESS_KEY",
                ));
            }
            builder
        }
    };
    Ok(Arc::new(builder.build().map_err(wrong_url)?))
}

async fn google(settings: &StoreSettings, bucket: &str) -> Result<Arc<dyn ObjectStore>> {
    uses_http(settings)?;
    let mut builder = GoogleCloudStorageBuilder::from_env()
        .with_bucket_name(bucket)
        .with_client_options(client_options(settings)?)
        .with_retry(no_retries());
    if let Some(endpoint) = &settings.endpoint {
        builder = builder.with_base_url(endpoint.trim_end_matches('/'));
    }
    if let Some(path) = &settings.service_account_file {
        let path = path.to_str().ok_or_else(|| RepoError::settings("service_account_file", "is not text"))?;
        builder = builder.with_service_account_path(path);
    } else if settings.endpoint.is_some() && settings.allow_http {
        // An emulator, which knows no credentials; without any the library would ask the machine for them.
        builder = builder.with_bearer_token("none");
    } else {
        let set = |key| builder.get_config_value(&key).is_some();
        let given = set(GoogleConfigKey::ServiceAccount)
            || set(GoogleConfigKey::ServiceAccountKey)
            || set(GoogleConfigKey::ApplicationCredentials);
        let default_file = std::env::home_dir()
            .is_some_and(|home| home.join(".config/gcloud/application_default_credentials.json").exists());
        if !given && !default_file && !has_metadata().await {
            return Err(no_credentials(
                "service_account_file",
                "set service_account_file, or GOOGLE_APPLICATION_CREDENTIALS",
            ));
        }
    }
    Ok(Arc::new(builder.build().map_err(wrong_url)?))
}

async fn azure(settings: &StoreSettings, container: &str) -> Result<Arc<dyn ObjectStore>> {
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
    let key = secret("account_key", &settings.account_key_file, &settings.account_key_command).await?;
    let sas = secret("sas_token", &settings.sas_token_file, &settings.sas_token_command).await?;
    let client =
        secret("client_secret", &settings.client_secret_file, &settings.client_secret_command).await?;
    if let Some(key) = key {
        builder = builder.with_access_key(key.expose());
    } else if let Some(sas) = sas {
        builder = builder.with_config(AzureConfigKey::SasKey, sas.expose().trim_start_matches('?'));
    } else if let Some(client) = client {
        let missing = |setting| move || RepoError::settings(setting, "is required with client_secret_file");
        let tenant = settings.tenant_id.as_deref().ok_or_else(missing("tenant_id"))?;
        let id = settings.client_id.as_deref().ok_or_else(missing("client_id"))?;
        builder = builder.with_client_secret_authorization(id, client.expose(), tenant);
    } else {
        let set = |key| builder.get_config_value(&key).is_some();
        let given = set(AzureConfigKey::AccessKey)
            || set(AzureConfigKey::SasKey)
            || set(AzureConfigKey::ClientSecret)
            || set(AzureConfigKey::FederatedTokenFile)
            || set(AzureConfigKey::Token)
            || set(AzureConfigKey::MsiEndpoint);
        if !given && !has_metadata().await {
            return Err(no_credentials(
                "account_key_file",
                "set account and account_key_file, sas_token_file or client_secret_file (or …_command), or \
                 AZURE_STORAGE_ACCOUNT_KEY",
            ));
        }
    }
    Ok(Arc::new(builder.build().map_err(wrong_url)?))
}

/// Timeouts of whole requests and of answers are set per request (`limits`): the client's own would cut slow uploads.
fn client_options(settings: &StoreSettings) -> Result<ClientOptions> {
    let mut options = ClientOptions::new()
        .with_timeout_disabled()
        .with_read_timeout_disabled()
        .with_connect_timeout(settings.connect_timeout()?)
        .with_allow_http(settings.allow_http);
    if let Some(path) = &settings.ca_file {
        let wrong = |what: String| RepoError::settings("ca_file", format!("{}: {what}", path.display()));
        let pem = std::fs::read(path).map_err(|e| wrong(e.to_string()))?;
        let certificates = Certificate::from_pem_bundle(&pem).map_err(|e| wrong(e.to_string()))?;
        if certificates.is_empty() {
            return Err(wrong("holds no certificate".to_owned()));
        }
        options = certificates.into_iter().fold(options, ClientOptions::with_root_certificate);
    }
    Ok(options)
}

fn no_retries() -> RetryConfig {
    RetryConfig { backoff: BackoffConfig::default(), max_retries: 0, retry_timeout: Duration::from_secs(60) }
}

fn uses_http(settings: &StoreSettings) -> Result<bool> {
    let Some(endpoint) = &settings.endpoint else { return Ok(false) };
    if endpoint.starts_with("https://") {
        return Ok(false);
    }
    if !endpoint.starts_with("http://") {
        let what = format!("{endpoint:?} must begin with https:// (or http://)");
        return Err(RepoError::settings("endpoint", what));
    }
    if !settings.allow_http {
        let what = format!("{endpoint:?} is not encrypted: use https://, or set allow_http = true");
        return Err(RepoError::settings("endpoint", what));
    }
    Ok(true)
}

fn sse_key(name: &str) -> Result<AmazonS3ConfigKey> {
    name.parse().map_err(|_| RepoError::Internal(format!("{name} is not known to the object store library")))
}

/// Whether this machine can be asked who it is. Looked at for a second at the most: elsewhere the address leads nowhere,
/// and a request would hang for minutes.
async fn has_metadata() -> bool {
    let connection = tokio::net::TcpStream::connect(METADATA);
    matches!(tokio::time::timeout(Duration::from_secs(1), connection).await, Ok(Ok(_)))
}

fn no_credentials(setting: &'static str, hint: &str) -> RepoError {
    RepoError::settings(
        setting,
        format!("no credentials are set, and this machine has none of its own; {hint}"),
    )
}

/// The secret that the settings `<key>_file` and `<key>_command` lead to.
async fn secret(
    key: &'static str,
    file: &Option<std::path::PathBuf>,
    command: &Option<String>,
) -> Result<Option<Secret>> {
    let wrong = |error: walpoint_base::secret::SecretError| RepoError::settings(key, error);
    let Some(source) = SecretSource::choose(key, file.clone(), command.clone()).map_err(wrong)? else {
        return Ok(None);
    };
    let read = tokio::task::spawn_blocking(move || source.read()).await;
    let secret = read.map_err(|e| RepoError::Internal(e.to_string()))?.map_err(wrong)?;
    Ok(Some(secret))
}
