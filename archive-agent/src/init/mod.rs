//! `archive-agent init`: makes or joins a repository, registers the cluster in it, and writes what the other programs need:
//! a configuration file, the lines for `postgresql.conf`, the SQL of a role.
//!
//! | module | owns |
//! |---|---|
//! | [`config`] | what the configuration file says, or has to |
//! | [`register`] | repositories and lineages |
//! | [`postgresql`] | what PostgreSQL has to be told |
//!
//! Everything it makes is created once, so running it again changes nothing and says so; a crash in the middle is mended by
//! running it again. The configuration file is written last.

mod config;
mod paths;
mod postgresql;
mod register;

use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use clap::Args;
use schemars::JsonSchema;
use serde::Serialize;
use walpoint_base::ClusterName;
use walpoint_pg::connect::{ConnInfo, Environment};
use walpoint_pg::control::ControlFile;
use walpoint_pg::server::Server;
use walpoint_runtime::args::{CommonArgs, repository_name};
use walpoint_runtime::exit::Failure;
use walpoint_runtime::{help, output, owner};
use walpoint_storage::object::RepositoryId;

use self::config::{Change, ConfigurationPlan};
use self::postgresql::Advice;
use self::register::RegisteredCluster;
use crate::check::report::{CheckReport, Grade, Line};
use crate::check::{inside, source};
use crate::key::args::SecretArgs;
use crate::wal::socket::check_place;

/// The heading of options about the cluster.
const CLUSTER: &str = "Cluster";
/// The heading of options about the cluster's place in the repositories.
const LINEAGE: &str = "Lineage";
/// The heading of options about a new repository.
const REPOSITORY: &str = "New repository";

const EXAMPLES: &[(&str, &str)] = &[
    (
        "Create a repository in a bucket, with credentials from the environment",
        "archive-agent init --repo s3://backups/prod --cluster main \\\n\
         --pgdata /var/lib/postgresql/17/main",
    ),
    (
        "Create an encrypted repository in a directory, with a new key file",
        "archive-agent init --repo /mnt/backup/walpoint --cluster main --encrypt \\\n\
         --pgdata /var/lib/postgresql/17/main",
    ),
    ("Register the cluster in each repository of the configuration", "archive-agent init"),
    ("Begin a new lineage after pg_upgrade", "archive-agent init --new-lineage --cluster main"),
];

/// Options of `init`.
#[derive(Debug, Clone, Args)]
#[command(after_long_help = help::examples(EXAMPLES))]
pub(crate) struct InitArgs {
    /// Archive the cluster in this data directory [default: pgdata of the configuration].
    #[arg(long, value_name = "DIR", help_heading = CLUSTER)]
    pub(crate) pgdata: Option<PathBuf>,
    /// Connect to PostgreSQL with this connection string or URI, without a password [default: libpq's].
    #[arg(long, value_name = "CONNINFO", help_heading = CLUSTER)]
    pub(crate) conninfo: Option<String>,
    /// Let archive-push reach the daemon at this socket [default: /run/walpoint/CLUSTER.push].
    #[arg(long, value_name = "SOCKET", help_heading = CLUSTER)]
    pub(crate) push_socket: Option<PathBuf>,
    /// Begin a new lineage, for a copy that will archive separately or for the same cluster after pg_upgrade.
    #[arg(long, help_heading = LINEAGE)]
    pub(crate) new_lineage: bool,
    /// Begin it even if walpoint.lineage binds the data directory to a lineage in which no other server's WAL was found.
    #[arg(long, requires = "new_lineage", help_heading = LINEAGE)]
    pub(crate) even_if_bound: bool,
    /// Replace this repository, which had to acknowledge WAL and is lost for good, with the one that was created in its place: recovery
    /// no longer waits for it. Can be repeated.
    #[arg(long, value_name = "ID", help_heading = LINEAGE)]
    pub(crate) lost_repo: Vec<RepositoryId>,
    /// Use this name for the repository in the configuration.
    #[arg(long, value_name = "NAME", default_value = "main", value_parser = repository_name, help_heading = REPOSITORY)]
    pub(crate) repo_name: String,
    /// Encrypt the repository, if this command creates it. Unless an option says otherwise, its key is a new file beside the configuration.
    #[arg(long, help_heading = REPOSITORY)]
    pub(crate) encrypt: bool,
    #[command(flatten)]
    pub(crate) secret: SecretArgs,
    #[command(flatten)]
    pub(crate) store: StoreArgs,
}

