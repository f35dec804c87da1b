//! The command `extract`: a table, a schema, a database or the rows of a query as they were at a moment of the past.
//!
//! | module | owns |
//! |---|---|
//! | [`destination`] | the output, which has its name only once it is complete |
//! | [`passed_on`] | options of pg_dump that a person passes on, and those that would lead it elsewhere |
//! | [`client`], [`pg_dump`], [`query`] | running PostgreSQL's client programs on the instance |
//! | [`written`] | a dump into the output |
//! | [`rows`] | whether what patterns select comes with its rows |
//! | [`selection`], [`pipe`] | which objects patterns select, by pg_dump's reading; pg_dump into pg_restore |
//! | [`names`], [`sql`] | names in messages and in SQL |
//! | [`contents`], [`similar`] | what a moment holds, and what a pattern that matches nothing may have meant |
//! | [`into`] | loading it straight into a running server |
//! | [`done`], [`document`], [`text`] | what was done, and its report: as JSON, and what a moment holds, for a person |
//! | [`recorded`] | what was done, as evidence |
//! | [`rehearsal`] | an extraction that a drill makes, whose output is thrown away |
//!
//! The cluster is restored into a scratch instance ([`crate::scratch`]), which is removed whatever comes of it; a kill leaves it to the next
//! run in the same place. What can be refused is refused before that. Standard output has nothing but what was asked for. Where recovery is
//! paused and a transaction holds a lock, as right before a `DROP`, the instance ends recovery: that rolls the transaction back, so the same
//! rows are seen, and nothing waits.

mod client;
mod contents;
mod destination;
mod document;
mod done;
mod into;
mod names;
mod passed_on;
mod pg_dump;
mod pipe;
mod query;
mod recorded;
mod rehearsal;
mod rows;
mod selection;
mod similar;
mod sql;
mod text;
mod written;

use std::ffi::OsString;
use std::future::Future;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use clap::Args;
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;
use walpoint_base::diagnostic::shown;
use walpoint_plan::restore::Note;
use walpoint_runtime::args::CommonArgs;
use walpoint_runtime::exit::Failure;
use walpoint_runtime::{help, human, shutdown};

use self::destination::Destination;
use self::document::{Costs, ExtractReport, Extracted, ListReport, Listed, LoadReport, Loaded};
use self::done::Done;
use self::into::{IntoArgs, Load, ProvenLoad};
use self::passed_on::Shape;
use self::pg_dump::Dump;
use self::query::{CopyFormat, Query};
pub(crate) use self::rehearsal::Rehearsal;
use self::written::WrittenDump;
use crate::plan::{self, CommandLine, Planned};
use crate::scratch::{Moment, OpenMoment, SCRATCH, ScratchArgs, ScratchRequest, ScratchRestore};
use crate::server::{Instance, Reached, ServerUser};
use crate::target::TargetArgs;

/// The heading of what is extracted.
const WHAT: &str = "What to extract";
/// The heading of where it goes.
const OUTPUT: &str = "Output";
/// No heading.
const NONE: Option<&str> = None;

/// How long a look at the locks may take.
const LOOKING: Duration = Duration::from_secs(60);

/// What would hold up a reader.
const LOCKED: &str = "SELECT EXISTS (SELECT 1 FROM pg_catalog.pg_locks \
     WHERE granted AND locktype = 'relation' AND mode = 'AccessExclusiveLock') AS locked";

const EXAMPLES: &[(&str, &str)] = &[
    (
        "Get back a table as it was before it was dropped",
        "restore-agent extract --target-time \"2026-11-21 10:14:59+01\" \\\n          --database shop --table accounts --output accounts.sql",
    ),
    ("List what the databases held then", "restore-agent extract --list --target-time \"1 hour ago\""),
    (
        "Write the rows of a query",
        "restore-agent extract --target-time \"1 hour ago\" --database shop \\\n          --query \"select * from accounts where id = 7\" --output rows.csv",
    ),
    (
        "Put a table beside the one in production, into a schema of another name",
        "restore-agent extract --target-time \"1 hour ago\" --database shop --table accounts \\\n          --into \"host=db1 dbname=shop\" --into-schema before",
    ),
    (
        "Pass options on to pg_dump",
        "restore-agent extract --database shop --output shop.dump \\\n          -- --format=custom --no-owner",
    ),
];

