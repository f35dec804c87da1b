//! Loading what is extracted straight into a running server, under another name: what is there is never touched.
//!
//! | module | owns |
//! |---|---|
//! | [`options`] | the options, and which options of pg_dump go with them |
//! | [`target`] | the server: how it is reached, what it is, and that the name is free |
//! | [`selection`] | the objects that patterns select, by pg_dump's reading |
//! | [`moving`], [`queries`] | moving them into the new schema, in the scratch instance |
//! | [`children`] | tables whose rows are in others |
//! | [`needs`] | what the server must have for them |
//! | [`views`] | what is loaded and reads tables of the server |
//! | [`pipe`] | pg_dump into pg_restore |
//! | [`outcome`] | what a load left on the server |
//! | [`sql`] | names and values in SQL |
//!
//! The load is one transaction, so the server has all of it or nothing. A kill of this process alone leaves nothing before the end of the dump
//! is handed over; after that, pg_restore commits by itself. Everything before the load only reads there.

mod children;
mod moving;
mod needs;
mod options;
mod outcome;
mod pipe;
mod queries;
mod selection;
mod sql;
mod target;
mod views;

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::bail;
use jiff::Timestamp;
use walpoint_base::PgMajor;
use walpoint_base::diagnostic::shown;
use walpoint_pg::connect::Connection;
use walpoint_runtime::human;

use self::moving::{Move, listed};
use self::needs::Needs;
pub(super) use self::options::IntoArgs;
use self::options::PassedOn;
use self::pipe::{LOADER, Piped};
use self::selection::Selection;
use self::target::{TargetFacts, TargetServer};
use super::destination::Destination;
use super::pg_dump::Dump;
use super::{ExtractArgs, client};
use crate::scratch::Moment;
use crate::server::{Instance, Programs, ServerUser};

/// A load that was asked for.
#[derive(Debug)]
pub(super) struct Load {
    server: TargetServer,
    schema: String,
    passed_on: PassedOn,
}

/// The programs that carry it out.
#[derive(Debug)]
pub(super) struct LoadPrograms {
    /// pg_dump.
    pub(super) dump: PathBuf,
    /// pg_restore, of the same installation.
    pub(super) load: PathBuf,
}

/// A load whose programs and server were looked at.
#[derive(Debug)]
pub(super) struct ProvenLoad<'a> {
    load: &'a Load,
    args: &'a ExtractArgs,
    programs: LoadPrograms,
}

/// What was loaded.
#[derive(Debug)]
pub(super) struct LoadedSchema {
    /// The server, with the role and the database, without secrets.
    pub(super) server: String,
    /// The database.
    pub(super) database: String,
    /// The new schema.
    pub(super) schema: String,
    /// How many tables it has. `None`: the server did not say.
    pub(super) table_count: Option<u64>,
    /// What a person should know.
    pub(super) notes: Vec<String>,
}

impl Load {
    /// Reads what is asked for, if it is a load. `started`: the time for names that are not given.
    pub(super) fn read(args: &ExtractArgs, started: Timestamp) -> anyhow::Result<Option<Self>> {
        let Some(conninfo) = &args.into.server else { return Ok(None) };
        match (args.tables.is_empty(), &args.schemas[..]) {
            (true, []) => {
                bail!("--into loads tables or a schema\nHINT: Choose them with --table or --schema.")
            }
            (false, [_, ..]) => bail!("--into takes --table or --schema, not both"),
            (true, [_, _, ..]) => bail!("--into takes one schema at a time"),
            (false, []) | (true, [_]) => {}
        }
        let server = TargetServer::read(conninfo)?;
        let passed_on = PassedOn::read(&args.passed_on)?;
        let default = || format!("walpoint_{}", started.strftime("%Y%m%d_%H%M%S"));
        let schema = args.into.schema.clone().unwrap_or_else(default);
        Ok(Some(Self { server, schema, passed_on }))
    }

