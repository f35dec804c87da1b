//! What a configuration says about a store: the body of `[repository.NAME]`, sorted by what it is about.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use walpoint_base::mask::masked;
use walpoint_base::table::{FromTable, WrongKey};

pub use super::azure::AzureSettings;
pub use super::directory::DirectorySettings;
pub use super::encryption::EncryptionSettings;
use super::foreign;
pub use super::google::GoogleSettings;
pub use super::limits::LimitSettings;
use super::location::Location;
pub use super::location::{Bucket, WrongUrl};
pub use super::network::NetworkSettings;
pub use super::s3::S3Settings;
pub use super::table::{ConditionalWrites, StoreTable};
use crate::error::{RepoError, Result};

/// The settings of one repository's store. A key that only another provider has is an error. Secrets are never here, only where to
/// find them.
///
/// Only `url` is required. What is left out comes from the environment as the provider's own tools have it
/// (`AWS_ACCESS_KEY_ID`, `AWS_REGION`, `GOOGLE_APPLICATION_CREDENTIALS`, `AZURE_STORAGE_ACCOUNT_KEY`, …), or from the
/// identity of the machine.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(try_from = "StoreTable")]
pub struct StoreSettings {
    /// As it was given: `/directory`, `file:///directory`, `s3://bucket/prefix`, `gs://bucket/prefix` or
    /// `az://container/prefix`. Messages call the store by it, so one that leads nowhere is without what may be a secret in it.
    pub url: String,
    /// Where the URL leads, and how to get there. A URL that leads nowhere is an error only when this store is opened: the
    /// other repositories of the file can be used.
    pub provider: Result<Provider, WrongUrl>,
    /// Whether the store must refuse to replace objects (`required`, the default), or objects are looked at before they
    /// are created (`look-first`), for stores that cannot refuse: then two writers at the same moment may overwrite
    /// each other.
    pub conditional_writes: ConditionalWrites,
    /// How long requests may take and how often they are tried.
    pub limits: LimitSettings,
    /// What opens an encrypted repository.
    pub encryption: EncryptionSettings,
}

/// Who keeps the objects, with the settings that only this provider has.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Provider {
    /// This machine: a directory.
    Directory(DirectorySettings),
    /// S3 and the stores that speak its protocol.
    S3(Box<S3Settings>),
    /// Google Cloud Storage.
    Google(GoogleSettings),
    /// Azure Blob Storage.
    Azure(Box<AzureSettings>),
}

impl TryFrom<StoreTable> for StoreSettings {
    type Error = WrongKey;

    fn try_from(table: StoreTable) -> Result<Self, WrongKey> {
        let location = Location::of(&table.url);
        if let Ok(location) = &location {
            foreign::refuse(&table, location.kind())?;
        }
        relative(&table).map_or(Ok(()), Err)?;
        Ok(Self::sorted(location, table))
    }
}

impl FromTable for StoreSettings {
    type Table = StoreTable;

    fn from_table(table: StoreTable) -> Result<Self, WrongKey> {
        table.try_into()
    }

    fn place(&self) -> Option<String> {
        let remote = |bucket: &Bucket, network: &NetworkSettings, account: Option<&str>| {
            let endpoint = network.endpoint.as_deref().unwrap_or_default().trim_end_matches('/');
            let (name, prefix) = (&bucket.name, bucket.prefix.trim_matches('/'));
            format!("{endpoint} {} {name}/{prefix}", account.unwrap_or_default())
        };
        Some(match self.provider.as_ref().ok()? {
            Provider::Directory(settings) => {
                settings.path.components().collect::<PathBuf>().display().to_string()
            }
            Provider::S3(settings) => format!("s3 {}", remote(&settings.bucket, &settings.network, None)),
            Provider::Google(settings) => format!("gs {}", remote(&settings.bucket, &settings.network, None)),
            Provider::Azure(settings) => {
                format!("az {}", remote(&settings.container, &settings.network, settings.account.as_deref()))
            }
        })
    }
}

/// A file that is named by a relative path: which one that is would depend on the directory in which a program is started.
fn relative(table: &StoreTable) -> Option<WrongKey> {
    let files = [
        ("ca_file", &table.ca_file),
        ("access_key_id_file", &table.access_key_id_file),
        ("secret_access_key_file", &table.secret_access_key_file),
        ("session_token_file", &table.session_token_file),
        ("service_account_file", &table.service_account_file),
        ("account_key_file", &table.account_key_file),
        ("sas_token_file", &table.sas_token_file),
        ("client_secret_file", &table.client_secret_file),
        ("key_file", &table.key_file),
        ("passphrase_file", &table.passphrase_file),
    ];
    let (key, path) = files
        .into_iter()
        .find_map(|(key, path)| path.as_deref().filter(|path| !path.is_absolute()).map(|path| (key, path)))?;
    Some(WrongKey {
        key,
        what: format!("\"{key}\" must be an absolute path"),
        hint: format!("Write the whole path of {}, from / on.", path.display()),
    })
}

