//! What a configuration says about a bucket of Google's.

use std::path::{Path, PathBuf};

use crate::store::location::Bucket;
use crate::store::network::NetworkSettings;
use crate::store::table::{Keys, StoreTable, keys};

/// Where the bucket is and how it is reached.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GoogleSettings {
    /// The bucket and the prefix.
    pub bucket: Bucket,
    /// The address of an emulator.
    pub network: NetworkSettings,
    /// A file with the service account's key (JSON).
    pub service_account_file: Option<PathBuf>,
}

impl GoogleSettings {
    pub(in crate::store) fn of(bucket: Bucket, table: &StoreTable) -> Self {
        Self {
            bucket,
            network: NetworkSettings::of(table),
            service_account_file: table.service_account_file.clone(),
        }
    }

    /// What only this provider has.
    pub(in crate::store) fn keys(table: &StoreTable) -> Keys {
        keys![table: service_account_file]
    }

    pub(in crate::store) fn secret_files(&self) -> Vec<&Path> {
        self.service_account_file.iter().map(PathBuf::as_path).collect()
    }
}
