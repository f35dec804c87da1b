//! The configuration file: one TOML file for both agents, with tables `[repository.NAME]` and `[cluster.NAME]`.
//!
//! Unknown keys are errors. What a repository's table holds is the business of the storage crate: it is the type
//! parameter `R` here, so that neither crate depends on the other.

mod drill;
mod examine;
mod problem;
mod sockets;
mod stream;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytesize::ByteSize;
use jiff::SignedDuration;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use walpoint_base::table::{FromTable, WrongKey};
use walpoint_base::{ClusterName, ScenarioName, span};

pub use self::drill::{DrillKind, DrillScenario, SkippedCheck};
pub use self::problem::{Problem, Problems};
pub use self::sockets::unusable_push_socket;
pub use self::stream::StreamSettings;
use crate::args;
use crate::retention::RetentionSettings;

/// Where the configuration is looked for when neither `--config` nor `$WALPOINT_CONFIG` says.
pub const DEFAULT_PATH: &str = "/etc/walpoint/walpoint.toml";

/// Where the daemon's sockets are unless the configuration says otherwise.
pub const SOCKET_DIRECTORY: &str = "/run/walpoint";

/// Why the configuration cannot be used. The text names file, line and key.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("the configuration {path:?} cannot be read: {source}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not what it should be.
    #[error("the configuration {path:?} is wrong:\n{problems}")]
    Content {
        /// Which file.
        path: PathBuf,
        /// Line, key and reason of each.
        problems: Problems,
    },
}

/// The highest number of things that are done at the same time.
const MOST_AT_ONCE: usize = 1024;

/// The whole file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[serde(bound(deserialize = "R: DeserializeOwned"))]
pub struct Config<R> {
    /// The tables `[repository.NAME]`.
    #[serde(default = "BTreeMap::new")]
    pub repository: BTreeMap<String, R>,
    /// The tables `[cluster.NAME]`.
    #[serde(default, deserialize_with = "clusters")]
    pub cluster: BTreeMap<ClusterName, ClusterSettings>,
    /// The table `[daemon]`.
    #[serde(default)]
    pub daemon: DaemonSettings,
}

/// The table `[daemon]`: what concerns the process and not one cluster.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DaemonSettings {
    /// How long a drain may take after SIGTERM.
    #[serde(deserialize_with = "span::deserialize")]
    pub drain_timeout: SignedDuration,
}

impl Default for DaemonSettings {
    fn default() -> Self {
        Self { drain_timeout: SignedDuration::from_secs(30) }
    }
}