impl StoreSettings {
    /// Settings that name a store and leave everything else at its default.
    pub fn at(url: impl Into<String>) -> Self {
        let table = StoreTable { url: url.into(), ..StoreTable::default() };
        Self::sorted(Location::of(&table.url), table)
    }

    fn sorted(location: Result<Location, WrongUrl>, table: StoreTable) -> Self {
        let url = if location.is_err() { masked(&table.url) } else { table.url.clone() };
        Self {
            provider: location.map(|location| Provider::of(location, &table)),
            conditional_writes: table.conditional_writes,
            limits: LimitSettings::of(&table),
            encryption: EncryptionSettings::of(&table),
            url,
        }
    }

    /// Where the URL leads; an error if it leads nowhere.
    pub fn provider(&self) -> Result<&Provider> {
        self.provider.as_ref().map_err(|wrong| RepoError::settings("url", wrong))
    }

    /// The directory, if it is one.
    pub fn directory(&self) -> Option<PathBuf> {
        match &self.provider {
            Ok(Provider::Directory(settings)) => Some(settings.path.clone()),
            _ => None,
        }
    }

    /// The same store for a person who waits: the other repositories are worth showing soon.
    pub fn impatient(&self) -> Self {
        Self { limits: self.limits.impatient(), ..self.clone() }
    }

    /// The files that hold secrets.
    pub fn secret_files(&self) -> impl Iterator<Item = &Path> {
        let provider = match &self.provider {
            Ok(Provider::S3(settings)) => settings.secret_files(),
            Ok(Provider::Google(settings)) => settings.secret_files(),
            Ok(Provider::Azure(settings)) => settings.secret_files(),
            Ok(Provider::Directory(_)) | Err(_) => Vec::new(),
        };
        provider.into_iter().chain(self.encryption.secret_files())
    }
}

impl Provider {
    fn of(location: Location, table: &StoreTable) -> Self {
        match location {
            Location::Directory(path) => Self::Directory(DirectorySettings { path }),
            Location::S3(bucket) => Self::S3(Box::new(S3Settings::of(bucket, table))),
            Location::Google(bucket) => Self::Google(GoogleSettings::of(bucket, table)),
            Location::Azure(bucket) => Self::Azure(Box::new(AzureSettings::of(bucket, table))),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::store::Limits;

    #[test]
    fn a_wrong_url_is_an_error_of_its_own_store() {
        let settings = StoreSettings::at("ftp://x/y");
        assert!(matches!(settings.provider(), Err(RepoError::Settings { setting: "url", .. })));
        assert_eq!(settings.directory(), None);
        assert_eq!(StoreSettings::at("az://c/p?sig=secret").url, "az://c/p?***");
        assert_eq!(StoreSettings::at("/backup?/a@b").url, "/backup?/a@b", "a directory may be called that");
    }

    #[test]
    fn one_place_has_one_name_and_files_are_named_wherever_a_program_starts() {
        let json = |text: &str| serde_json::from_str::<StoreSettings>(text);
        let place = |text: &str| json(text).unwrap().place();
        assert_eq!(StoreSettings::at("/r").place(), StoreSettings::at("file:///r/").place());
        assert_eq!(StoreSettings::at("s3://b/p").place(), StoreSettings::at("s3://b/p/").place());
        assert_ne!(StoreSettings::at("s3://b/p").place(), StoreSettings::at("gs://b/p").place());
        let elsewhere = place(r#"{"url": "s3://b/p", "endpoint": "http://x"}"#);
        assert_ne!(elsewhere, StoreSettings::at("s3://b/p").place());
        assert_eq!(StoreSettings::at("ftp://b").place(), None);
        for (key, url) in [
            ("key_file", "/r"),
            ("ca_file", "s3://b"),
            ("service_account_file", "gs://b"),
            ("sas_token_file", "az://b"),
        ] {
            let text = |file: &str| format!(r#"{{"url": "{url}", "{key}": "{file}"}}"#);
            let wrong = json(&text("x.key")).unwrap_err().to_string();
            assert!(wrong.contains(&format!("\"{key}\" must be an absolute path")), "{wrong}");
            assert!(json(&text("/x.key")).is_ok(), "{key}");
        }
    }

    #[test]
    fn unknown_keys_are_errors() {
        let json = |text: &str| serde_json::from_str::<StoreSettings>(text);
        let settings = json(r#"{"url": "s3://b", "read_timeout": "2m", "retries": 0}"#).unwrap();
        let limits = Limits::of(&settings.limits).unwrap();
        assert_eq!((limits.read_timeout, limits.attempts), (Duration::from_secs(120), 1));
        assert!(json(r#"{"url": "s3://b", "secret_access_key": "inline"}"#).is_err());
        let none = json(r#"{"url": "s3://b", "retry_timeout": "0s"}"#).unwrap();
        assert!(Limits::of(&none.limits).is_err());
    }
}