/// Options of `extract`.
#[derive(Debug, Clone, Default, Args)]
#[command(after_long_help = help::examples(EXAMPLES))]
pub(crate) struct ExtractArgs {
    /// Extract from this database.
    #[arg(long, value_name = "DATABASE", required_unless_present = "list", help_heading = WHAT)]
    database: Option<String>,
    /// Extract only tables that match this pattern of pg_dump, in which names with capitals or special characters are in double quotes.
    /// Can be repeated [default: everything in the database].
    #[arg(long = "table", value_name = "PATTERN", help_heading = WHAT)]
    tables: Vec<String>,
    /// Extract only schemas that match this pattern of pg_dump. Can be repeated.
    #[arg(long = "schema", value_name = "PATTERN", help_heading = WHAT)]
    schemas: Vec<String>,
    /// Extract the rows of this query instead, in a read-only transaction.
    #[arg(long, value_name = "SQL", conflicts_with_all = ["tables", "schemas"], help_heading = WHAT)]
    query: Option<String>,
    /// List the databases instead; with --database, its schemas and tables, too.
    #[arg(long, conflicts_with_all = ["tables", "schemas", "query", "output", "force"], help_heading = WHAT)]
    list: bool,
    /// Write to this file, which must be new [default: standard output].
    #[arg(long, value_name = "FILE", help_heading = OUTPUT)]
    output: Option<PathBuf>,
    /// Replace the file if it exists.
    #[arg(long, requires = "output", help_heading = OUTPUT)]
    force: bool,
    /// Write the rows of --query in this format [default: csv].
    #[arg(long, value_name = "FORMAT", requires = "query", help_heading = OUTPUT)]
    format: Option<CopyFormat>,
    #[command(flatten)]
    into: IntoArgs,
    #[command(flatten)]
    target: TargetArgs,
    #[command(flatten)]
    scratch: ScratchArgs,
    /// Run pg_dump or psql in this directory [default: that of the server's programs].
    #[arg(long, value_name = "DIR", help_heading = SCRATCH)]
    client_bindir: Option<PathBuf>,
    /// Read with the rights of this role [default: the superuser's].
    #[arg(long, value_name = "ROLE", help_heading = SCRATCH)]
    role: Option<String>,
    /// Pass these options on to pg_dump, such as --schema-only, --exclude-table=PATTERN or --format=custom.
    #[arg(last = true, value_name = "PG_DUMP OPTIONS", conflicts_with_all = ["query", "list"], help_heading = NONE)]
    passed_on: Vec<OsString>,
}

/// An extraction under way.
struct Extraction<'a> {
    common: &'a CommonArgs,
    args: &'a ExtractArgs,
    load: Option<&'a Load>,
    began: Instant,
}

/// What is run on the instance.
enum Work<'a> {
    List,
    Dump(WrittenDump<'a>),
    Query(Query<'a>),
    Load(ProvenLoad<'a>),
}

/// A moment that is open, and what is run there.
struct Opened<'a> {
    work: Work<'a>,
    instance: Instance,
    moment: Moment,
    notes: Vec<String>,
}

impl Work<'_> {
    /// Fails if what is written would lack all rows of a table. What a person should know of the rows.
    async fn look(&self, instance: &Instance, user: &ServerUser) -> anyhow::Result<Vec<String>> {
        match self {
            Self::Dump(dump) => dump.look(instance, user).await,
            // Of what is loaded, more is looked at.
            Self::List | Self::Query(_) | Self::Load(_) => Ok(Vec::new()),
        }
    }

    /// Writes what is extracted; nothing of a list, nor of what is loaded into a server.
    async fn run(
        &self,
        destination: &Destination,
        instance: &Instance,
        user: &ServerUser,
    ) -> anyhow::Result<()> {
        match self {
            Self::List | Self::Load(_) => Ok(()),
            Self::Dump(dump) => dump.run(destination, instance, user).await,
            Self::Query(query) => query.run(destination, instance, user).await,
        }
    }
}