/// The table `[cluster.NAME]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterSettings {
    /// Names of `[repository.NAME]` tables, in the order in which they are read.
    pub repositories: Vec<String>,
    /// Which of them have to hold a segment before it is acknowledged; all of them if unset.
    #[serde(default)]
    pub ack: Option<Vec<String>>,
    /// PostgreSQL's data directory.
    #[serde(default)]
    pub pgdata: Option<PathBuf>,
    /// How to reach PostgreSQL: a libpq connection string or URI; libpq's defaults if unset.
    #[serde(default)]
    pub conninfo: Option<String>,
    /// The socket of `archive-push`; `/run/walpoint/<cluster>.push` if unset.
    #[serde(default)]
    pub push_socket: Option<PathBuf>,
    /// The socket of `restore-fetch`; `pg_dynshmem/walpoint-fetch` in the data directory if unset.
    #[serde(default)]
    pub fetch_socket: Option<PathBuf>,
    /// Files and directories outside PGDATA that a backup takes along, such as Debian's configuration.
    #[serde(default)]
    pub extra_paths: Vec<PathBuf>,
    /// Segments uploaded, or fetched, at the same time.
    #[serde(default = "defaults::transfers")]
    pub transfers: usize,
    /// Segments uploaded before PostgreSQL asks; 0 turns the look-ahead off.
    #[serde(default = "defaults::look_ahead")]
    pub look_ahead: usize,
    /// Readers of a backup and writers of a restore; one for each core if unset.
    #[serde(default)]
    pub workers: Option<usize>,
    /// zstd level of backups, 1 to 19, and of WAL up to 6.
    #[serde(default = "defaults::compression_level")]
    pub compression_level: i32,
    /// How many bytes a second a backup stores and a restore reads at most; WAL is not slowed down. No limit if unset, or 0.
    #[serde(default)]
    pub max_rate: Option<ByteSize>,
    /// How long one `archive-push` may try before it fails and PostgreSQL asks again.
    #[serde(default = "defaults::push_timeout", deserialize_with = "span::deserialize")]
    pub push_timeout: SignedDuration,
    /// More WAL than this does not wait for being archived: the oldest files are dropped, and PostgreSQL removes them. Nothing is
    /// dropped if unset.
    #[serde(default)]
    pub queue_max: Option<ByteSize>,
    /// How long archive recovery tries to read from a store that fails, before it stops with 255. What waiting cannot change, such as
    /// another server's WAL, stops it at once.
    #[serde(default = "defaults::fetch_timeout", deserialize_with = "span::deserialize")]
    pub fetch_timeout: SignedDuration,
    /// What a standby is told about a `.history` file while no repository answers.
    #[serde(default)]
    pub standby_history_outage: HistoryOutage,
    /// Hand over segments that were archived though damaged; PostgreSQL ends recovery in them. A sound copy in another repository is
    /// preferred, so all of them have to answer, except those in `lost_repositories`.
    #[serde(default)]
    pub fetch_damaged: bool,
    /// Names of acknowledging repositories that are gone for good: recovery may end without their word, and what only they held
    /// is lost.
    #[serde(default)]
    pub lost_repositories: Vec<String>,
    /// The most WAL that is fetched before PostgreSQL asks; 0 turns the prefetch off.
    #[serde(default = "defaults::prefetch_max")]
    pub prefetch_max: ByteSize,
    /// A prefetcher that nobody has asked anything for this long ends.
    #[serde(default = "defaults::prefetch_idle_timeout", deserialize_with = "span::deserialize")]
    pub prefetch_idle_timeout: SignedDuration,
    /// Where prefetched WAL waits; `walpoint-spool` in `pg_wal` if unset, where handing over is a rename.
    #[serde(default)]
    pub spool: Option<PathBuf>,
    /// Where a drill makes its scratch directory; `$TMPDIR` if unset, or else `/var/tmp`.
    #[serde(default)]
    pub scratch_directory: Option<PathBuf>,
    /// Whether commands record what they did as evidence in the repositories.
    #[serde(default = "defaults::evidence")]
    pub evidence: bool,
    /// How long a backup waits for the WAL it needs to arrive in the repository.
    #[serde(default = "defaults::backup_wal_timeout", deserialize_with = "span::deserialize")]
    pub backup_wal_timeout: SignedDuration,
    /// The table `[cluster.NAME.retention]`: which backups `expire` keeps; without it all of them.
    #[serde(default)]
    pub retention: Option<RetentionSettings>,
    /// The table `[cluster.NAME.stream]`: the WAL of the open segment; without it none is streamed.
    #[serde(default)]
    pub stream: Option<StreamSettings>,
    /// The tables `[cluster.NAME.drill.SCENARIO]`: drills by name.
    #[serde(default, deserialize_with = "drill::read")]
    pub drill: BTreeMap<ScenarioName, DrillScenario>,
}

/// What `restore-fetch` answers on a standby that asks for a `.history` file while no repository can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HistoryOutage {
    /// Exit 1: the standby goes on and asks again later.
    #[default]
    Missing,
    /// Exit 255: the standby stops, so that it can never pick a timeline id that is taken.
    Stop,
}

mod defaults {
    use bytesize::ByteSize;
    use jiff::SignedDuration;

    pub(super) fn transfers() -> usize {
        4
    }

    pub(super) fn look_ahead() -> usize {
        8
    }

    pub(super) fn compression_level() -> i32 {
        1
    }

    pub(super) fn push_timeout() -> SignedDuration {
        SignedDuration::from_secs(60)
    }

    pub(super) fn fetch_timeout() -> SignedDuration {
        SignedDuration::from_mins(5)
    }

    pub(super) fn prefetch_max() -> ByteSize {
        ByteSize::mib(256)
    }

    pub(super) fn prefetch_idle_timeout() -> SignedDuration {
        SignedDuration::from_mins(1)
    }

    pub(super) fn evidence() -> bool {
        true
    }

    pub(super) fn backup_wal_timeout() -> SignedDuration {
        SignedDuration::from_hours(1)
    }
}

