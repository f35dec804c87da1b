//! Loading what is extracted straight into a running server, under another name: what is there is never touched.
//!
//! | module | owns |
//! |---|---|
//! | [`options`] | the options, and which options of pg_dump go with them |
//! | [`target`] | the server: how it is reached, what it is, and that the name is free |
//! | [`moving`], [`queries`] | moving them into the new schema, in the scratch instance |
//! | [`needs`] | what the server must have for them |
//! | [`views`] | what is loaded and reads tables of the server |
//! | [`outcome`] | what a load left on the server |
//!
//! The load is one transaction, so the server has all of it or nothing. A kill of this process alone leaves nothing before the end of the dump
//! is handed over; after that, pg_restore commits by itself. Everything before the load only reads there.

mod moving;
mod needs;
mod options;
mod outcome;
mod queries;
mod target;
mod views;

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::bail;
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;
use walpoint_base::diagnostic::shown;
use walpoint_base::{Diagnostic, PgMajor};
use walpoint_pg::connect::Connection;
use walpoint_runtime::human;

use self::moving::Move;
use self::needs::Needs;
pub(super) use self::options::IntoArgs;
use self::options::PassedOn;
use self::outcome::Outcome;
use self::target::{TargetFacts, TargetServer};
use super::destination::Destination;
use super::document::place;
use super::names::listed;
use super::pg_dump::Dump;
use super::pipe::{self, Piped};
use super::selection::Selection;
use super::{ExtractArgs, sql};
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
    /// The server that was looked at.
    server: Box<TargetServer>,
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
    /// What a person should know of the load itself.
    pub(super) notes: Vec<String>,
}

/// What a person should know before the load.
#[derive(Debug, Default)]
struct Remarks {
    notes: Vec<String>,
    warnings: Vec<String>,
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
        place(&self.schema, &self.server.name())
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
        let mut connection = self.server.connect().await?;
        let server = Box::new(self.server.pinned(connection.server())?);
        let proven = ProvenLoad { load: self, server, args, programs };
        let options = proven.words([self.passed_on.for_dump(), self.passed_on.for_selection()].concat());
        proven.dump(&[], &[], &options).prove(&Destination::Standard, user).await?;
        let client = Programs::client_major(&proven.programs.load, user)?;
        let facts = proven.look_at(&mut connection).await?;
        if let Some(warning) = facts.require_version(&proven.server, client, cluster)? {
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
}

impl Remarks {
    /// Logs them. All of them.
    fn logged(self) -> Vec<String> {
        self.notes.iter().for_each(|note| tracing::info!("{note}"));
        self.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
        [self.notes, self.warnings].concat()
    }
}

impl ProvenLoad<'_> {
    /// Fails if nothing can be loaded into the server under that name.
    async fn look_at(&self, connection: &mut Connection) -> anyhow::Result<TargetFacts> {
        let facts = self.server.facts(connection).await?;
        facts.require_writable(&self.server)?;
        facts.require_free_schema(&self.server, connection, &self.load.schema).await?;
        Ok(facts)
    }

    /// Prepares the instance, and looks for what the load needs on the server, which is only read. What a person should know before.
    pub(super) async fn prepare(
        &self,
        instance: &Instance,
        user: &ServerUser,
        moment: &Moment,
    ) -> anyhow::Result<Vec<String>> {
        let selection = self.select(instance, user).await?;
        let facts = self.facts_again().await?;
        let moving = Move {
            instance,
            database: self.database(),
            selection: &selection,
            is_schema: !self.args.schemas.is_empty(),
            schema: &self.load.schema,
            owner: &facts.role,
            comment: &comment(moment),
            keeps_owners: !self.load.passed_on.has(&["no-owner"]),
            has_rows: self.has_rows(),
        };
        let mut remarks = moving.run().await?;
        remarks.warnings.extend(self.require_own_rows(instance).await?);
        self.require_needs(instance, &facts, &mut remarks).await?;
        Ok(remarks.logged())
    }

