//! What a configuration says about a store: the body of `[repository.NAME]`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::SignedDuration;
use serde::Deserialize;

use super::limits::Limits;
use super::wrong_url;
use crate::error::{RepoError, Result};

/// The settings of one repository's store. Unknown keys are errors. Secrets are never here, only where to find them.
///
/// Only `url` is required. What is left out comes from the environment as the provider's own tools have it
/// (`AWS_ACCESS_KEY_ID`, `AWS_REGION`, `GOOGLE_APPLICATION_CREDENTIALS`, `AZURE_STORAGE_ACCOUNT_KEY`, …), or from the
/// identity of the machine.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StoreSettings {
    /// `/directory`, `file:///directory`, `s3://bucket/prefix`, `gs://bucket/prefix` or `az://container/prefix`.
    pub url: String,
    /// The address of an S3-compatible store, or of a GCS or Azure emulator, such as `https://minio.example:9000`.
    pub endpoint: Option<String>,
    /// The S3 region. Default `us-east-1`.
    pub region: Option<String>,
    /// S3: the bucket in the path (true) or in the host name. Default: in the path where `endpoint` is set.
    pub path_style: Option<bool>,
    /// Whether an `http://` endpoint is acceptable. Default false.
    pub allow_http: bool,
    /// A file with certificates (PEM) to trust besides the system's.
    pub ca_file: Option<PathBuf>,

    /// S3: the access key's name, which is no secret.
    pub access_key_id: Option<String>,
    /// S3: a file that holds the access key's name.
    pub access_key_id_file: Option<PathBuf>,
    /// S3: a command that prints the access key's name.
    pub access_key_id_command: Option<String>,
    /// S3: a file that holds the secret key. Read again every minute.
    pub secret_access_key_file: Option<PathBuf>,
    /// S3: a command that prints the secret key. Run again every minute in which it is needed.
    pub secret_access_key_command: Option<String>,
    /// S3: a file that holds the session token of temporary credentials.
    pub session_token_file: Option<PathBuf>,
    /// S3: a command that prints the session token.
    pub session_token_command: Option<String>,
    /// S3: server-side encryption, `AES256`, `aws:kms` or `aws:kms:dsse`.
    pub sse: Option<String>,
    /// S3: the key for `aws:kms`; without it the bucket's.
    pub sse_kms_key: Option<String>,
    /// S3: the storage class of new objects, such as `STANDARD_IA`. Restores need classes that answer at once.
    pub storage_class: Option<String>,
    /// S3: whether bodies are signed (SHA-256). Default: over plain HTTP only, TLS protects them otherwise.
    pub payload_signing: Option<bool>,
    /// S3: the checksum that is sent with a body, `crc64nvme`, `sha256` or `none`. Default: `crc64nvme` where bodies are
    /// not signed, else `none`. Old S3-compatible stores refuse `crc64nvme`.
    pub checksum: Option<String>,

    /// Google: a file with the service account's key (JSON).
    pub service_account_file: Option<PathBuf>,

    /// Azure: the storage account.
    pub account: Option<String>,
    /// Azure: a file that holds the account's key.
    pub account_key_file: Option<PathBuf>,
    /// Azure: a command that prints the account's key.
    pub account_key_command: Option<String>,
    /// Azure: a file that holds a shared access signature.
    pub sas_token_file: Option<PathBuf>,
    /// Azure: a command that prints a shared access signature.
    pub sas_token_command: Option<String>,
    /// Azure: the tenant of a service principal.
    pub tenant_id: Option<String>,
    /// Azure: the service principal.
    pub client_id: Option<String>,
    /// Azure: a file that holds the service principal's secret.
    pub client_secret_file: Option<PathBuf>,
    /// Azure: a command that prints the service principal's secret.
    pub client_secret_command: Option<String>,

    /// Encrypted repositories: a file that holds the key, 32 bytes in hexadecimal or base64. The fast choice.
    pub key_file: Option<PathBuf>,
    /// Encrypted repositories: a command that prints the key.
    pub key_command: Option<String>,
    /// Encrypted repositories: a file that holds the passphrase.
    pub passphrase_file: Option<PathBuf>,
    /// Encrypted repositories: a command that prints the passphrase.
    pub passphrase_command: Option<String>,
    /// Encrypted repositories: a command that reads what `wrap_command` printed and prints the key again, as a key management
    /// service does.
    pub unwrap_command: Option<String>,
    /// A command that reads a key, 64 hexadecimal digits, and prints it wrapped. Needed only where slots are made.
    pub wrap_command: Option<String>,

    /// Whether the store must refuse to replace objects (`required`, the default), or objects are looked at before they
    /// are created (`look-first`), for stores that cannot refuse: then two writers at the same moment may overwrite
    /// each other.
    pub conditional_writes: ConditionalWrites,
    /// How long a connection may take to be made, such as `5s`. Default 5 s.
    pub connect_timeout: Option<SignedDuration>,
    /// How long to wait for the next byte of an answer. Default 30 s.
    pub read_timeout: Option<SignedDuration>,
    /// How often a failed request is repeated. Default 3.
    pub retries: Option<u32>,
    /// No request is repeated after this long. Default 60 s, at most 5 minutes.
    pub retry_timeout: Option<SignedDuration>,
}

/// Whether the store itself keeps objects from being replaced.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ConditionalWrites {
    /// It must.
    #[default]
    Required,
    /// It cannot.
    LookFirst,
}