/// How a store is reached. Secrets are never arguments: they come from files, commands or the environment.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Store")]
pub(crate) struct StoreArgs {
    /// Reach an S3-compatible store, or an emulator, at this address.
    #[arg(long, value_name = "URL")]
    pub(crate) endpoint: Option<String>,
    /// Use this S3 region [default: us-east-1].
    #[arg(long, value_name = "REGION")]
    pub(crate) region: Option<String>,
    /// Put the bucket's name in the path of requests, not in the host name.
    #[arg(long)]
    pub(crate) path_style: bool,
    /// Accept an endpoint without TLS.
    #[arg(long)]
    pub(crate) allow_http: bool,
    /// Trust the certificates (PEM) in this file in addition to the system's.
    #[arg(long, value_name = "FILE")]
    pub(crate) ca_file: Option<String>,
    /// Use this access key ID, which is not a secret.
    #[arg(long, value_name = "ID")]
    pub(crate) access_key_id: Option<String>,
    /// Read the access key ID from this file.
    #[arg(long, value_name = "FILE")]
    pub(crate) access_key_id_file: Option<String>,
    /// Read the secret key from this file.
    #[arg(long, value_name = "FILE")]
    pub(crate) secret_access_key_file: Option<String>,
    /// Set any other key of the table [repository.NAME]. Can be repeated.
    #[arg(long = "store-option", value_name = "KEY=VALUE")]
    pub(crate) options: Vec<String>,
}

/// What `archive-agent init --json` prints.
#[derive(Debug, Serialize, JsonSchema)]
struct InitDocument<'a> {
    /// The cluster.
    cluster: &'a ClusterName,
    /// The configuration file.
    config_file: String,
    /// What was done with the configuration file.
    config_change: Change,
    /// What you must add to the configuration by hand. Absent if there is nothing to add.
    #[serde(skip_serializing_if = "Option::is_none")]
    manual_changes: Option<&'a str>,
    /// The cluster's repositories.
    repositories: &'a [RegisteredCluster],
    /// The settings for `postgresql.conf`.
    settings: &'a [postgresql::ServerSetting],
    /// SQL that creates a role with no more rights than Walpoint needs.
    role_sql: &'a str,
    /// Checks that failed or have a warning.
    checks: Vec<&'a Line>,
}

