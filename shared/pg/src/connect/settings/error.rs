//! Why connection settings cannot be used.

use std::path::PathBuf;

/// What is wrong with a connection string, the `PG*` environment or a file they name. Never holds a password.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The text cannot be read.
    #[error("the connection settings cannot be read: {what}")]
    Syntax {
        /// Where and why.
        what: String,
    },
    /// libpq has no such keyword.
    #[error("the connection settings hold {name:?}, which no version of libpq knows")]
    Keyword {
        /// As written.
        name: String,
    },
    /// The value is none of those allowed.
    #[error("{keyword}={value:?} in the connection settings is not {expected}")]
    Value {
        /// The keyword.
        keyword: &'static str,
        /// As written.
        value: String,
        /// What it should be, in words that fit after "not".
        expected: &'static str,
    },
    /// libpq understands it, this client does not; ignoring it would weaken or break what was asked for.
    #[error("{keyword}={value:?} in the connection settings is not supported{}", instead(supported))]
    Unsupported {
        /// The keyword.
        keyword: &'static str,
        /// As written.
        value: String,
        /// The values that are.
        supported: &'static [&'static str],
    },
    /// Settings that contradict each other.
    #[error("the connection settings contradict each other: {what}")]
    Contradiction {
        /// Which, and what to do.
        what: String,
    },
    /// No file defines the service.
    #[error(
        "the service {name:?} is defined neither in the service file ($PGSERVICEFILE or ~/.pg_service.conf) nor in the system's pg_service.conf"
    )]
    Service {
        /// Its name.
        name: String,
    },
    /// A file that the settings name cannot be read.
    #[error("the {what} {} cannot be read: {source}", path.display())]
    File {
        /// What it is for.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file that the settings name is not what it should be.
    #[error("the {what} {} cannot be used: {why}", path.display())]
    Content {
        /// What it is for.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// Why, and what to do.
        why: String,
    },
    /// Neither the settings nor the system give a user name.
    #[error("the connection settings name no user and the OS user has no name\nHINT: Add user=….")]
    NoUser,
}

fn instead(supported: &[&str]) -> String {
    if supported.is_empty() {
        "\nHINT: Leave it out.".to_owned()
    } else {
        format!("\nHINT: Use {}.", supported.join(" or "))
    }
}