    /// Where it goes, without secrets.
    pub(super) fn place(&self) -> String {
        format!("schema {} at {}", shown(&self.schema), self.server.name())
    }

    /// Fails if the load is certain to fail, before anything is restored: the programs refuse their options, or nothing can be loaded
    /// into that server under that name.
    pub(super) async fn prove<'a>(
        &'a self,
        args: &'a ExtractArgs,
        programs: LoadPrograms,
        cluster: PgMajor,
        user: &ServerUser,
    ) -> anyhow::Result<ProvenLoad<'a>> {
        let proven = ProvenLoad { load: self, args, programs };
        let options = proven.words(self.passed_on.for_dump());
        proven.dump(&[], &[], &options).prove(&Destination::Standard, user).await?;
        let client = Programs::client_major(&proven.programs.load, user)?;
        let mut connection = self.server.connect().await?;
        let facts = self.look_at(&mut connection).await?;
        if let Some(warning) = facts.require_version(&self.server, client, cluster)? {
            tracing::warn!("{warning}");
        }
        for warning in
            [facts.owners_warning(&self.passed_on), facts.published_warning()].into_iter().flatten()
        {
            tracing::warn!("{warning}");
        }
        connection.close().await;
        Ok(proven)
    }

    /// Fails if nothing can be loaded into the server under that name.
    async fn look_at(&self, connection: &mut Connection) -> anyhow::Result<TargetFacts> {
        let facts = self.server.facts(connection).await?;
        facts.require_writable(&self.server)?;
        facts.require_free_schema(&self.server, connection, &self.schema).await?;
        Ok(facts)
    }
}