impl ClusterSettings {
    /// Settings for a cluster that no file describes: its repositories, and defaults.
    pub fn with_repositories(repositories: Vec<String>) -> Self {
        Self {
            repositories,
            ack: None,
            pgdata: None,
            conninfo: None,
            push_socket: None,
            fetch_socket: None,
            extra_paths: Vec::new(),
            transfers: defaults::transfers(),
            look_ahead: defaults::look_ahead(),
            workers: None,
            compression_level: defaults::compression_level(),
            max_rate: None,
            push_timeout: defaults::push_timeout(),
            queue_max: None,
            fetch_timeout: defaults::fetch_timeout(),
            standby_history_outage: HistoryOutage::default(),
            fetch_damaged: false,
            lost_repositories: Vec::new(),
            prefetch_max: defaults::prefetch_max(),
            prefetch_idle_timeout: defaults::prefetch_idle_timeout(),
            spool: None,
            scratch_directory: None,
            evidence: defaults::evidence(),
            backup_wal_timeout: defaults::backup_wal_timeout(),
            retention: None,
            stream: None,
            drill: BTreeMap::new(),
        }
    }

    /// The names of the repositories that have to acknowledge.
    pub fn ack_set(&self) -> &[String] {
        self.ack.as_deref().unwrap_or(&self.repositories)
    }

    /// The socket of `archive-push`.
    pub fn push_socket(&self, cluster: &ClusterName) -> PathBuf {
        self.push_socket
            .clone()
            .unwrap_or_else(|| Path::new(SOCKET_DIRECTORY).join(format!("{cluster}.push")))
    }

    /// Workers for what is bound by the processor.
    pub fn workers(&self) -> usize {
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        self.workers.unwrap_or_else(cores).max(1)
    }
}

impl DaemonSettings {
    /// What its keys contradict: a key, and what is wrong with it.
    fn contradictions(&self) -> Vec<(&'static str, String)> {
        not_above_zero(&[("drain_timeout", self.drain_timeout)])
    }
}

/// Those of the spans that are too short for anything to happen in them.
fn not_above_zero(spans: &[(&'static str, SignedDuration)]) -> Vec<(&'static str, String)> {
    let short = spans.iter().filter(|(_, span)| !span.is_positive());
    short
        .map(|(key, _)| (*key, format!("\"{key}\" must be a span of time above zero, such as \"30s\"")))
        .collect()
}

/// A configured span of time; spans below zero count as none.
pub fn duration(span: SignedDuration) -> Duration {
    Duration::try_from(span).unwrap_or_default()
}

impl<R: FromTable<Table: DeserializeOwned>> Config<R> {
    /// Reads and checks a file. An error names everything that is wrong with it.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = Self::text(path)?;
        Self::check(path, &text)
    }

    /// Checks a text as [`Config::read`] would if the file held it: for what is about to be written.
    pub fn check(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let (config, problems) = examine::examine(text, |_| Vec::new(), |_| Vec::new());
        config.ok_or_else(|| ConfigError::Content { path: path.to_owned(), problems: Problems(problems) })
    }

    /// Reads a file: what it says, unless something is wrong with it, and everything that is wrong, in the order of the lines. `closer`
    /// looks at the settings of each repository, and `closer_cluster` at those of each cluster, for what an error of [`Config::read`]
    /// does not name.
    pub fn examine(
        path: &Path,
        closer: impl Fn(&R) -> Vec<WrongKey>,
        closer_cluster: impl Fn(&ClusterSettings) -> Vec<WrongKey>,
    ) -> Result<(Option<Self>, Vec<Problem>), ConfigError> {
        Ok(examine::examine(&Self::text(path)?, closer, closer_cluster))
    }

    fn text(path: &Path) -> Result<String, ConfigError> {
        std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })
    }
}

