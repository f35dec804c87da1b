//! Connection settings as libpq has them: a connection string or URI, then the service file, then `PG*` variables, then
//! defaults, the earlier winning.
//!
//! What libpq knows and this client cannot honour is refused when ignoring it would weaken what was asked for
//! (`requirepeer`, `gssencmode=require`, …). One default differs: `connect_timeout` is 30 seconds instead of for ever,
//! since nobody watches an agent hang; `connect_timeout=0` is for ever here too.

mod environment;
mod error;
mod host;
mod keywords;
pub(in crate::connect) mod passfile;
mod service;
mod syntax;
mod tls;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use walpoint_base::Secret;

pub use self::environment::Environment;
pub use self::error::SettingsError;
pub use self::host::{Host, ServerAddress};
pub use self::tls::{ChannelBinding, SslMode};
pub(in crate::connect) use self::tls::{TlsSettings, TrustedRoots};

/// How long one server may take to accept a connection unless the settings say otherwise.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// What kind of session to ask for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Replication {
    /// An ordinary session.
    Off,
    /// A walsender without a database: replication commands and `SHOW`.
    Physical,
    /// A walsender with a database: SQL as well.
    Database,
}

/// Which servers of a list will do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SessionTarget {
    /// All.
    Any,
    /// Sessions that may write.
    ReadWrite,
    /// Sessions that may not write.
    ReadOnly,
    /// Servers not in recovery.
    Primary,
    /// Servers in recovery.
    Standby,
    /// A standby, or any if none can be had.
    PreferStandby,
}

/// TCP keepalives; `None` is the system's default.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Keepalive {
    pub(super) off: bool,
    pub(super) idle: Option<Duration>,
    pub(super) interval: Option<Duration>,
    pub(super) count: Option<u32>,
    /// Milliseconds that sent data may stay unacknowledged.
    pub(super) user_timeout: Option<u32>,
}

/// As whom a Unix socket is opened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Peer {
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// The user's other groups.
    pub(super) groups: Vec<u32>,
}

/// The ways to authenticate that `require_auth` allows.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct AllowedMethods {
    listed: Vec<String>,
    /// The list names what is forbidden.
    negated: bool,
}

impl AllowedMethods {
    /// Whether the method may be used; libpq's names, `none` for no authentication.
    pub(super) fn allows(&self, method: &str) -> bool {
        self.listed.is_empty() || self.listed.iter().any(|m| m == method) != self.negated
    }

    fn read(text: &str) -> Result<Self, SettingsError> {
        let wrong = || SettingsError::Value {
            keyword: "require_auth",
            value: text.to_owned(),
            expected: "a list of methods (password, md5, scram-sha-256, gss, sspi, oauth, none), all or none of them with \"!\"",
        };
        let mut methods = Self::default();
        for (n, item) in text.split(',').map(str::trim).filter(|_| !text.is_empty()).enumerate() {
            let (negated, name) = item.strip_prefix('!').map_or((false, item), |name| (true, name));
            let known = ["password", "md5", "scram-sha-256", "gss", "sspi", "oauth", "none"].contains(&name);
            if !known || (n > 0 && negated != methods.negated) {
                return Err(wrong());
            }
            methods.negated = negated;
            methods.listed.push(name.to_owned());
        }
        Ok(methods)
    }
}

/// Where and how to connect. Immutable; passwords are looked up when a connection is opened, so they may change.
#[derive(Clone)]
pub struct ConnInfo {
    pub(super) hosts: Vec<Host>,
    pub(super) user: String,
    pub(super) database: String,
    pub(super) password: Option<Secret>,
    pub(super) passfile: Option<PathBuf>,
    pub(super) options: Option<String>,
    pub(super) application_name: String,
    pub(super) replication: Replication,
    pub(super) connect_timeout: Option<Duration>,
    pub(super) keepalive: Keepalive,
    pub(super) target: SessionTarget,
    pub(super) shuffle: bool,
    pub(super) tls: TlsSettings,
    pub(super) channel_binding: ChannelBinding,
    pub(super) methods: AllowedMethods,
    pub(super) peer: Option<Peer>,
}

impl ConnInfo {
    /// Reads a connection string or URI in the environment of this process. An empty text is fine: all is default.
    pub fn parse(text: &str) -> Result<Self, SettingsError> {
        Self::parse_in(text, &Environment::of_process())
    }

