//! The server that is loaded into: how it is reached, and what is looked at before anything is restored.

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use std::os::unix::process::CommandExt;

use anyhow::{Context, bail};
use walpoint_base::diagnostic::shown;
use walpoint_base::{Diagnostic, PgMajor};
use walpoint_pg::connect::{ConnInfo, Connection, Environment, Host};

use super::super::sql;
use super::options::PassedOn;
use crate::scratch::CLUSTER_NAME;

/// How long a statement on the server may take: all are short.
const LIMIT: Duration = Duration::from_secs(60);

/// The first version of which a server knows `transaction_timeout`, which pg_restore sets from the same version on.
const TRANSACTION_TIMEOUT: u8 = 17;

const FACTS: &str = "SELECT pg_catalog.current_setting('server_version_num')::int / 10000 AS major, \
     pg_catalog.pg_is_in_recovery() AS in_recovery, \
     pg_catalog.current_setting('default_transaction_read_only')::bool AS read_only, \
     pg_catalog.current_setting('cluster_name') AS cluster_name, \
     CURRENT_USER AS role, \
     (SELECT r.rolsuper FROM pg_catalog.pg_roles r WHERE r.rolname = CURRENT_USER) AS superuser, \
     pg_catalog.has_database_privilege(pg_catalog.current_database(), 'CREATE') AS may_create, \
     (SELECT pg_catalog.string_agg(p.pubname::text, ', ' ORDER BY p.pubname) FROM pg_catalog.pg_publication p WHERE p.puballtables) \
     AS published";

/// A server that is loaded into.
#[derive(Debug, Clone)]
pub(super) struct TargetServer {
    /// As it was given, or what leads to one of the servers that were given.
    text: String,
    info: ConnInfo,
}

/// What the server says of itself.
#[derive(Debug, Clone)]
pub(super) struct TargetFacts {
    /// The major version.
    pub(super) major: u16,
    /// The role that loads.
    pub(super) role: String,
    /// Whether it is a superuser.
    pub(super) is_superuser: bool,
    /// Publications that publish whatever is created, in a list.
    published: Option<String>,
    in_recovery: bool,
    read_only: bool,
    may_create: bool,
}

impl TargetServer {
    /// Reads how it is reached. Nothing is tried.
    pub(super) fn read(text: &str) -> anyhow::Result<Self> {
        let alone = Environment::empty().with_os_user("walpoint");
        if ConnInfo::parse_in(text, &alone).is_ok_and(|info| info.has_password()) {
            bail!(
                "--into: every user of this machine can read a password on a command line\nHINT: Leave it out, and set PGPASSWORD or \
                 use a password file, as with psql."
            );
        }
        let info = ConnInfo::parse(text).context("--into")?;
        Ok(Self { text: text.to_owned(), info })
    }

    /// The one of the servers at which a session is. What loads must not choose anew among several hosts, or addresses of a name: another
    /// server was not looked at, and could have no answer to what became of the load.
    pub(super) fn pinned(&self, host: &Host) -> anyhow::Result<Self> {
        let text = ConnInfo::text_at(&self.text, host).context("--into")?;
        Ok(Self { text, info: self.info.clone().at(host.clone()) })
    }

    /// The server, the role and the database, without secrets.
    pub(super) fn name(&self) -> String {
        shown(&self.info.to_string())
    }

    /// The database.
    pub(super) fn database(&self) -> &str {
        self.info.database()
    }

    /// Opens a session.
    pub(super) async fn connect(&self) -> anyhow::Result<Connection> {
        let mut connection = Connection::open(&self.info).await.context("--into")?;
        connection.set_limit(Some(LIMIT));
        Ok(connection)
    }

    /// What the server says of itself. A scratch instance is no server to load into.
    pub(super) async fn facts(&self, connection: &mut Connection) -> anyhow::Result<TargetFacts> {
        let row = connection.query(FACTS).await?.one()?;
        let cluster_name: String = row.get("cluster_name")?;
        if cluster_name == CLUSTER_NAME {
            bail!(
                "--into: the server at {} is a scratch instance, which is thrown away\nHINT: Name the server that is to have the tables.",
                self.name()
            );
        }
        Ok(TargetFacts {
            major: row.get("major")?,
            role: row.get("role")?,
            is_superuser: row.get("superuser")?,
            published: row.nullable("published")?,
            in_recovery: row.get("in_recovery")?,
            read_only: row.get("read_only")?,
            may_create: row.get("may_create")?,
        })
    }