impl ClusterSettings {
    /// What its keys contradict: a key, and what is wrong with it. `repositories` are the names of the tables of repositories.
    fn contradictions(
        &self,
        name: &ClusterName,
        repositories: &[&str],
        clusters: &BTreeMap<ClusterName, Self>,
    ) -> Vec<(&'static str, String)> {
        let mut found = Vec::new();
        let mut refuse = |key: &'static str, what: String| found.push((key, format!("\"{key}\" {what}")));
        if self.repositories.is_empty() {
            refuse("repositories", "is empty\nHINT: Name at least one [repository.NAME].".to_owned());
        }
        for unknown in self.repositories.iter().filter(|name| !repositories.contains(&name.as_str())) {
            let known = repositories.join(", ");
            refuse(
                "repositories",
                format!(
                    "names \"{unknown}\", but there is no [repository.{unknown}]\nDETAIL: There is: {known}."
                ),
            );
        }
        let (ack, lost) = (self.ack.as_deref().unwrap_or_default(), &self.lost_repositories);
        for (key, names) in
            [("repositories", &self.repositories[..]), ("ack", ack), ("lost_repositories", lost)]
        {
            if let Some((_, twice)) = names.iter().enumerate().find(|(at, name)| names[..*at].contains(name))
            {
                refuse(key, format!("names \"{twice}\" twice"));
            }
        }
        for stray in self.ack.iter().flatten().filter(|name| !self.repositories.contains(name)) {
            refuse("ack", format!("names \"{stray}\", which is not in \"repositories\""));
        }
        if self.ack.as_ref().is_some_and(Vec::is_empty) {
            let why = "is empty: nothing would have to be stored before a segment is acknowledged";
            refuse("ack", why.to_owned());
        }
        if !(1..=19).contains(&self.compression_level) {
            refuse("compression_level", "must be 1 to 19".to_owned());
        }
        for (key, number) in [("transfers", Some(self.transfers)), ("workers", self.workers)] {
            if number.is_some_and(|number| !(1..=MOST_AT_ONCE).contains(&number)) {
                refuse(key, format!("must be at least 1, and at most {MOST_AT_ONCE}"));
            }
        }
        // 0 turns the prefetch off.
        let prefetch_max = Some(self.prefetch_max).filter(|max| max.as_u64() > 0);
        let sizes = [("queue_max", self.queue_max, "50GiB"), ("prefetch_max", prefetch_max, "256MiB")];
        for (key, size, example) in sizes {
            if let Some(max) = size.filter(|max| max.as_u64() < 1 << 20) {
                let max = max.as_u64();
                refuse(
                    key,
                    format!(
                        "is {max} bytes, less than the smallest segment\nHINT: Give the size with its unit, as in \"{example}\"."
                    ),
                );
            }
        }
        if let Some(Err(why)) = self.max_rate.map(args::no_crawl) {
            refuse("max_rate", format!("is refused: {why}"));
        }
        let same_socket = |(other, c): &(&ClusterName, &Self)| {
            *other != name && c.push_socket(other) == self.push_socket(name)
        };
        if let Some((other, _)) = clusters.iter().find(same_socket) {
            refuse(
                "push_socket",
                format!("is shared with cluster \"{other}\"\nHINT: Give each cluster its own socket."),
            );
        }
        found.extend(self.relative_paths());
        found.extend(self.unusable_sockets());
        found.extend(not_above_zero(&[
            ("push_timeout", self.push_timeout),
            ("fetch_timeout", self.fetch_timeout),
            ("prefetch_idle_timeout", self.prefetch_idle_timeout),
            ("backup_wal_timeout", self.backup_wal_timeout),
        ]));
        found
    }
}

impl ClusterSettings {
    /// Paths that mean another place wherever a program is started, as contradictions are.
    fn relative_paths(&self) -> Vec<(&'static str, String)> {
        let paths = [
            ("pgdata", &self.pgdata),
            ("spool", &self.spool),
            ("push_socket", &self.push_socket),
            ("fetch_socket", &self.fetch_socket),
        ];
        let relative =
            paths.into_iter().filter(|(_, path)| path.as_ref().is_some_and(|path| !path.is_absolute()));
        let mut found: Vec<_> =
            relative.map(|(key, _)| (key, format!("\"{key}\" must be an absolute path"))).collect();
        if let Some(path) = self.extra_paths.iter().find(|path| !path.is_absolute()) {
            let what = format!("\"extra_paths\" must be absolute paths, and \"{}\" is none", path.display());
            found.push(("extra_paths", what));
        }
        found
    }

    /// Sockets that could never be opened. A path that is not absolute is told as that.
    fn unusable_sockets(&self) -> Vec<(&'static str, String)> {
        let set = |path: &'_ Option<PathBuf>| path.clone().filter(|path| path.is_absolute());
        let push = set(&self.push_socket).and_then(|path| unusable_push_socket(&path));
        let fetch = set(&self.fetch_socket).and_then(|path| sockets::too_long(&path));
        let found = [("push_socket", push), ("fetch_socket", fetch)];
        found.into_iter().filter_map(|(key, why)| Some((key, format!("\"{key}\" {}", why?)))).collect()
    }
}

/// Reads the clusters with an error that says which name is wrong.
fn clusters<'de, D>(deserializer: D) -> Result<BTreeMap<ClusterName, ClusterSettings>, D::Error>
where
    D: serde::Deserializer<'de>,
{
    let plain = BTreeMap::<String, ClusterSettings>::deserialize(deserializer)?;
    let parsed = plain.into_iter().map(|(name, settings)| Ok((name.parse()?, settings)));
    parsed.collect::<Result<_, walpoint_base::ParseError>>().map_err(serde::de::Error::custom)
}

#[cfg(test)]
mod tests;