    /// Reads a connection string or URI in the given environment.
    pub fn parse_in(text: &str, environment: &Environment) -> Result<Self, SettingsError> {
        let keywords = Keywords::collect(text, environment)?;
        let timeout = match keywords.number("connect_timeout")? {
            None => Some(CONNECT_TIMEOUT),
            // libpq too makes 2 of 1: with whole seconds, 1 could be next to nothing.
            Some(seconds) => {
                u64::try_from(seconds).ok().filter(|&s| s > 0).map(|s| Duration::from_secs(s.max(2)))
            }
        };
        let user = keywords.get("user").or(environment.os_user()).ok_or(SettingsError::NoUser)?;
        let named = keywords.get("application_name").or(keywords.get("fallback_application_name"));
        Ok(Self {
            hosts: host::hosts(
                keywords.get("host").unwrap_or_default(),
                keywords.get("hostaddr").unwrap_or_default(),
                keywords.get("port").unwrap_or_default(),
            )?,
            user: user.to_owned(),
            database: keywords.get("dbname").unwrap_or(user).to_owned(),
            password: keywords.get("password").map(|p| Secret::new(p.to_owned())),
            passfile: keywords.get("passfile").map(PathBuf::from).or_else(|| environment.in_home(".pgpass")),
            options: keywords.get("options").map(str::to_owned),
            application_name: named.unwrap_or("walpoint").to_owned(),
            replication: keywords.replication()?,
            connect_timeout: timeout,
            keepalive: keywords.keepalive()?,
            target: keywords.target()?,
            shuffle: keywords
                .choice("load_balance_hosts", &[("disable", false), ("random", true)])?
                .unwrap_or(false),
            tls: TlsSettings::read(&keywords, environment)?,
            channel_binding: keywords
                .choice(
                    "channel_binding",
                    &[
                        ("disable", ChannelBinding::Disable),
                        ("prefer", ChannelBinding::Prefer),
                        ("require", ChannelBinding::Require),
                    ],
                )?
                .unwrap_or(ChannelBinding::Prefer),
            methods: AllowedMethods::read(keywords.get("require_auth").unwrap_or_default())?,
            peer: None,
        })
    }

    /// A connection string for programs of libpq with which they do as a connection string or URI says, at one server only. What it says
    /// nothing of, they take from their environment.
    pub fn text_at(text: &str, host: &Host) -> Result<String, SettingsError> {
        let (name, address) = match &host.place {
            ServerAddress::DefaultSocket => (String::new(), None),
            ServerAddress::Directory(directory) => (directory.display().to_string(), None),
            ServerAddress::Abstract(name) => (format!("@{name}"), None),
            ServerAddress::Network { name, address } => (name.clone(), *address),
        };
        let mut pairs = syntax::parse(text)?;
        pairs.retain(|(name, _)| !["host", "hostaddr", "port"].contains(&name.as_str()));
        pairs.push(("host".to_owned(), name));
        pairs.push(("hostaddr".to_owned(), address.map(|address| address.to_string()).unwrap_or_default()));
        pairs.push(("port".to_owned(), host.port.to_string()));
        let quoted = |value: &str| value.replace('\\', r"\\").replace('\'', r"\'");
        let words: Vec<String> =
            pairs.iter().map(|(name, value)| format!("{name}='{}'", quoted(value))).collect();
        Ok(words.join(" "))
    }

    /// The same, at one server only.
    #[must_use]
    pub fn at(mut self, host: Host) -> Self {
        self.hosts = vec![host];
        self
    }

    /// The same, asking for another kind of session.
    #[must_use]
    pub fn with_replication(mut self, replication: Replication) -> Self {
        self.replication = replication;
        self
    }

    /// The same; Unix sockets are opened as that user, whom the server's `peer` authentication then sees. Only root may be another user.
    /// `groups`: the user's other groups.
    #[must_use]
    pub fn as_user(mut self, uid: u32, gid: u32, groups: &[u32]) -> Self {
        self.peer = Some(Peer { uid, gid, groups: groups.to_vec() });
        self
    }

    /// The same, under another name in `pg_stat_activity`.
    #[must_use]
    pub fn with_application_name(mut self, name: &str) -> Self {
        name.clone_into(&mut self.application_name);
        self
    }

    /// The name in `pg_stat_activity`.
    pub fn application_name(&self) -> &str {
        &self.application_name
    }

    /// The servers to try, in order.
    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    /// The role to connect as.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// The database to connect to.
    pub fn database(&self) -> &str {
        &self.database
    }

    /// Whether a password was given, in the text or the environment; one in a password file is not looked up here.
    pub fn has_password(&self) -> bool {
        self.password.is_some()
    }

    /// The kind of session to ask for.
    pub fn replication(&self) -> Replication {
        self.replication
    }

    /// How much TLS is asked for.
    pub fn ssl_mode(&self) -> SslMode {
        self.tls.mode
    }
}

