//! What the stores behind a network have in common on the way there: the address, the client, and whether the machine itself
//! may have credentials.

use std::path::PathBuf;
use std::time::Duration;

use object_store::{BackoffConfig, Certificate, ClientOptions, RetryConfig};
use walpoint_base::mask::masked;
use walpoint_base::secret::{Secret, SecretError, SecretSource};
use walpoint_base::small_file;

use super::limits::LimitSettings;
use super::table::{Keys, StoreTable, keys};
use crate::error::{RepoError, Result};

/// Where clouds tell a machine who it is; the same address at all three.
const METADATA: &str = "169.254.169.254:80";

/// A file of certificates that is longer is a mistake.
const MAX_CERTIFICATES: u64 = 16 << 20;

/// The address of a store, and whom to trust there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NetworkSettings {
    /// Where the store is, unless at its provider's usual address.
    pub endpoint: Option<String>,
    /// Whether an `http://` endpoint is acceptable. Default false.
    pub allow_http: bool,
    /// A file with certificates (PEM) to trust besides the system's.
    pub ca_file: Option<PathBuf>,
}

impl NetworkSettings {
    pub(super) fn of(table: &StoreTable) -> Self {
        Self {
            endpoint: table.endpoint.clone(),
            allow_http: table.allow_http.unwrap_or_default(),
            ca_file: table.ca_file.clone(),
        }
    }

    pub(super) fn keys(table: &StoreTable) -> Keys {
        keys![table: endpoint, allow_http, ca_file]
    }

    /// The endpoint as the library wants it.
    pub(super) fn endpoint(&self) -> Option<&str> {
        self.endpoint.as_deref().map(|endpoint| endpoint.trim_end_matches('/'))
    }

    /// Timeouts of whole requests and of answers are set per request (`limits`): the client's own would cut slow uploads.
    pub(super) async fn client_options(&self, limits: &LimitSettings) -> Result<ClientOptions> {
        let mut options = ClientOptions::new()
            .with_timeout_disabled()
            .with_read_timeout_disabled()
            .with_connect_timeout(limits.connect_timeout()?)
            .with_allow_http(self.allow_http);
        if let Some(path) = &self.ca_file {
            let wrong = |what: String| RepoError::settings("ca_file", format!("{}: {what}", path.display()));
            let file = path.clone();
            let read =
                tokio::task::spawn_blocking(move || small_file::read(&file, MAX_CERTIFICATES + 1)).await;
            let pem = read.map_err(|e| RepoError::Internal(e.to_string()))?;
            let pem = pem.map_err(|e| wrong(e.to_string()))?;
            if pem.len() as u64 > MAX_CERTIFICATES {
                return Err(wrong("is too long".to_owned()));
            }
            let certificates = Certificate::from_pem_bundle(&pem).map_err(|e| wrong(e.to_string()))?;
            if certificates.is_empty() {
                return Err(wrong("holds no certificate".to_owned()));
            }
            options = certificates.into_iter().fold(options, ClientOptions::with_root_certificate);
        }
        Ok(options)
    }

    /// Whether the endpoint is reached without TLS; an error where that is not allowed.
    pub(super) fn uses_http(&self) -> Result<bool> {
        let Some(endpoint) = &self.endpoint else { return Ok(false) };
        if endpoint.starts_with("https://") {
            return Ok(false);
        }
        let shown = masked(endpoint);
        if !endpoint.starts_with("http://") {
            let what = format!("{shown:?} must begin with https:// (or http://)");
            return Err(RepoError::settings("endpoint", what));
        }
        if !self.allow_http {
            let what = format!("{shown:?} is not encrypted\nHINT: Use https://, or set allow_http = true.");
            return Err(RepoError::settings("endpoint", what));
        }
        Ok(true)
    }
}

pub(super) fn no_retries() -> RetryConfig {
    RetryConfig { backoff: BackoffConfig::default(), max_retries: 0, retry_timeout: Duration::from_secs(60) }
}

/// An error of the library's about the settings as a whole.
pub(super) fn wrong_url(error: object_store::Error) -> RepoError {
    RepoError::settings("url", error)
}

/// Whether this machine can be asked who it is. Looked at for a second at the most: elsewhere the address leads nowhere,
/// and a request would hang for minutes.
pub(super) async fn has_metadata() -> bool {
    let connection = tokio::net::TcpStream::connect(METADATA);
    matches!(tokio::time::timeout(Duration::from_secs(1), connection).await, Ok(Ok(_)))
}

pub(super) fn no_credentials(setting: &'static str, hint: &str) -> RepoError {
    RepoError::settings(
        setting,
        format!("no credentials are set, and this machine has none of its own\nHINT: {hint}"),
    )
}

/// The secret that the settings `<key>_file` and `<key>_command` lead to.
pub(super) async fn secret(
    key: &'static str,
    file: &Option<PathBuf>,
    command: &Option<String>,
) -> Result<Option<Secret>> {
    let wrong = |error: SecretError| RepoError::settings(key, error);
    let Some(source) = SecretSource::choose(key, file.clone(), command.clone()).map_err(wrong)? else {
        return Ok(None);
    };
    let read = tokio::task::spawn_blocking(move || source.read()).await;
    let secret = read.map_err(|e| RepoError::Internal(e.to_string()))?.map_err(wrong)?;
    Ok(Some(secret))
}