/// Runs the command.
pub(crate) async fn run(common: &CommonArgs, args: &ExtractArgs) -> Result<(), Failure> {
    let (began, started) = (Instant::now(), Timestamp::now());
    let load = Load::read(args, started).map_err(Failure::usage)?;
    let shape = usage(common, args, load.is_some()).map_err(Failure::usage)?;
    let request = args.scratch.request(&args.target, started)?;
    let request = ScratchRequest { role: args.role.clone(), ..request };
    let destination = Destination::prepare(args.output.as_deref(), shape, args.force)?;
    let extraction = Extraction { common, args, load: load.as_ref(), began };
    let interrupted = shutdown::on_signal()?;
    let mut scratch = ScratchRestore::new(common, request);
    let planned = match unless(&interrupted, scratch.plan()).await {
        Some(Ok(planned)) => planned,
        Some(Err(no_plan)) if args.list || load.is_some() || destination.path().is_some() => {
            return Err(plan::refused(common, no_plan));
        }
        // Standard output is for the rows.
        Some(Err(no_plan)) => return Err(plan::refused_to(common, no_plan, beside)),
        None => return Err(stopped()),
    };
    let ended = Box::pin(extraction.carry_out(&mut scratch, planned, destination, &interrupted)).await;
    let took = began.elapsed();
    let printed = match &ended {
        Some(Ok(done)) => done.print(common),
        _ => Ok(()),
    };
    let closed = scratch.close().await;
    if let (Some(ended), Some(restored), false) = (&ended, scratch.restored(), args.list) {
        let into = match ended {
            Ok(Done::Loaded(report)) => Some(report.place()),
            _ => load.as_ref().map(Load::place),
        };
        recorded::ended(common, args, into.as_deref(), &restored.planned, (ended, took)).await;
    }
    match ended.unwrap_or_else(|| Err(stopped())) {
        Ok(_) => {
            closed.context("everything was extracted, and the scratch instance could not be removed")?;
            printed
        }
        Err(failure) => {
            if let Err(left) = closed {
                tracing::warn!("{}", walpoint_words::format_chain(&left));
            }
            Err(failure)
        }
    }
}

fn stopped() -> Failure {
    anyhow!("the extraction was interrupted").into()
}

/// Work that an interruption ends: `None` then. What is done is done, also if both come at once.
async fn unless<T>(interrupted: &CancellationToken, work: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        biased;
        done = work => Some(done),
        () = interrupted.cancelled() => None,
    }
}

/// Looks at what is asked for: what kind of output it has.
fn usage(common: &CommonArgs, args: &ExtractArgs, is_load: bool) -> anyhow::Result<Shape> {
    if is_load {
        return Ok(Shape::File);
    }
    if common.json && !args.list && args.output.is_none() {
        bail!(
            "--json prints a report where the rows would go\nHINT: Name a file for the rows with --output."
        );
    }
    if args.query.as_deref().is_some_and(|sql| query::statement(sql).is_empty()) {
        bail!("--query: the query is empty");
    }
    let shape = passed_on::read(&args.passed_on)?.shape;
    if shape == Shape::Directory && args.output.is_none() {
        bail!("a dump in the format \"directory\" needs --output");
    }
    Ok(shape)
}

/// Prints beside the log, where standard output is for something else.
fn beside(text: &str) -> Result<(), Failure> {
    // A person who has closed it does not read it.
    std::io::stderr().lock().write_all(text.as_bytes()).ok();
    Ok(())
}