    /// A client program that connects to it as this process does: as its user, with its environment and password file.
    pub(super) fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(OsStr::new(program));
        command.current_dir("/").env("LC_ALL", "C").process_group(0).stdin(Stdio::piped());
        command.arg("--no-password").arg(format!("--dbname={}", self.text));
        command
    }
}

impl TargetFacts {
    /// Fails if nothing can be loaded there.
    pub(super) fn require_writable(&self, server: &TargetServer) -> anyhow::Result<()> {
        let name = server.name();
        if self.in_recovery {
            bail!(
                "--into: the server at {name} is in recovery: nothing can be loaded into a standby\nHINT: Name its primary."
            );
        }
        if self.read_only {
            bail!(
                "--into: sessions at {name} are read-only\nDETAIL: default_transaction_read_only is on for this server, database or \
                 role.\nHINT: Name another role or database, or reset the setting."
            );
        }
        Ok(())
    }

    /// Fails if pg_restore of a version fails on a server of this one. What a person should know of the versions else.
    pub(super) fn require_version(
        &self,
        server: &TargetServer,
        client: u8,
        cluster: PgMajor,
    ) -> anyhow::Result<Option<String>> {
        let (name, major) = (server.name(), self.major);
        if client >= TRANSACTION_TIMEOUT && major < u16::from(TRANSACTION_TIMEOUT) {
            let older = TRANSACTION_TIMEOUT - 1;
            let hint = match cluster.get() <= older {
                true => format!(
                    "Name a directory of programs of PostgreSQL {cluster} to {older} with --client-bindir."
                ),
                false => "Write a script with --output instead, and adapt it to that server.".to_owned(),
            };
            bail!(
                "--into: pg_restore of PostgreSQL {client} cannot load into the server at {name}, which is PostgreSQL {major}\nDETAIL: \
                 It sets transaction_timeout, which servers know from version {TRANSACTION_TIMEOUT} on.\nHINT: {hint}"
            );
        }
        let is_older = major < u16::from(cluster.get());
        Ok(is_older.then(|| {
            format!(
                "the server at {name} is PostgreSQL {major}, older than the cluster's {cluster}: it may refuse what it does not know, \
                 and then nothing is loaded"
            )
        }))
    }

    /// A warning about owners that a role which is no superuser cannot restore. Whose the objects are is seen only after the recovery.
    pub(super) fn owners_warning(&self, passed_on: &PassedOn) -> Option<String> {
        let role = shown(&self.role);
        (!self.is_superuser && !passed_on.has(&["no-owner"])).then(|| {
            format!(
                "role \"{role}\" is no superuser: unless everything that is extracted belongs to \"{role}\", the load will be refused\n\
                 HINT: Load everything as objects of \"{role}\": -- --no-owner."
            )
        })
    }

    /// A warning about publications to which the new tables will belong.
    pub(super) fn published_warning(&self) -> Option<String> {
        let published = shown(self.published.as_ref()?);
        Some(format!(
            "publications of all tables publish the new tables, too, and a subscriber that lacks them stops: {published}"
        ))
    }

