//! The secrets that open key slots: where they come from, and what they have to look like.

use std::path::PathBuf;

use base64::Engine;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use walpoint_base::Secret;
use walpoint_base::secret::{self, SecretError, SecretSource};
use zeroize::Zeroizing;

use super::slot::{MAX_BLOB, SlotKind};
use super::stretch;
use crate::error::{RepoError, Result};
use crate::ids::parse_hex;
use crate::object::{Salt, SealError};
use crate::store::settings::EncryptionSettings;

/// The variables that readers without a configuration file take a key from.
pub const ENVIRONMENT: [&str; 3] = ["WALPOINT_KEY_FILE", "WALPOINT_KEY", "WALPOINT_PASSPHRASE"];

/// A new passphrase is not shorter, in characters: it is all that protects a copy of the repository.
const MIN_PASSPHRASE: usize = 12;

/// With or without padding, as different tools print it.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Where the secret that opens a slot comes from. Holds no secret itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum KeySource {
    /// A passphrase.
    Passphrase(SecretSource),
    /// A key of 32 bytes, in hexadecimal or base64.
    Key(SecretSource),
    /// A command that unwraps a slot's blob.
    Command {
        /// Reads the blob, prints the key in hexadecimal or base64.
        unwrap: String,
        /// Reads a key, prints the blob; needed to make slots only.
        wrap: Option<String>,
    },
}

/// A secret that was read.
pub enum SlotSecret {
    /// A passphrase: each slot stretches it anew.
    Passphrase(Secret),
    /// The key itself.
    Key(Zeroizing<[u8; 32]>),
    /// Each slot's blob gives it.
    Command(String),
}

impl KeySource {
    /// What the settings name; `None` if they name nothing.
    pub fn of(settings: &EncryptionSettings) -> Result<Option<Self>> {
        let choose = |key: &'static str, file: &Option<_>, command: &Option<_>| {
            SecretSource::choose(key, Option::clone(file), Option::clone(command))
                .map_err(|error| RepoError::settings(key, error))
        };
        let passphrase = choose("passphrase", &settings.passphrase_file, &settings.passphrase_command)?;
        let key = choose("key", &settings.key_file, &settings.key_command)?;
        let wrap = settings.wrap_command.clone();
        match (passphrase, key, settings.unwrap_command.clone()) {
            (None, None, None) if wrap.is_some() => {
                Err(RepoError::settings("wrap_command", "is of no use without unwrap_command"))
            }
            (None, None, None) => Ok(None),
            (None, None, Some(unwrap)) => Ok(Some(Self::Command { unwrap, wrap })),
            (Some(source), None, None) if wrap.is_none() => Ok(Some(Self::Passphrase(source))),
            (None, Some(source), None) if wrap.is_none() => Ok(Some(Self::Key(source))),
            _ => Err(RepoError::settings(
                "key_file",
                "is not the only setting that opens the repository\nHINT: Keep one of key_*, passphrase_* and unwrap_command.",
            )),
        }
    }

    /// What the settings name, or else the environment; `None` if neither names anything.
    pub fn configured(settings: &EncryptionSettings) -> Result<Option<Self>> {
        match Self::of(settings)? {
            Some(source) => Ok(Some(source)),
            None => Self::of_environment(),
        }
    }

    /// What the environment names, for readers without a configuration; `None` if it names nothing.
    pub fn of_environment() -> Result<Option<Self>> {
        let set: Vec<&str> = ENVIRONMENT.into_iter().filter(|n| std::env::var_os(n).is_some()).collect();
        let environment = |name: &str| SecretSource::Environment(name.to_owned());
        match set[..] {
            [] => Ok(None),
            ["WALPOINT_KEY_FILE"] => {
                let path = PathBuf::from(std::env::var_os("WALPOINT_KEY_FILE").unwrap_or_default());
                match path.is_absolute() {
                    true => Ok(Some(Self::Key(SecretSource::File(path)))),
                    false => Err(RepoError::settings("WALPOINT_KEY_FILE", "must be an absolute path")),
                }
            }
            ["WALPOINT_KEY"] => Ok(Some(Self::Key(environment("WALPOINT_KEY")))),
            ["WALPOINT_PASSPHRASE"] => Ok(Some(Self::Passphrase(environment("WALPOINT_PASSPHRASE")))),
            _ => Err(RepoError::settings(
                "WALPOINT_KEY",
                "is not the only one set\nHINT: Keep one of the variables.",
            )),
        }
    }

    /// Whether a slot of that kind could be opened with it.
    pub fn fits(&self, kind: &SlotKind) -> bool {
        matches!(
            (self, kind),
            (Self::Passphrase(_), SlotKind::Passphrase(_))
                | (Self::Key(_), SlotKind::Key)
                | (Self::Command { .. }, SlotKind::Command { .. })
        )
    }

    /// Reads the secret. Blocks.
    pub fn read(&self) -> Result<SlotSecret, SecretError> {
        match self {
            Self::Passphrase(source) => source.read().map(SlotSecret::Passphrase),
            Self::Key(source) => {
                let text = source.read()?;
                parse_key(text.expose()).map(SlotSecret::Key).ok_or_else(|| not_a_key(source.to_string()))
            }
            Self::Command { unwrap, .. } => Ok(SlotSecret::Command(unwrap.clone())),
        }
    }

    /// A secret for a new slot, and the kind of slot that it opens. Blocks.
    pub fn secret_for_new(&self, salt: Salt) -> Result<(SlotKind, Zeroizing<[u8; 32]>)> {
        match (self, self.read().map_err(RepoError::locked_by)?) {
            (Self::Command { wrap, .. }, _) => {
                let wrap = wrap.as_deref().ok_or_else(|| {
                    RepoError::settings("wrap_command", "is needed to make a slot that unwrap_command opens")
                })?;
                wrapped(wrap)
            }
            (_, SlotSecret::Passphrase(passphrase)) => {
                if passphrase.expose().chars().count() < MIN_PASSPHRASE {
                    return Err(RepoError::settings(
                        "passphrase",
                        format!(
                            "is shorter than {MIN_PASSPHRASE} characters: anyone with a copy of the repository could guess it"
                        ),
                    ));
                }
                let kind = SlotKind::Passphrase(stretch::NEW);
                let secret = SlotSecret::Passphrase(passphrase).of_slot(&kind, salt);
                Ok((kind, secret.map_err(RepoError::locked_by)?))
            }
            (_, SlotSecret::Key(key)) => Ok((SlotKind::Key, key)),
            (_, SlotSecret::Command(_)) => {
                Err(RepoError::Internal("a command without its source".to_owned()))
            }
        }
    }
}