impl<'a> Extraction<'a> {
    /// Does what is asked for. `None`: it was interrupted, and nothing of it was done.
    async fn carry_out(
        &self,
        scratch: &mut ScratchRestore<'_>,
        planned: Planned,
        destination: Destination,
        interrupted: &CancellationToken,
    ) -> Option<Result<Done, Failure>> {
        let opened = match unless(interrupted, Box::pin(self.open(scratch, planned, &destination))).await? {
            Ok(opened) => opened,
            Err(failure) => return Some(Err(failure)),
        };
        match &opened.work {
            Work::List => unless(interrupted, Box::pin(self.list(opened))).await,
            Work::Dump(_) | Work::Query(_) => {
                unless(interrupted, Box::pin(self.write(scratch, opened, destination))).await
            }
            Work::Load(load) => Box::pin(self.load(scratch, load, &opened, interrupted)).await,
        }
    }

    /// Opens the instance.
    async fn open(
        &self,
        scratch: &mut ScratchRestore<'_>,
        planned: Planned,
        destination: &Destination,
    ) -> Result<Opened<'a>, Failure> {
        let work = self.prove(scratch, &planned, destination).await?;
        let instance = scratch.open(planned).await?;
        let planned = scratch.restored().context("nothing was restored")?.planned.clone();
        if let Reached::Elsewhere(where_it_ended) = &instance.reached {
            return Err(anyhow!("{where_it_ended}: nothing was extracted").into());
        }
        let moment = Moment::of(&planned, &instance);
        tracing::info!("reached {moment}");
        let notes = notes(planned, scratch, release(&instance).await?);
        if !self.common.json && !self.args.list {
            notes.iter().for_each(|note| tracing::info!("{note}"));
        }
        if let Some(database) = &self.args.database {
            require_database(&instance, database).await?;
        }
        Ok(Opened { work, instance, moment, notes })
    }

    /// Finds the client program and proves that it takes its options, before anything is restored.
    async fn prove(
        &self,
        scratch: &mut ScratchRestore<'_>,
        planned: &Planned,
        destination: &Destination,
    ) -> Result<Work<'a>, Failure> {
        let Some(database) = self.args.database.as_deref().filter(|_| !self.args.list) else {
            return Ok(Work::List);
        };
        let programs = scratch.find_programs(planned).await?;
        let client = |name: &str| {
            let given = self.args.client_bindir.as_deref();
            let found = programs.client(name, given, planned.lineage.major, scratch.user());
            found.context("nothing was restored")
        };
        if let Some(sql) = &self.args.query {
            let (program, format) = (client(query::PROGRAM)?, self.args.format.unwrap_or_default());
            return Ok(Work::Query(Query { program, database, sql, format }));
        }
        if let Some(load) = self.load {
            let (programs, user) = (into::programs(client)?, scratch.user());
            return Ok(Work::Load(load.prove(self.args, programs, planned.lineage.major, user).await?));
        }
        let (tables, schemas) = (&self.args.tables[..], &self.args.schemas[..]);
        let (program, passed_on) = (client(pg_dump::PROGRAM)?, &self.args.passed_on[..]);
        let options = passed_on::read(passed_on).map_err(Failure::usage)?;
        let is_all = tables.is_empty() && schemas.is_empty() && options.selecting.is_empty();
        let pg_restore = if is_all { None } else { Some(client(pipe::LOADER)?) };
        let dump = Dump { program, database, tables, schemas, passed_on };
        dump.prove(destination, scratch.user()).await.map_err(Failure::usage)?;
        Ok(Work::Dump(WrittenDump { dump, pg_restore, options }))
    }

    /// Loads into a server. `None`: it was interrupted before.
    async fn load(
        &self,
        scratch: &ScratchRestore<'_>,
        load: &ProvenLoad<'_>,
        opened: &Opened<'_>,
        interrupted: &CancellationToken,
    ) -> Option<Result<Done, Failure>> {
        let (instance, user, moment) = (&opened.instance, scratch.user(), &opened.moment);
        let notes = match unless(interrupted, Box::pin(load.prepare(instance, user, moment))).await? {
            Ok(notes) => notes,
            Err(error) => return Some(Err(error.into())),
        };
        let loaded = match load.run(instance, user, moment, interrupted).await {
            Ok(loaded) => loaded,
            Err(error) => return Some(Err(error.into())),
        };
        tracing::info!("{} in {}", loaded.sentence(), human::span(self.began.elapsed()));
        Some(Ok(Done::Loaded(LoadReport {
            result: Loaded::Loaded,
            moment: moment.clone(),
            database: self.args.database.clone().unwrap_or_default(),
            into_server: loaded.server,
            into_database: loaded.database,
            into_schema: loaded.schema,
            table_count: loaded.table_count,
            costs: self.costs(scratch, [&opened.notes[..], &notes, &loaded.notes].concat()),
        })))
    }

    /// What the moment holds.
    async fn list(&self, opened: Opened<'_>) -> Result<Done, Failure> {
        let Opened { instance, moment, notes, .. } = opened;
        let databases = contents::databases(&instance).await?;
        let held = match &self.args.database {
            Some(database) => Some(contents::of_database(&instance, database).await?),
            None => None,
        };
        let (schemas, tables) = held.map(|held| (held.schemas, held.tables)).unzip();
        let database = self.args.database.clone();
        let result = Listed::Listed;
        Ok(Done::Listed(ListReport { result, moment, databases, database, schemas, tables, notes }))
    }

    /// Writes the output, and gives it its name.
    async fn write(
        &self,
        scratch: &ScratchRestore<'_>,
        opened: Opened<'_>,
        destination: Destination,
    ) -> Result<Done, Failure> {
        let Opened { work, instance, moment, mut notes } = opened;
        let warnings = work.look(&instance, scratch.user()).await?;
        // Before the output, so that they are known if that fails, too.
        warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
        notes.extend(warnings);
        work.run(&destination, &instance, scratch.user()).await?;
        let path = destination.path().map(Path::to_owned);
        let size = destination.place()?;
        let (Some(path), Some(output_bytes)) = (path, size) else { return Ok(Done::Printed) };
        let (size, took) = (human::size(output_bytes), human::span(self.began.elapsed()));
        tracing::info!("wrote \"{}\" ({size}) in {took}", path.display());
        Ok(Done::Extracted(ExtractReport {
            result: Extracted::Extracted,
            moment,
            database: self.args.database.clone().unwrap_or_default(),
            output: path.display().to_string(),
            output_bytes,
            costs: self.costs(scratch, notes),
        }))
    }

    /// How long everything took so far, with what a person should know.
    fn costs(&self, scratch: &ScratchRestore<'_>, notes: Vec<String>) -> Costs {
        Costs {
            restore_seconds: scratch.spans().restore.as_secs_f64(),
            recovery_seconds: scratch.spans().recovery.as_secs_f64(),
            seconds: self.began.elapsed().as_secs_f64(),
            notes,
        }
    }
}