/// Where a store is, from its URL.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Location {
    /// A directory.
    Directory(PathBuf),
    /// A bucket and a prefix in it.
    S3 {
        /// The bucket.
        bucket: String,
        /// Without slashes at its ends; empty for the whole bucket.
        prefix: String,
    },
    /// A bucket and a prefix in it.
    Google {
        /// The bucket.
        bucket: String,
        /// Without slashes at its ends; empty for the whole bucket.
        prefix: String,
    },
    /// A container and a prefix in it.
    Azure {
        /// The container.
        container: String,
        /// Without slashes at its ends; empty for the whole container.
        prefix: String,
    },
}

impl StoreSettings {
    /// The files that hold secrets.
    pub fn secret_files(&self) -> impl Iterator<Item = &Path> {
        let files = [
            &self.secret_access_key_file,
            &self.session_token_file,
            &self.service_account_file,
            &self.account_key_file,
            &self.sas_token_file,
            &self.client_secret_file,
            &self.key_file,
            &self.passphrase_file,
        ];
        files.into_iter().flatten().map(PathBuf::as_path)
    }

    /// Settings that name a store and leave everything else at its default.
    pub fn at(url: impl Into<String>) -> Self {
        Self { url: url.into(), ..Self::default() }
    }

    /// Where the URL leads.
    pub fn location(&self) -> Result<Location> {
        if self.url.is_empty() {
            return Err(wrong_url("is required: a directory, s3://…, gs://… or az://…"));
        }
        if self.url.starts_with('/') {
            return Ok(Location::Directory(PathBuf::from(&self.url)));
        }
        let (scheme, rest) = self
            .url
            .split_once("://")
            .ok_or_else(|| wrong_url(format!("{:?} is neither an absolute path nor a URL", self.url)))?;
        if scheme == "file" {
            let path = Path::new(rest);
            return match path.is_absolute() {
                true => Ok(Location::Directory(path.to_owned())),
                false => Err(wrong_url(format!("{:?} needs an absolute path: file:///directory", self.url))),
            };
        }
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let (bucket, prefix) = (bucket.to_owned(), prefix.trim_matches('/').to_owned());
        if bucket.is_empty() || bucket.contains(['@', '?', '#', ':']) {
            return Err(wrong_url(format!(
                "{:?} does not name a bucket: {scheme}://bucket/prefix",
                self.url
            )));
        }
        if !prefix.is_empty() && prefix.parse::<crate::layout::Key>().is_err() {
            return Err(wrong_url(format!(
                "the prefix {prefix:?} has other characters than 0-9 A-Z a-z . _ - /"
            )));
        }
        match scheme {
            "s3" => Ok(Location::S3 { bucket, prefix }),
            "gs" => Ok(Location::Google { bucket, prefix }),
            "az" | "azure" => Ok(Location::Azure { container: bucket, prefix }),
            _ => Err(wrong_url(format!(
                "{scheme}:// is no known kind of store; known are file, s3, gs and az"
            ))),
        }
    }

    /// The directory, if it is one.
    pub fn directory(&self) -> Option<PathBuf> {
        match self.location() {
            Ok(Location::Directory(path)) => Some(path),
            _ => None,
        }
    }

    /// The bounds that the settings ask for.
    pub fn limits(&self) -> Result<Limits> {
        let defaults = Limits::default();
        let retry_timeout = duration("retry_timeout", self.retry_timeout, defaults.retry_timeout)?;
        if retry_timeout > Duration::from_secs(300) {
            return Err(RepoError::settings("retry_timeout", "must not be longer than 5 minutes"));
        }
        Ok(Limits {
            read_timeout: duration("read_timeout", self.read_timeout, defaults.read_timeout)?,
            attempts: self.retries.map_or(defaults.attempts, |r| r.saturating_add(1)),
            retry_timeout,
            ..defaults
        })
    }

    pub(super) fn connect_timeout(&self) -> Result<Duration> {
        duration("connect_timeout", self.connect_timeout, Duration::from_secs(5))
    }
}

fn duration(setting: &'static str, value: Option<SignedDuration>, default: Duration) -> Result<Duration> {
    let Some(value) = value else { return Ok(default) };
    let positive = Duration::try_from(value).ok().filter(|d| !d.is_zero());
    positive.ok_or_else(|| RepoError::settings(setting, "must be longer than nothing, such as \"30s\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        let at = |url: &str| StoreSettings::at(url).location();
        assert_eq!(at("/var/backup").unwrap(), Location::Directory("/var/backup".into()));
        assert_eq!(at("file:///var/backup").unwrap(), Location::Directory("/var/backup".into()));
        let s3 = Location::S3 { bucket: "b".into(), prefix: "a/c".into() };
        assert_eq!(at("s3://b/a/c/").unwrap(), s3);
        assert_eq!(at("az://c").unwrap(), Location::Azure { container: "c".into(), prefix: String::new() });
        for bad in
            ["", "relative", "file://relative", "ftp://x/y", "s3://", "s3:///x", "s3://u:p@b/x", "s3://b/a b"]
        {
            let error = at(bad).unwrap_err();
            assert!(matches!(error, RepoError::Settings { setting: "url", .. }), "{bad}: {error}");
        }
    }

    #[test]
    fn unknown_keys_are_errors() {
        let json = |text: &str| serde_json::from_str::<StoreSettings>(text);
        let settings = json(r#"{"url": "s3://b", "read_timeout": "2m", "retries": 0}"#).unwrap();
        let limits = settings.limits().unwrap();
        assert_eq!((limits.read_timeout, limits.attempts), (Duration::from_secs(120), 1));
        assert!(json(r#"{"url": "s3://b", "secret_access_key": "inline"}"#).is_err());
        assert!(StoreSettings { retry_timeout: Some(SignedDuration::ZERO), ..settings }.limits().is_err());
    }
}