impl ProvenLoad<'_> {
    /// Loads.
    pub(super) async fn run(
        &self,
        instance: &Instance,
        user: &ServerUser,
        moment: &Moment,
    ) -> anyhow::Result<LoadedSchema> {
        let selection = self.select(instance, user).await?;
        let facts = self.facts_again().await?;
        let comment = format!("restored by restore-agent extract: {moment}");
        let moving = Move {
            instance,
            database: self.database(),
            selection: &selection,
            is_schema: !self.args.schemas.is_empty(),
            schema: &self.load.schema,
            owner: &facts.role,
            comment: &comment,
            keeps_owners: !self.load.passed_on.has(&["no-owner"]),
            has_rows: !self.load.passed_on.has(&["schema-only"]),
        };
        let mut notes = moving.run().await?;
        let locked = self.require_own_rows(instance).await?;
        notes.extend(self.require_needs(instance, &facts).await?);
        // Before the load, so that they are known if it fails, too.
        notes.iter().for_each(|note| tracing::info!("{note}"));
        if let Some(locked) = locked {
            tracing::warn!("{locked}");
            notes.push(locked);
        }
        tracing::info!("loading into {}", self.load.place());
        self.pipe(instance, user).await?;
        let table_count = match self.load.server.count_tables(&self.load.schema).await {
            Ok(count) => Some(count),
            Err(why) => {
                let unknown =
                    format!("the load is complete, and the number of its tables is not known: {why:#}");
                tracing::warn!("{unknown}");
                notes.push(unknown);
                None
            }
        };
        Ok(LoadedSchema {
            server: self.load.server.name(),
            database: self.load.server.database().to_owned(),
            schema: self.load.schema.clone(),
            table_count,
            notes,
        })
    }

    fn database(&self) -> &str {
        self.args.database.as_deref().unwrap_or_default()
    }

    fn words(&self, words: Vec<String>) -> Vec<OsString> {
        words.into_iter().map(OsString::from).collect()
    }

    fn dump<'a>(&'a self, tables: &'a [String], schemas: &'a [String], options: &'a [OsString]) -> Dump<'a> {
        let program = self.programs.dump.clone();
        Dump { program, database: self.database(), tables, schemas, passed_on: options }
    }

    /// Which objects the patterns select.
    async fn select(&self, instance: &Instance, user: &ServerUser) -> anyhow::Result<Selection> {
        let mut options = self.load.passed_on.for_selection();
        options.extend(["--format=custom", "--schema-only", "--no-publications"].map(str::to_owned));
        let options = self.words(options);
        let dump = self.dump(&self.args.tables, &self.args.schemas, &options);
        let mut list = client::command(&self.programs.load, user);
        list.arg("--list");
        match pipe::contents(dump.connected(instance, user)?, list).await? {
            Ok(list) => Ok(Selection::read(&list)),
            Err(failed) => Err(dump.explain(&failed, instance).await),
        }
    }

    /// The restore and the recovery took their time.
    async fn facts_again(&self) -> anyhow::Result<TargetFacts> {
        let mut connection = self.load.server.connect().await?;
        let facts = self.load.look_at(&mut connection).await?;
        connection.close().await;
        Ok(facts)
    }

    /// Fails if something would be filled with rows of today. A warning about what is locked on the server.
    async fn require_own_rows(&self, instance: &Instance) -> anyhow::Result<Option<String>> {
        let mut scratch = instance.connect(self.database(), None).await?;
        if !self.load.passed_on.has(&["schema-only"]) {
            views::require_own_rows(&mut scratch, &self.load.schema).await?;
        }
        let locked = views::locked(&mut scratch, &self.load.schema).await?;
        scratch.close().await;
        Ok(locked)
    }

    /// Fails if the server lacks something that is needed. What a person should know of what will be used there.
    async fn require_needs(&self, instance: &Instance, facts: &TargetFacts) -> anyhow::Result<Vec<String>> {
        let mut scratch = instance.connect(self.database(), None).await?;
        let needs = Needs::of_schema(&mut scratch, &self.load.schema, &self.load.passed_on).await?;
        scratch.close().await;
        let mut connection = self.load.server.connect().await?;
        let used = needs.require(&self.load.server, facts, &mut connection).await?;
        connection.close().await;
        let mut notes = Vec::new();
        if !used.is_empty() {
            notes.push(format!("what is loaded uses objects of the server itself: {}", listed(&used)));
        }
        notes.extend(facts.published_warning());
        Ok(notes)
    }

    /// Dumps the new schema of the instance into the server.
    async fn pipe(&self, instance: &Instance, user: &ServerUser) -> anyhow::Result<()> {
        let mut options = self.load.passed_on.for_dump();
        options.extend(
            ["--format=custom", "--compress=0", "--no-publications", "--no-subscriptions"].map(str::to_owned),
        );
        let (options, schemas) = (self.words(options), [sql::identifier(&self.load.schema)]);
        let dump = self.dump(&[], &schemas, &options);
        let mut load = self.load.server.command(&self.programs.load);
        load.arg("--single-transaction").args(self.load.passed_on.for_load());
        let dump = dump.connected(instance, user)?;
        let failed = match pipe::run(dump, load).await {
            Ok(Piped::Loaded) => return Ok(()),
            Ok(Piped::DumpFailed(failed) | Piped::LoadFailed(failed)) => failed.diagnostic(),
            Err(error) => walpoint_words::diagnostic(&error),
        };
        let (server, schema) = (&self.load.server, &self.load.schema);
        Err(server.outcome(schema).await.explain(failed, &server.name(), schema).into())
    }
}

impl LoadedSchema {
    /// What was done, in a sentence.
    pub(super) fn sentence(&self) -> String {
        let tables = self.table_count.map_or("everything".to_owned(), |count| human::count(count, "table"));
        format!("loaded {tables} into schema \"{}\" at {}", shown(&self.schema), self.server)
    }
}

/// The programs, beside each other: an archive is read by the version that wrote it.
pub(super) fn programs(find: impl Fn(&str) -> anyhow::Result<PathBuf>) -> anyhow::Result<LoadPrograms> {
    Ok(LoadPrograms { dump: find(super::pg_dump::PROGRAM)?, load: find(LOADER)? })
}