impl FromStr for ConnInfo {
    type Err = SettingsError;

    fn from_str(text: &str) -> Result<Self, SettingsError> {
        Self::parse(text)
    }
}

impl fmt::Display for ConnInfo {
    /// `walpoint@db1:5432,db2:5432/postgres`: for messages, without secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hosts: Vec<String> = self.hosts.iter().map(Host::to_string).collect();
        write!(f, "{}@{}/{}", self.user, hosts.join(","), self.database)
    }
}

impl fmt::Debug for ConnInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ConnInfo({self}, sslmode {:?})", self.tls.mode)
    }
}

/// The value that counts for each keyword; empty ones are as good as absent.
#[derive(Default)]
struct Keywords(BTreeMap<&'static str, String>);

impl Keywords {
    fn collect(text: &str, environment: &Environment) -> Result<Self, SettingsError> {
        let mut keywords = Self::default();
        // Within a connection string the last one counts.
        for (name, value) in syntax::parse(text)? {
            let keyword = keywords::checked(&name, &value)?;
            keywords.0.insert(keyword.name, value);
        }
        let service = keywords.get("service").or(environment.variable("PGSERVICE")).filter(|s| !s.is_empty());
        if let Some(service) = service {
            let file = keywords
                .get("servicefile")
                .or(environment.variable("PGSERVICEFILE"))
                .filter(|f| !f.is_empty());
            for (name, value) in service::look_up(service, file, environment)? {
                keywords.0.entry(keywords::checked(&name, &value)?.name).or_insert(value);
            }
        }
        for keyword in keywords::KEYWORDS {
            if let Some(value) =
                environment.variable(keyword.variable).filter(|_| !keywords.0.contains_key(keyword.name))
            {
                keywords::checked(keyword.name, value)?;
                keywords.0.insert(keyword.name, value.to_owned());
            }
        }
        Ok(keywords)
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// The meaning of a value that must be one of a few.
    fn choice<T: Copy>(
        &self,
        name: &'static str,
        values: &[(&'static str, T)],
    ) -> Result<Option<T>, SettingsError> {
        let Some(value) = self.get(name) else { return Ok(None) };
        match values.iter().find(|(text, _)| *text == value) {
            Some((_, meaning)) => Ok(Some(*meaning)),
            None => Err(SettingsError::Value {
                keyword: name,
                value: value.to_owned(),
                expected: "a value that libpq knows",
            }),
        }
    }

    fn number(&self, name: &'static str) -> Result<Option<i32>, SettingsError> {
        let Some(value) = self.get(name) else { return Ok(None) };
        let number = value.trim().parse();
        number.map(Some).map_err(|_| SettingsError::Value {
            keyword: name,
            value: value.to_owned(),
            expected: "a whole number",
        })
    }

    /// A number of which only the positive ones mean something.
    fn positive(&self, name: &'static str) -> Result<Option<u32>, SettingsError> {
        Ok(self.number(name)?.and_then(|n| u32::try_from(n).ok()).filter(|&n| n > 0))
    }

    fn keepalive(&self) -> Result<Keepalive, SettingsError> {
        let seconds = |name| Ok(self.positive(name)?.map(|s| Duration::from_secs(u64::from(s))));
        Ok(Keepalive {
            off: self.number("keepalives")? == Some(0),
            idle: seconds("keepalives_idle")?,
            interval: seconds("keepalives_interval")?,
            count: self.positive("keepalives_count")?,
            user_timeout: self.positive("tcp_user_timeout")?,
        })
    }

    fn replication(&self) -> Result<Replication, SettingsError> {
        let Some(value) = self.get("replication") else { return Ok(Replication::Off) };
        match value.to_ascii_lowercase().as_str() {
            "database" => Ok(Replication::Database),
            "true" | "on" | "yes" | "1" => Ok(Replication::Physical),
            "false" | "off" | "no" | "0" => Ok(Replication::Off),
            _ => Err(SettingsError::Value {
                keyword: "replication",
                value: value.to_owned(),
                expected: "true, database or false",
            }),
        }
    }

    fn target(&self) -> Result<SessionTarget, SettingsError> {
        let target = self.choice(
            "target_session_attrs",
            &[
                ("any", SessionTarget::Any),
                ("read-write", SessionTarget::ReadWrite),
                ("read-only", SessionTarget::ReadOnly),
                ("primary", SessionTarget::Primary),
                ("standby", SessionTarget::Standby),
                ("prefer-standby", SessionTarget::PreferStandby),
            ],
        )?;
        Ok(target.unwrap_or(SessionTarget::Any))
    }
}

#[cfg(test)]
mod tests;