    /// Fails if the role may not create a schema, or there is one of that name.
    pub(super) async fn require_free_schema(
        &self,
        server: &TargetServer,
        connection: &mut Connection,
        schema: &str,
    ) -> anyhow::Result<()> {
        let (name, database) = (server.name(), shown(server.database()));
        if !self.may_create {
            return Err(Diagnostic::new(format!(
                "--into: role \"{}\" may not create a schema at {name}",
                shown(&self.role)
            ))
            .hint(format!(
                "Grant it there: GRANT CREATE ON DATABASE \"{database}\" TO \"{}\".",
                shown(&self.role)
            ))
            .into());
        }
        let exists = format!(
            "SELECT EXISTS (SELECT FROM pg_catalog.pg_namespace WHERE nspname = {}) AS taken",
            sql::literal(schema)
        );
        match connection.query(&exists).await?.one()?.get("taken")? {
            false => Ok(()),
            true => bail!(
                "--into: database \"{database}\" at {name} has a schema \"{}\" already: nothing was changed\nHINT: Choose another name \
                 with --into-schema.",
                shown(schema)
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use walpoint_pg::connect::{ServerAddress, SslMode};

    use super::*;

    fn facts(major: u16) -> TargetFacts {
        TargetFacts {
            major,
            role: "app".to_owned(),
            is_superuser: false,
            published: None,
            in_recovery: false,
            read_only: false,
            may_create: true,
        }
    }

    #[test]
    fn a_password_on_the_command_line_is_refused_and_never_shown() {
        for text in [
            "host=db1 password=geheim",
            "postgresql://app:geheim@db1/shop",
            "postgresql://db1/?password=geheim",
        ] {
            let why = format!("{:#}", TargetServer::read(text).unwrap_err());
            assert!(why.contains("PGPASSWORD") && !why.contains("geheim"), "{why}");
        }
        let why = format!("{:#}", TargetServer::read("host=db1 passwrod=geheim").unwrap_err());
        assert!(why.contains("passwrod") && !why.contains("geheim"), "{why}");
        let server = TargetServer::read("postgresql://app@db1:5433/shop").unwrap();
        assert_eq!((server.name().as_str(), server.database()), ("app@db1:5433/shop", "shop"));
    }

    #[test]
    fn what_loads_is_led_to_the_server_that_was_looked_at() {
        let place =
            ServerAddress::Network { name: "db2".to_owned(), address: Some("10.0.0.2".parse().unwrap()) };
        let host = Host { place, port: 5434 };
        for text in [
            "host=db1,db2 port=5433,5434 dbname=shop user=app sslmode=require",
            "postgresql://app@db1:5433,db2:5434/shop?sslmode=require",
        ] {
            let pinned = TargetServer::read(text).unwrap().pinned(&host).unwrap();
            assert_eq!(pinned.name(), "app@db2 (10.0.0.2):5434/shop");
            let command = pinned.command(Path::new("pg_restore"));
            let arguments: Vec<_> = command.get_args().map(|one| one.to_str().unwrap()).collect();
            let [_, dbname] = arguments[..] else { panic!("{arguments:?}") };
            let led = ConnInfo::parse(dbname.strip_prefix("--dbname=").unwrap()).unwrap();
            assert_eq!((led.hosts(), led.user(), led.database()), (&[host.clone()][..], "app", "shop"));
            assert_eq!(led.ssl_mode(), SslMode::Require);
        }
    }

    #[test]
    fn owners_are_kept_without_a_warning_only_for_a_superuser() {
        let (kept, left_out) = (PassedOn::default(), PassedOn::read(&["--no-owner".into()]).unwrap());
        let warned = facts(17).owners_warning(&kept).unwrap();
        assert!(warned.contains("belongs to \"app\"") && warned.contains("-- --no-owner"), "{warned}");
        assert_eq!(facts(17).owners_warning(&left_out), None);
        assert_eq!(TargetFacts { is_superuser: true, ..facts(17) }.owners_warning(&kept), None);
    }

    #[test]
    fn a_client_that_the_server_does_not_understand_is_refused() {
        let server = TargetServer::read("host=db1 user=app dbname=shop").unwrap();
        let major = |major| PgMajor::new(major).unwrap();
        for (target, client, cluster, expected) in [
            (17, 17, 17, None),
            (19, 17, 17, None),
            (13, 16, 13, None),
            (16, 17, 16, Some("programs of PostgreSQL 16 to 16")),
            (16, 17, 17, Some("a script with --output")),
        ] {
            let outcome =
                facts(target).require_version(&server, client, major(cluster)).map_err(|e| e.to_string());
            match expected {
                None => assert_eq!(outcome, Ok(None), "{target} {client} {cluster}"),
                Some(hint) => assert!(outcome.as_ref().is_err_and(|why| why.contains(hint)), "{outcome:?}"),
            }
        }
        let warned = facts(15).require_version(&server, 16, major(16)).unwrap().unwrap();
        assert!(warned.contains("PostgreSQL 15, older than the cluster's 16"), "{warned}");
        let standby = TargetFacts { in_recovery: true, ..facts(17) }.require_writable(&server).unwrap_err();
        assert!(standby.to_string().contains("in recovery") && facts(17).require_writable(&server).is_ok());
    }
}
