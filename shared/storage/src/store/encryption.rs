//! What a configuration says about the key of an encrypted repository. What is made of it: [`crate::keys`].

use std::path::{Path, PathBuf};

use super::table::StoreTable;

/// Where the secret is that opens an encrypted repository. At most one kind of it may be set.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct EncryptionSettings {
    /// A file that holds the key, 32 bytes in hexadecimal or base64. The fast choice.
    pub key_file: Option<PathBuf>,
    /// A command that prints the key.
    pub key_command: Option<String>,
    /// A file that holds the passphrase.
    pub passphrase_file: Option<PathBuf>,
    /// A command that prints the passphrase.
    pub passphrase_command: Option<String>,
    /// A command that reads what `wrap_command` printed and prints the key again, as a key management service does.
    pub unwrap_command: Option<String>,
    /// A command that reads a key, 64 hexadecimal digits, and prints it wrapped. Needed only where slots are made.
    pub wrap_command: Option<String>,
}

impl EncryptionSettings {
    pub(super) fn of(table: &StoreTable) -> Self {
        Self {
            key_file: table.key_file.clone(),
            key_command: table.key_command.clone(),
            passphrase_file: table.passphrase_file.clone(),
            passphrase_command: table.passphrase_command.clone(),
            unwrap_command: table.unwrap_command.clone(),
            wrap_command: table.wrap_command.clone(),
        }
    }

    pub(super) fn secret_files(&self) -> impl Iterator<Item = &Path> {
        [&self.key_file, &self.passphrase_file].into_iter().flatten().map(PathBuf::as_path)
    }
}
