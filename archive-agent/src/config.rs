//! `archive-agent config check`: everything that is wrong with the configuration file, without opening anything that it names.

use std::path::{Path, PathBuf};

use anyhow::anyhow;
use clap::Subcommand;
use schemars::JsonSchema;
use serde::Serialize;
use walpoint_base::ClusterName;
use walpoint_base::table::WrongKey;
use walpoint_runtime::args::CommonArgs;
use walpoint_runtime::config::{Config, DEFAULT_PATH, Problem};
use walpoint_runtime::exit::Failure;
use walpoint_runtime::{help, human, output};
use walpoint_storage::RepoError;
use walpoint_storage::keys::KeySource;
use walpoint_storage::store::StoreSettings;

const EXAMPLES: &[(&str, &str)] = &[
    (
        "Check the file before the daemon reads it again",
        "archive-agent config check && systemctl reload archive-agent",
    ),
    ("Check another file", "archive-agent config check --config /tmp/new.toml"),
];

/// What `config` can do.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Report every error in the configuration file; exits 2 if there is one.
    ///
    /// Reads only this file, and opens no repository, server or secret that it names. "archive-agent check" does that.
    #[command(after_long_help = help::examples(EXAMPLES))]
    Check,
}

/// What `archive-agent config check --json` prints.
#[derive(Debug, Serialize, JsonSchema)]
struct ConfigReport {
    /// The configuration file.
    config_file: PathBuf,
    /// What is wrong with the file, in the order of its lines.
    errors: Vec<Problem>,
    /// The clusters in the file; empty if something is wrong with it.
    clusters: Vec<ConfiguredCluster>,
    /// The repositories in the file; empty if something is wrong with it.
    repositories: Vec<ConfiguredRepository>,
}

walpoint_runtime::document!(ConfigReport, "archive-agent config check");

/// A cluster.
#[derive(Debug, Serialize, JsonSchema)]
struct ConfiguredCluster {
    /// The cluster.
    cluster: ClusterName,
    /// Its repositories.
    repositories: Vec<String>,
    /// The repositories that must hold a segment before it is acknowledged.
    ack_repositories: Vec<String>,
    /// PostgreSQL's data directory. Absent if it is not set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pgdata: Option<PathBuf>,
}

/// A repository.
#[derive(Debug, Serialize, JsonSchema)]
struct ConfiguredRepository {
    /// Its name.
    repository: String,
    /// Its URL.
    url: String,
}

/// Runs the command.
pub(crate) fn run(common: &CommonArgs, command: &ConfigCommand) -> Result<(), Failure> {
    let ConfigCommand::Check = command;
    common.without_repo("config check")?;
    let path = common.config_path().unwrap_or_else(|| PathBuf::from(DEFAULT_PATH));
    let (config, problems) = Config::examine(&path, contradictions).map_err(Failure::usage)?;
    let report = ConfigReport::of(&path, config.as_ref(), problems);
    match common.json {
        true => output::json(&report)?,
        false => output::text(&report.text())?,
    }
    match report.errors.len() {
        0 => Ok(()),
        found => Err(Failure::usage(anyhow!(
            "the configuration {path:?} cannot be used: it has {}",
            human::count(found as u64, "problem")
        ))),
    }
}

/// What is wrong with the settings of a repository that would show only when it is opened.
fn contradictions(settings: &StoreSettings) -> Vec<WrongKey> {
    let store = settings.contradictions().into_iter();
    let wrong = |error| match error {
        RepoError::Settings { setting, what, .. } => {
            WrongKey { key: setting, what: format!("\"{setting}\": {what}"), hint: String::new() }
        }
        other => WrongKey { key: "url", what: other.to_string(), hint: String::new() },
    };
    store.chain(KeySource::of(&settings.encryption).err()).map(wrong).collect()
}

impl ConfigReport {
    fn of(path: &Path, config: Option<&Config<StoreSettings>>, errors: Vec<Problem>) -> Self {
        let clusters = config.into_iter().flat_map(|config| &config.cluster);
        let repositories = config.into_iter().flat_map(|config| &config.repository);
        Self {
            config_file: path.to_owned(),
            errors,
            clusters: clusters
                .map(|(name, settings)| ConfiguredCluster {
                    cluster: name.clone(),
                    repositories: settings.repositories.clone(),
                    ack_repositories: settings.ack_set().to_vec(),
                    pgdata: settings.pgdata.clone(),
                })
                .collect(),
            repositories: repositories
                .map(|(name, settings)| ConfiguredRepository {
                    repository: name.clone(),
                    url: settings.url.clone(),
                })
                .collect(),
        }
    }

    /// For a person: a line for each problem, as compilers print theirs, with its details and hints below, or what the file has.
    fn text(&self) -> String {
        let path = self.config_file.display();
        if !self.errors.is_empty() {
            let line =
                |problem: &Problem| format!("{path}:{}: {}\n", problem.line_number, problem.diagnostic());
            return self.errors.iter().map(line).collect();
        }
        let mut text = format!("{path}: ok\n");
        for ConfiguredCluster { cluster, repositories, ack_repositories: ack, pgdata } in &self.clusters {
            let (noun, names) = (
                if repositories.len() == 1 { "repository" } else { "repositories" },
                repositories.join(", "),
            );
            let ack = match ack == repositories {
                true => String::new(),
                false => format!(" (ack: {})", ack.join(", ")),
            };
            let pgdata =
                pgdata.as_ref().map_or(String::new(), |pgdata| format!(", pgdata {}", pgdata.display()));
            text += &format!("  cluster {cluster}: {noun} {names}{ack}{pgdata}\n");
        }
        for ConfiguredRepository { repository, url } in &self.repositories {
            text += &format!("  repository {repository}: {url}\n");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn examined(text: &str) -> ConfigReport {
        let file = tempfile::NamedTempFile::new().unwrap();
        walpoint_base::durable::replace(file.path(), text.as_bytes(), 0o600).unwrap();
        let (config, problems) = Config::examine(file.path(), contradictions).unwrap();
        ConfigReport::of(Path::new("w.toml"), config.as_ref(), problems)
    }

    const GOOD: &str = "[repository.a]\nurl = \"/a\"\n[repository.b]\nurl = \"s3://b\"\n[cluster.x]\nrepositories = [\"a\", \"b\"]\n";

    #[test]
    fn what_a_sound_file_has_is_shown() {
        let report = examined(&format!("{GOOD}ack = [\"b\"]\npgdata = \"/data\"\n"));
        assert_eq!(
            report.text(),
            "w.toml: ok\n  cluster x: repositories a, b (ack: b), pgdata /data\n  repository a: /a\n  repository b: s3://b\n"
        );
        assert!(examined(GOOD).text().contains("  cluster x: repositories a, b\n"));
    }

    #[test]
    fn what_only_opening_would_show_is_found_without() {
        let report = examined(&format!(
            "{GOOD}[repository.c]\n[repository.d]\nurl = \"ftp://x/y\"\nkey_file = \"/k\"\npassphrase_file = \"/p\"\nretry_timeout = \"1h\"\n"
        ));
        let text = report.text();
        for expected in [
            "w.toml:7: [repository.c]: \"url\": is required",
            "w.toml:9: [repository.d]: \"url\": ftp://",
            "w.toml:10: [repository.d]: \"key_file\": is not the only setting",
            "w.toml:12: [repository.d]: \"retry_timeout\": must not be longer",
        ] {
            assert!(text.contains(expected), "{expected}\n{text}");
        }
        assert_eq!(report.errors.len(), 4, "{text}");
    }
}
