//! Passwords and keys: they come from a file, the environment or a command, never from an argument, and never show in a
//! log or an error.

mod command;

use std::fmt;
use std::path::PathBuf;

use zeroize::Zeroizing;

use crate::small_file;

/// A secret longer than this is a mistake.
const MAX_LENGTH: u64 = 64 << 10;

/// A text that is wiped when dropped and printed as `***`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Takes the text over.
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    /// The text. Named so that each use can be found and justified.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Where a secret comes from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SecretSource {
    /// The content of a file, without the line end at its end.
    File(PathBuf),
    /// The standard output of a shell command, without the line end at its end.
    Command(String),
    /// An environment variable.
    Environment(String),
}

/// Why a secret cannot be had. Never holds the secret.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// Both `*_file` and `*_command` are given.
    #[error("{key}_file and {key}_command are both set\nHINT: Keep one of them.")]
    Ambiguous {
        /// The setting without its suffix.
        key: String,
    },
    /// The file cannot be read.
    #[error("the secret in {path:?} cannot be read: {source}")]
    File {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The command failed, hung, or printed nothing.
    #[error("the secret command {command:?} {what}")]
    Command {
        /// As configured.
        command: String,
        /// What it did.
        what: String,
    },
    /// The variable is not set.
    #[error("the environment variable {name} is not set")]
    Environment {
        /// Its name.
        name: String,
    },
    /// Empty, too long, or not text.
    #[error("the secret from {source_name} is {what}")]
    Content {
        /// Where it comes from.
        source_name: String,
        /// What is wrong with it.
        what: &'static str,
    },
}

impl SecretSource {
    /// The source that the settings `<key>_file` and `<key>_command` name; `None` if neither is set.
    pub fn choose(
        key: &str,
        file: Option<PathBuf>,
        command: Option<String>,
    ) -> Result<Option<Self>, SecretError> {
        match (file, command) {
            (Some(_), Some(_)) => Err(SecretError::Ambiguous { key: key.to_owned() }),
            (Some(path), None) => Ok(Some(Self::File(path))),
            (None, Some(command)) => Ok(Some(Self::Command(command))),
            (None, None) => Ok(None),
        }
    }

    /// Reads the secret. Blocks: for a file up to 10 seconds, for a command up to 30, and as long again where the same one is
    /// under way.
    pub fn read(&self) -> Result<Secret, SecretError> {
        let bytes = match self {
            Self::File(path) => {
                // One byte more than allowed at the most, which tells.
                let file = small_file::read(path, MAX_LENGTH + 1);
                file.map_err(|source| SecretError::File { path: path.clone(), source })?
            }
            Self::Command(command) => run(command, None)?,
            Self::Environment(name) => {
                let value =
                    std::env::var_os(name).ok_or_else(|| SecretError::Environment { name: name.clone() })?;
                Zeroizing::new(value.into_encoded_bytes())
            }
        };
        let content = |what| SecretError::Content { source_name: self.to_string(), what };
        if bytes.len() as u64 > MAX_LENGTH {
            return Err(content("too long"));
        }
        let text = std::str::from_utf8(&bytes).map_err(|_| content("not text"))?;
        let line = text.strip_suffix('\n').map_or(text, |t| t.strip_suffix('\r').unwrap_or(t));
        if line.is_empty() {
            return Err(content("empty"));
        }
        Ok(Secret::new(line.to_owned()))
    }
}

impl fmt::Display for SecretSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "file {}", path.display()),
            Self::Command(command) => write!(f, "command {command:?}"),
            Self::Environment(name) => write!(f, "environment variable {name}"),
        }
    }
}

/// What a shell command prints after reading `input`, of at most 64 KiB, as bytes: for commands that turn one secret into
/// another. Blocks as long as [`SecretSource::read`].
pub fn filter(command: &str, input: &[u8]) -> Result<Zeroizing<Vec<u8>>, SecretError> {
    let output = run(command, Some(input))?;
    let content = |what| SecretError::Content { source_name: format!("command {command:?}"), what };
    match output.len() as u64 {
        0 => Err(content("empty")),
        1..=MAX_LENGTH => Ok(output),
        _ => Err(content("too long")),
    }
}

fn run(command: &str, input: Option<&[u8]>) -> Result<Zeroizing<Vec<u8>>, SecretError> {
    command::run(command, input).map_err(|what| SecretError::Command { command: command.to_owned(), what })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn from_a_file_and_a_command() {
        let file = tempfile::NamedTempFile::new().unwrap();
        crate::durable::replace(file.path(), b"s3cret\n", 0o600).unwrap();
        let source = SecretSource::choose("key", Some(file.path().to_owned()), None).unwrap().unwrap();
        assert_eq!(source.read().unwrap().expose(), "s3cret");
        let source = SecretSource::Command("echo from-command".into());
        assert_eq!(source.read().unwrap().expose(), "from-command");
        assert_eq!(format!("{:?}", source.read().unwrap()), "***");
    }

    #[test]
    fn a_filter_reads_and_prints_bytes() {
        assert_eq!(filter("tr a-z A-Z", b"abc\n").unwrap().as_slice(), b"ABC\n");
        let much = vec![b'x'; 64 << 10];
        assert_eq!(filter("cat", &much).unwrap().as_slice(), much);
        assert_eq!(filter("echo unread", &much).unwrap().as_slice(), b"unread\n");
        for (command, told) in [("true", "empty"), ("exit 4", "exit status: 4"), ("cat; echo", "too long")] {
            let error = filter(command, &much).unwrap_err().to_string();
            assert!(error.contains(told) && !error.contains("xxx"), "{error}");
        }
    }

    #[test]
    fn failures_say_why() {
        let told = |source: SecretSource| source.read().unwrap_err().to_string();
        assert!(told(SecretSource::Command("exit 3".into())).contains("exit status: 3"));
        assert!(told(SecretSource::Command("true".into())).contains("empty"));
        assert!(told(SecretSource::Command("head -c 70000 /dev/zero".into())).contains("too long"));
        assert!(told(SecretSource::File("/nonexistent/secret".into())).contains("/nonexistent/secret"));
        assert!(told(SecretSource::Environment("WALPOINT_NO_SUCH".into())).contains("not set"));
        assert!(SecretSource::choose("key", Some("a".into()), Some("b".into())).is_err());
    }
}