    /// Loads. An interruption ends the load, and the server says what became of it.
    pub(super) async fn run(
        &self,
        instance: &Instance,
        user: &ServerUser,
        moment: &Moment,
        interrupted: &CancellationToken,
    ) -> anyhow::Result<LoadedSchema> {
        tracing::info!("loading into {}", place(&self.load.schema, &self.server.name()));
        let mut notes = Vec::new();
        if let Some(failed) = self.pipe(instance, user, interrupted).await? {
            let schema = &self.load.schema;
            let outcome = self.server.outcome(schema, &comment(moment)).await;
            let explained = outcome.explain(failed, &self.server.name(), schema);
            if outcome != Outcome::Committed {
                return Err(explained.into());
            }
            tracing::warn!("{explained}");
            notes.push(explained.to_string());
        }
        let table_count = match self.server.count_tables(&self.load.schema).await {
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
            server: self.server.name(),
            database: self.server.database().to_owned(),
            schema: self.load.schema.clone(),
            table_count,
            notes,
        })
    }

    /// Whether rows are loaded, and not only definitions.
    fn has_rows(&self) -> bool {
        !self.load.passed_on.has(&["schema-only"])
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
        let options = self.words(self.load.passed_on.for_selection());
        let dump = self.dump(&self.args.tables, &self.args.schemas, &options);
        Selection::of_dump(&dump, &self.programs.load, instance, user).await
    }

    /// The restore and the recovery took their time.
    async fn facts_again(&self) -> anyhow::Result<TargetFacts> {
        let mut connection = self.server.connect().await?;
        let facts = self.look_at(&mut connection).await?;
        connection.close().await;
        Ok(facts)
    }

    /// Fails if something would be filled with rows of today. Warnings about what else has or shows rows that are not the moment's.
    async fn require_own_rows(&self, instance: &Instance) -> anyhow::Result<Vec<String>> {
        let mut scratch = instance.connect(self.database(), None).await?;
        let mut warnings = Vec::new();
        if self.has_rows() {
            views::require_own_rows(&mut scratch, &self.load.schema).await?;
            warnings.extend(views::filled(&mut scratch, &self.load.schema).await?);
        }
        warnings.extend(views::readers(&mut scratch, &self.load.schema).await?);
        scratch.close().await;
        Ok(warnings)
    }

    /// Fails if the server lacks something that is needed. What a person should know of what will be used there.
    async fn require_needs(
        &self,
        instance: &Instance,
        facts: &TargetFacts,
        remarks: &mut Remarks,
    ) -> anyhow::Result<()> {
        let mut scratch = instance.connect(self.database(), None).await?;
        let needs = Needs::of_schema(&mut scratch, &self.load.schema, &self.load.passed_on).await?;
        scratch.close().await;
        let mut connection = self.server.connect().await?;
        let used = needs.require(&self.load.schema, (&*self.server, facts), &mut connection).await?;
        connection.close().await;
        if !used.names.is_empty() {
            remarks
                .notes
                .push(format!("what is loaded uses objects of the server itself: {}", listed(&used.names)));
        }
        if !used.unknown.is_empty() {
            remarks.warnings.push(format!(
                "whether the server has what the load needs is not known of all, and the load fails if it lacks one: {}",
                listed(&used.unknown)
            ));
        }
        remarks.notes.extend(facts.published_warning());
        Ok(())
    }

    /// Dumps the new schema of the instance into the server. How that failed; the server may have committed all the same.
    async fn pipe(
        &self,
        instance: &Instance,
        user: &ServerUser,
        interrupted: &CancellationToken,
    ) -> anyhow::Result<Option<Diagnostic>> {
        let mut options = self.load.passed_on.for_dump();
        options.extend(
            ["--format=custom", "--compress=0", "--no-publications", "--no-subscriptions"].map(str::to_owned),
        );
        let (options, schemas) = (self.words(options), [sql::identifier(&self.load.schema)]);
        let dump = self.dump(&[], &schemas, &options).connected(instance, user)?;
        let mut load = self.server.command(&self.programs.load);
        load.arg("--single-transaction").args(self.load.passed_on.for_load());
        let piped = tokio::select! {
            biased;
            piped = pipe::run(dump, load) => piped,
            () = interrupted.cancelled() => return Ok(Some(Diagnostic::new("the extraction was interrupted"))),
        };
        Ok(match piped {
            Ok(Piped::Loaded) => None,
            Ok(Piped::DumpFailed(failed) | Piped::LoadFailed(failed)) => Some(failed.diagnostic()),
            Err(error) => Some(walpoint_words::diagnostic(&error)),
        })
    }
}

/// What the comment on the schema says.
fn comment(moment: &Moment) -> String {
    format!("restored by restore-agent extract: {moment}")
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
    Ok(LoadPrograms { dump: find(super::pg_dump::PROGRAM)?, load: find(pipe::LOADER)? })
}