/// What a person should know. `was_released`: nothing is locked any more.
fn notes(mut planned: Planned, scratch: &ScratchRestore<'_>, was_released: bool) -> Vec<String> {
    planned.plan.notes.retain(|note| !(was_released && matches!(note, Note::Locked(_))));
    let mut notes = planned.notes(&CommandLine::given());
    notes.extend(scratch.notes().iter().cloned());
    notes
}

/// Ends recovery where it is paused and a transaction would hold up a reader. Whether it did.
async fn release(instance: &Instance) -> anyhow::Result<bool> {
    if !instance.position.is_in_recovery {
        return Ok(false);
    }
    let mut connection = instance.connect(instance.database(), Some(LOOKING)).await?;
    let is_locked: bool = connection.query(LOCKED).await?.one()?.get("locked")?;
    connection.close().await;
    if is_locked {
        tracing::info!(
            "a transaction holds locks at that moment: recovery of the scratch instance ends there"
        );
        instance.promote().await?;
    }
    Ok(is_locked)
}

/// Fails if a database is not there, with those that are.
async fn require_database(instance: &Instance, database: &str) -> anyhow::Result<()> {
    let databases = instance.databases().await?;
    if databases.iter().any(|one| one == database) {
        return Ok(());
    }
    let databases: Vec<String> = databases.iter().map(|one| format!("\"{}\"", shown(one))).collect();
    bail!(
        "there is no database \"{}\" at that moment\nDETAIL: The databases are {}.",
        shown(database),
        databases.join(", ")
    )
}
