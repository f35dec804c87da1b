//! What libpq takes from the process around it: `PG*` variables, the home directory, the name of the OS user.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

/// The surroundings in which a connection string is read.
#[derive(Clone, Default)]
pub struct Environment {
    variables: BTreeMap<String, String>,
    home: Option<PathBuf>,
    os_user: Option<String>,
}

impl Environment {
    /// Nothing at all: only what the connection string says counts.
    pub fn empty() -> Self {
        Self::default()
    }

    /// That of this process. Variables that are not UTF-8 do not count, with a warning.
    pub fn of_process() -> Self {
        let mut variables = BTreeMap::new();
        for (name, value) in std::env::vars_os() {
            let Some(name) = name.to_str().filter(|name| name.starts_with("PG")) else { continue };
            match value.into_string() {
                Ok(value) => drop(variables.insert(name.to_owned(), value)),
                Err(_) => {
                    tracing::warn!(variable = name, "the environment variable is not UTF-8 and is not used")
                }
            }
        }
        Self {
            variables,
            home: std::env::home_dir().filter(|h| !h.as_os_str().is_empty()),
            os_user: os_user(),
        }
    }

    /// With a variable set.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.variables.insert(name.to_owned(), value.into());
        self
    }

    /// With this home directory.
    #[must_use]
    pub fn with_home(mut self, home: impl Into<PathBuf>) -> Self {
        self.home = Some(home.into());
        self
    }

    /// With this name of the OS user, the default of `user`.
    #[must_use]
    pub fn with_os_user(mut self, name: &str) -> Self {
        self.os_user = Some(name.to_owned());
        self
    }

    /// The value of a variable.
    pub(super) fn variable(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(String::as_str)
    }

    /// A file below the home directory.
    pub(super) fn in_home(&self, path: impl AsRef<Path>) -> Option<PathBuf> {
        self.home.as_ref().map(|home| home.join(path))
    }

    /// The name of the OS user.
    pub(super) fn os_user(&self) -> Option<&str> {
        self.os_user.as_deref()
    }
}

impl fmt::Debug for Environment {
    /// Names only: values hold passwords.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.variables.keys().collect();
        f.debug_struct("Environment")
            .field("variables", &names)
            .field("home", &self.home)
            .finish_non_exhaustive()
    }
}

/// The name of the effective user, from `/etc/passwd`; users that only a directory service knows by `$USER`.
fn os_user() -> Option<String> {
    let uid = rustix::process::geteuid().as_raw().to_string();
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let line = passwd.lines().find(|line| line.split(':').nth(2) == Some(uid.as_str()));
    let name =
        line.and_then(|line| line.split(':').next()).filter(|name| !name.is_empty()).map(str::to_owned);
    let from = |variable| std::env::var(variable).ok().filter(|name| !name.is_empty());
    name.or_else(|| from("USER")).or_else(|| from("LOGNAME"))
}
