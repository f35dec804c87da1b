//! The options that name a secret, for `init` and `key`, and new key files.

use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use clap::Args;
use walpoint_base::durable::{self, Created};
use walpoint_runtime::exit::Failure;
use walpoint_storage::keys::KeySource;
use walpoint_storage::keys::source::{print_key, random_key};
use walpoint_storage::store::settings::EncryptionSettings;

/// What opens a repository. Secrets are never arguments: they come from files and commands.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Key or passphrase")]
pub(crate) struct SecretArgs {
    /// Use the key in this file: 32 bytes in hexadecimal or base64. For a new key, the file is created with a random one if it does
    /// not exist.
    #[arg(long, value_name = "FILE")]
    pub(crate) key_file: Option<PathBuf>,
    /// Use the key that this command prints.
    #[arg(long, value_name = "COMMAND")]
    pub(crate) key_command: Option<String>,
    /// Use the passphrase in this file.
    #[arg(long, value_name = "FILE")]
    pub(crate) passphrase_file: Option<PathBuf>,
    /// Use the passphrase that this command prints.
    #[arg(long, value_name = "COMMAND")]
    pub(crate) passphrase_command: Option<String>,
    /// Unwrap the key with this command: it reads what --wrap-command printed and prints the key again.
    #[arg(long, value_name = "COMMAND")]
    pub(crate) unwrap_command: Option<String>,
    /// Wrap a new key with this command: it reads a key and prints it wrapped by a key management service.
    #[arg(long, value_name = "COMMAND", requires = "unwrap_command")]
    pub(crate) wrap_command: Option<String>,
}

impl SecretArgs {
    /// Whether none is given.
    pub(crate) fn is_empty(&self) -> bool {
        self.table().is_empty()
    }

    /// As keys of a `[repository.NAME]` table.
    pub(crate) fn table(&self) -> toml::Table {
        let mut table = toml::Table::new();
        let path = |path: &Option<PathBuf>| path.as_deref().map(|path| absolute(path).display().to_string());
        for (key, value) in [
            ("key_file", path(&self.key_file)),
            ("key_command", self.key_command.clone()),
            ("passphrase_file", path(&self.passphrase_file)),
            ("passphrase_command", self.passphrase_command.clone()),
            ("unwrap_command", self.unwrap_command.clone()),
            ("wrap_command", self.wrap_command.clone()),
        ] {
            if let Some(value) = value {
                table.insert(key.to_owned(), value.into());
            }
        }
        table
    }

    /// Lines of a `[repository.NAME]` table.
    pub(crate) fn lines(&self) -> String {
        self.table().iter().map(|(key, value)| format!("    {key} = {value}\n")).collect()
    }

    /// Where the secret comes from; `None` if no option is given.
    pub(crate) fn source(&self) -> Result<Option<KeySource>, Failure> {
        let settings = EncryptionSettings {
            key_file: self.key_file.as_deref().map(absolute),
            key_command: self.key_command.clone(),
            passphrase_file: self.passphrase_file.as_deref().map(absolute),
            passphrase_command: self.passphrase_command.clone(),
            unwrap_command: self.unwrap_command.clone(),
            wrap_command: self.wrap_command.clone(),
        };
        KeySource::of(&settings).map_err(Failure::usage)
    }

    /// The same, for a secret that is to be new: a key file that does not exist is made.
    pub(crate) fn new_source(&self) -> Result<KeySource, Failure> {
        let source = self.source()?.ok_or_else(|| {
            Failure::usage(anyhow!(
                "no secret is given for the slot\nHINT: Give --key-file FILE (created if it does not exist), \
                 --passphrase-file FILE, or --wrap-command and --unwrap-command."
            ))
        })?;
        if let Some(path) = &self.key_file {
            make_key_file(&absolute(path))?;
        }
        Ok(source)
    }
}

/// Makes a key file with a random key, for its owner's eyes only, unless the file exists. Whether it was made.
pub(crate) fn make_key_file(path: &Path) -> anyhow::Result<bool> {
    if path.exists() {
        return Ok(false);
    }
    let key = random_key()?;
    let mut line = print_key(&key);
    line.push('\n');
    let created = durable::create(path, line.as_bytes());
    let created = created.with_context(|| format!("could not create the key file {}", path.display()))?;
    Ok(created == Created::New)
}

/// A path that means the same wherever a program is started.
fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_key_file_is_made_once_and_is_nobody_elses() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        assert!(make_key_file(&path).unwrap());
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.len() == 65 && text.ends_with('\n'), "{}", text.len());
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(!make_key_file(&path).unwrap());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
    }

    #[test]
    fn options_become_settings() {
        let args = SecretArgs { key_file: Some("/k".into()), ..SecretArgs::default() };
        assert_eq!(args.lines(), "    key_file = \"/k\"\n");
        assert!(SecretArgs::default().is_empty() && SecretArgs::default().source().unwrap().is_none());
        let both = SecretArgs { passphrase_file: Some("/p".into()), ..args };
        assert_eq!(both.source().unwrap_err().status, 2);
        assert_eq!(SecretArgs::default().new_source().unwrap_err().status, 2);
    }
}
