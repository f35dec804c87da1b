//! The `restore_command` of a restored cluster.

use std::path::{Path, PathBuf};

use walpoint_base::socket::FETCH_SOCKET;

use crate::shell;

/// What the command needs to select the repository and the cluster.
#[derive(Debug, Clone)]
pub(crate) struct RestoreSource {
    /// The configuration file; absolute.
    pub(crate) config: Option<PathBuf>,
    /// The repositories that were given by `--repo`.
    pub(crate) repo: Vec<String>,
    /// The key file, if the environment names it and nothing else does.
    pub(crate) key_file: Option<PathBuf>,
    pub(crate) cluster: String,
}

/// The command, for `sh -c`, with `%f` and `%p` for PostgreSQL to fill in.
pub(crate) fn restore_command(source: &RestoreSource) -> String {
    // PostgreSQL runs the command in the data directory.
    // Its environment is not that of the restore.
    let key = source.key_file.as_deref().map(|path| word(&path.to_string_lossy()));
    let key = key.map_or(String::new(), |path| format!("WALPOINT_KEY_FILE={path} "));
    let mut command = format!("{key}{} --socket {FETCH_SOCKET}", word(&program()));
    let mut option = |name: &str, value: &str| command.push_str(&format!(" {name} {}", word(value)));
    if let Some(config) = &source.config {
        option("--config", &config.to_string_lossy());
    }
    for repo in &source.repo {
        option("--repo", repo);
    }
    option("--cluster", &source.cluster);
    command + " %f %p"
}

/// `restore-fetch` beside this program, or by its name if it is not there.
fn program() -> String {
    let beside = std::env::current_exe().ok().and_then(|own| Some(own.parent()?.join("restore-fetch")));
    let found = beside.filter(|path| path.is_file());
    found.as_deref().unwrap_or(Path::new("restore-fetch")).to_string_lossy().into_owned()
}

/// A word of a setting: PostgreSQL replaces `%` sequences before the shell sees the text (`BuildRestoreCommand`), so `%` is
/// doubled.
fn word(text: &str) -> String {
    shell::word(&text.replace('%', "%%"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_survive_postgresql() {
        assert_eq!(word("/usr/bin/x-1.0"), "/usr/bin/x-1.0");
        assert_eq!(word("50%"), "50%%");
    }

    #[test]
    fn a_command_names_all_that_it_needs() {
        let mut source = RestoreSource {
            config: Some("/etc/w p/c.toml".into()),
            repo: Vec::new(),
            key_file: None,
            cluster: "main".into(),
        };
        let command = restore_command(&source);
        assert!(command.contains("--config '/etc/w p/c.toml' --cluster main %f %p"), "{command}");
        assert!(command.contains("--socket pg_dynshmem/walpoint-fetch"), "{command}");
        source.repo = vec!["main".into(), "off site".into()];
        let command = restore_command(&source);
        assert!(command.contains("c.toml' --repo main --repo 'off site' --cluster main"), "{command}");
        source.key_file = Some("/my key".into());
        let command = restore_command(&source);
        assert!(command.starts_with("WALPOINT_KEY_FILE='/my key' "), "{command}");
    }
}
