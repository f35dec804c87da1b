//! What a configuration says about a container of Azure's.

use std::path::{Path, PathBuf};

use crate::store::location::Bucket;
use crate::store::network::NetworkSettings;
use crate::store::table::{Keys, StoreTable, keys};

/// Where the container is and how it is reached.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AzureSettings {
    /// The container and the prefix.
    pub container: Bucket,
    /// The address of an emulator.
    pub network: NetworkSettings,
    /// The storage account.
    pub account: Option<String>,
    /// A file that holds the account's key.
    pub account_key_file: Option<PathBuf>,
    /// A command that prints the account's key.
    pub account_key_command: Option<String>,
    /// A file that holds a shared access signature.
    pub sas_token_file: Option<PathBuf>,
    /// A command that prints a shared access signature.
    pub sas_token_command: Option<String>,
    /// The tenant of a service principal.
    pub tenant_id: Option<String>,
    /// The service principal.
    pub client_id: Option<String>,
    /// A file that holds the service principal's secret.
    pub client_secret_file: Option<PathBuf>,
    /// A command that prints the service principal's secret.
    pub client_secret_command: Option<String>,
}

impl AzureSettings {
    pub(in crate::store) fn of(container: Bucket, table: &StoreTable) -> Self {
        Self {
            container,
            network: NetworkSettings::of(table),
            account: table.account.clone(),
            account_key_file: table.account_key_file.clone(),
            account_key_command: table.account_key_command.clone(),
            sas_token_file: table.sas_token_file.clone(),
            sas_token_command: table.sas_token_command.clone(),
            tenant_id: table.tenant_id.clone(),
            client_id: table.client_id.clone(),
            client_secret_file: table.client_secret_file.clone(),
            client_secret_command: table.client_secret_command.clone(),
        }
    }

    /// What only this provider has.
    pub(in crate::store) fn keys(table: &StoreTable) -> Keys {
        keys![
            table:
            account,
            account_key_file,
            account_key_command,
            sas_token_file,
            sas_token_command,
            tenant_id,
            client_id,
            client_secret_file,
            client_secret_command,
        ]
    }

    pub(in crate::store) fn secret_files(&self) -> Vec<&Path> {
        let files = [&self.account_key_file, &self.sas_token_file, &self.client_secret_file];
        files.into_iter().flatten().map(PathBuf::as_path).collect()
    }
}