walpoint_runtime::document!(InitDocument<'_>, "archive-agent init");

/// What everybody has to know who encrypts.
const KEEP_THE_KEY: &str = "
KEEP A COPY OF WHAT OPENS THE REPOSITORY in a place that survives the loss of this machine and of the repository. Without
it, nothing in the repository can ever be restored. To add a second key or passphrase, run archive-agent key add. Every
machine that restores needs one of them.
";

/// Runs the command.
pub(crate) async fn run(common: &CommonArgs, args: &InitArgs) -> Result<(), Failure> {
    no_password(args.conninfo.as_deref())?;
    let plan = config::plan(common, args)?;
    let pgdata = plan.pgdata()?.to_owned();
    owner::require(&pgdata)?;
    if let Some(socket) = plan.settings.push_socket.as_deref() {
        check_place(socket, rustix::process::geteuid().as_raw()).map_err(Failure::usage)?;
    }
    let (_, control) = source::read_control(&pgdata)?;
    let mut report = CheckReport::default();
    let mut server = server(&mut report, &plan, &control).await?;
    for directory in plan.directories() {
        apart(&directory, &pgdata)?;
        // A new lineage makes no repository: what is not there is not mounted.
        if !args.new_lineage {
            config::make_directory(&directory)?;
        }
    }
    let (registered, refused) = register::register(&mut report, &plan, &control, args).await?;
    let change = plan.write()?;
    let advice = Advice::new(&mut report, &plan, &control, server.as_mut()).await?;
    tell(common, &plan, &registered, change, &advice, &report)?;
    if let Some(refused) = refused {
        return Err(anyhow!("no repository took the place of a lost one: {refused}").into());
    }
    match &plan.by_hand {
        None => Ok(()),
        Some(_) => Err(anyhow!(
            "{} has different settings for this cluster or repository and was not changed\nHINT: Change \
             it as shown, then run this again.",
            plan.path.display()
        )
        .into()),
    }
}

/// Refuses a repository that lies in the data directory, or around it.
fn apart(directory: &Path, pgdata: &Path) -> Result<(), Failure> {
    let (shown, data) = (directory.display(), pgdata.display());
    if inside(directory, pgdata) {
        return Err(Failure::usage(anyhow!(
            "the repository {shown} would lie inside the data directory {data}, be part of its own backups and be \
             lost with it"
        )));
    }
    if inside(pgdata, directory) {
        return Err(Failure::usage(anyhow!(
            "the repository {shown} would contain the data directory {data}, and be lost with it\nHINT: Choose another \
             directory, preferably on another machine."
        )));
    }
    Ok(())
}

/// A password in the configuration would be a secret in a file that is not meant to hold one, and one on a command line is
/// everybody's.
fn no_password(conninfo: Option<&str>) -> Result<(), Failure> {
    let Some(text) = conninfo else { return Ok(()) };
    let environment = Environment::empty().with_os_user("walpoint");
    let info = ConnInfo::parse_in(text, &environment).context("--conninfo").map_err(Failure::usage)?;
    match info.has_password() {
        false => Ok(()),
        true => Err(Failure::usage(anyhow!(
            "--conninfo holds a password\nHINT: Put it into a password file (~/.pgpass, or passfile=… in the connection \
             string)."
        ))),
    }
}

/// Variables of libpq that lead to another server than the one of this machine's standard port.
const PLACES: [&str; 4] = ["PGHOST", "PGHOSTADDR", "PGPORT", "PGSERVICE"];

/// A session, if the server runs. One on another cluster is an error; none at all is not.
async fn server(
    report: &mut CheckReport,
    plan: &ConfigurationPlan,
    control: &ControlFile,
) -> Result<Option<Server>, Failure> {
    let pgdata = plan.pgdata()?;
    let connected = source::connect(&plan.settings).await;
    let mut server = match connected {
        Ok(server) => server,
        Err(error) => {
            let found = walpoint_words::format_chain(&error);
            report.warning(
                "connection",
                found,
                "Set conninfo in the configuration: archiving needs no connection, a backup does.",
            );
            return Ok(None);
        }
    };
    let of_this_shell: Vec<&str> = match plan.settings.conninfo {
        Some(_) => Vec::new(),
        None => PLACES.into_iter().filter(|name| std::env::var_os(name).is_some()).collect(),
    };
    if !of_this_shell.is_empty() {
        report.warning(
            "connection",
            format!(
                "made with {} of this environment, which a daemon or a timer does not have",
                of_this_shell.join(", ")
            ),
            "Name the server with --conninfo, or with conninfo in the configuration.",
        );
    }
    match server.identity().await {
        Ok(identity) => source::same_cluster(&mut server, &identity, pgdata, control).await?,
        Err(error) => {
            report.warning(
                "connection",
                error.to_string(),
                "Run the SQL at the end: it gives a role the rights that Walpoint needs.",
            );
            return Ok(Some(server));
        }
    }
    Ok(Some(server))
}

fn tell(
    common: &CommonArgs,
    plan: &ConfigurationPlan,
    registered: &[RegisteredCluster],
    change: Change,
    advice: &Advice,
    report: &CheckReport,
) -> Result<(), Failure> {
    if common.json {
        return output::json(&InitDocument {
            cluster: &plan.cluster,
            config_file: plan.path.display().to_string(),
            config_change: change,
            manual_changes: plan.by_hand.as_deref(),
            repositories: registered,
            settings: &advice.settings,
            role_sql: &advice.role_sql,
            checks: report.lines().iter().filter(|line| line.grade != Grade::Ok).collect(),
        });
    }
    let mut text = String::new();
    for one in registered {
        let (made, begun) = (made(one.repository_created), made(one.lineage_created));
        text += &format!("repository {}: {} in {}, {}\n", one.repository, made, one.url, one.repository_id);
        text += &format!("lineage {} of cluster {}: {begun}\n", one.lineage, plan.cluster);
        if let (Some(slot), Some(with)) = (one.key_slot, &one.secret_source) {
            text += &format!("encrypted: key slot {slot} opens with the {with}\n");
        }
    }
    text += &format!("configuration {}: {}\n", plan.path.display(), change.name());
    if let Some(by_hand) = &plan.by_hand {
        text += &format!("\nChange this by hand in that file:\n\n{}\n", indented(by_hand));
    }
    if registered.iter().any(|one| one.key_slot.is_some()) {
        text += KEEP_THE_KEY;
    }
    let notes = report.diagnostics(Grade::Warning);
    if !notes.is_empty() {
        let notes: Vec<String> = notes.iter().map(ToString::to_string).collect();
        text += &format!("\nTo be looked at:\n\n{}", indented(&notes.join("\n")));
    }
    if plan.by_hand.is_some() {
        // What follows would be for the configuration as it is, which is another one than was asked for.
        return output::text(&text);
    }
    text += "\nFor postgresql.conf:\n\n";
    for setting in &advice.settings {
        text += &format!("    {}\n", setting.line());
    }
    text += &format!("\n{}\n", advice.next_step());
    text += match change {
        Change::Written => {
            "Then start the daemon (archive-agent run) and test everything: archive-agent check\n"
        }
        _ => {
            "Then start the daemon (archive-agent run). If it runs already, reload it (systemctl reload archive-agent, or \
             SIGHUP): until then, it archives by the configuration that it read before. Test everything: archive-agent check\n"
        }
    };
    text += &format!(
        "\nTo connect with only the rights that Walpoint needs, create this role and name it in conninfo:\n\n{}",
        indented(&advice.role_sql)
    );
    output::text(&text)
}

fn made(created: bool) -> &'static str {
    if created { "created" } else { "already there" }
}

fn indented(text: &str) -> String {
    text.lines().map(|line| format!("    {line}").trim_end().to_owned() + "\n").collect()
}