/// A new key under a key management service: the command sees it once, the slot keeps what the command made of it.
fn wrapped(wrap: &str) -> Result<(SlotKind, Zeroizing<[u8; 32]>)> {
    let key = random_key()?;
    let blob = secret::filter(wrap, print_key(&key).as_bytes()).map_err(RepoError::locked_by)?;
    if blob.len() > MAX_BLOB {
        let what = format!("printed {} bytes, more than the {MAX_BLOB} that a slot can hold", blob.len());
        return Err(RepoError::settings("wrap_command", what));
    }
    Ok((SlotKind::Command { blob: blob.to_vec() }, key))
}

impl SlotSecret {
    /// The 32 bytes for one slot. Blocks; for a passphrase it takes the memory and the time that the slot asks for.
    pub fn of_slot(&self, kind: &SlotKind, salt: Salt) -> Result<Zeroizing<[u8; 32]>, SecretError> {
        match (self, kind) {
            (Self::Passphrase(passphrase), SlotKind::Passphrase(cost)) => {
                cost.stretch(passphrase.expose().as_bytes(), &salt.0).ok_or_else(|| SecretError::Content {
                    source_name: "the passphrase".to_owned(),
                    what: "not one that can be stretched as the slot asks",
                })
            }
            (Self::Key(key), _) => Ok(key.clone()),
            (Self::Command(command), SlotKind::Command { blob }) => {
                let printed = secret::filter(command, blob)?;
                let text = std::str::from_utf8(&printed).unwrap_or_default();
                parse_key(text.trim_end()).ok_or_else(|| not_a_key(format!("command {command:?}")))
            }
            _ => Err(SecretError::Content { source_name: "the secret".to_owned(), what: "of another kind" }),
        }
    }
}

/// A new random key.
pub fn random_key() -> Result<Zeroizing<[u8; 32]>> {
    let mut key = Zeroizing::new([0; 32]);
    aws_lc_rs::rand::fill(key.as_mut_slice()).map_err(|_| RepoError::sealing(SealError))?;
    Ok(key)
}

/// A key as a key file has it: 64 hexadecimal digits.
pub fn print_key(key: &[u8; 32]) -> Zeroizing<String> {
    // Room for a line end too: a string that grows leaves a copy behind.
    let mut text = Zeroizing::new(String::with_capacity(65));
    for byte in key {
        for digit in [byte >> 4, byte & 15] {
            text.push(char::from_digit(u32::from(digit), 16).unwrap_or_default());
        }
    }
    text
}

/// A key of 32 bytes: 64 hexadecimal digits, or base64.
fn parse_key(text: &str) -> Option<Zeroizing<[u8; 32]>> {
    if text.len() == 64 {
        let lower = Zeroizing::new(text.to_ascii_lowercase());
        return parse_hex(&lower).map(Zeroizing::new);
    }
    let mut bytes = Zeroizing::new([0; 33]);
    let length = BASE64.decode_slice(text, bytes.as_mut_slice()).ok()?;
    let key = bytes.get(..length)?.try_into().ok()?;
    Some(Zeroizing::new(key))
}

fn not_a_key(source_name: String) -> SecretError {
    SecretError::Content { source_name, what: "no key: 32 random bytes in hexadecimal or base64 are wanted" }
}

impl std::fmt::Display for KeySource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Passphrase(source) => write!(f, "passphrase from {source}"),
            Self::Key(source) => write!(f, "key from {source}"),
            Self::Command { unwrap, .. } => write!(f, "unwrap_command {unwrap:?}"),
        }
    }
}

impl std::fmt::Debug for SlotSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}
