//! Moving what is extracted into a schema of another name: in the scratch instance, which is promoted for it and thrown away, before the
//! dump. There PostgreSQL itself renames, so indexes, sequences, defaults, types, views and foreign keys follow; a script would have to be
//! edited.
//!
//! What would reach the server's own tables is undone there, too: foreign keys that lead out of what was selected would lock these tables
//! and forbid deletes on them, and a partition would be attached to the server's own table.

use std::time::Duration;

use anyhow::{Context, bail};
use walpoint_base::Diagnostic;
use walpoint_base::diagnostic::shown;
use walpoint_pg::connect::{Connection, Row, RowError};

use super::super::names::{listed, names};
use super::super::rows;
use super::super::selection::{CLASS, NAMESPACE, Selection};
use super::super::sql::{identifier, literal, oids};
use super::{Remarks, queries};
use crate::server::Instance;

/// How long a statement may take, and a wait for a lock: nothing else runs there.
const LIMIT: Duration = Duration::from_secs(600);

/// The schema of what is not extracted of a schema that keeps its name. Messages show it if it is needed.
const NOT_EXTRACTED: &str = "walpoint_not_extracted";

/// How the name begins of a schema that had the new name at that moment; its OID follows ([`queries::RENAME_TAKEN`]).
const TAKEN: &str = "walpoint_other_";

/// Whether a schema stands in the instance for another one that had the new name.
pub(super) fn is_stand_in(schema: &str) -> bool {
    schema == NOT_EXTRACTED || schema.starts_with(TAKEN)
}

/// What is moved, and where to.
#[derive(Debug)]
pub(super) struct Move<'a> {
    pub(super) instance: &'a Instance,
    pub(super) database: &'a str,
    /// What the patterns select.
    pub(super) selection: &'a Selection,
    /// Whether that is a schema with all that is in it; else tables.
    pub(super) is_schema: bool,
    /// The new schema.
    pub(super) schema: &'a str,
    /// The role to which it will belong, which need not exist here.
    pub(super) owner: &'a str,
    /// What its comment says.
    pub(super) comment: &'a str,
    /// Whether what is in it keeps its owners, who need the schema then: a foreign key is checked with the rights of one.
    pub(super) keeps_owners: bool,
    /// Whether rows are loaded, and not only definitions.
    pub(super) has_rows: bool,
}

impl Move<'_> {
    /// Moves everything, in one transaction. What a person should know of it.
    pub(super) async fn run(&self) -> anyhow::Result<Remarks> {
        self.instance.end_recovery().await?;
        let mut connection = self.instance.connect(self.database, Some(LIMIT)).await?;
        let moved = self.run_on(&mut connection).await;
        connection.close().await;
        moved.context("the scratch instance could not be prepared")
    }

    async fn run_on(&self, connection: &mut Connection) -> anyhow::Result<Remarks> {
        connection.execute("SET search_path = ''").await?;
        // They hold locks, and what they did is seen by no one.
        apply(connection, queries::PREPARED_TRANSACTIONS).await?;
        connection.execute("BEGIN READ WRITE").await?;
        connection.execute("SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = '60s'").await?;
        apply(connection, queries::EVENT_TRIGGERS).await?;
        let mut selected = self.selection.of(CLASS);
        selected
            .extend(numbers(connection, &queries::of(queries::SEQUENCES_OF_DEFAULTS, &selected, "")).await?);
        let remarks = self.separate(connection, &selected).await?;
        match self.is_schema {
            true => self.rename(connection, &selected).await?,
            false => self.gather(connection, &selected).await?,
        }
        self.finish(connection).await?;
        Ok(remarks)
    }

    /// Undoes what ties the selected tables to others. What a person should know of it.
    async fn separate(&self, connection: &mut Connection, selected: &[u32]) -> anyhow::Result<Remarks> {
        let of = |query| queries::of(query, selected, "");
        rows::require_none_of_system(connection, selected).await?;
        let warnings = rows::warnings(connection, selected, self.has_rows).await?;
        require_names(&names(connection, &of(queries::SAME_NAME)).await?)?;
        let keys = names(connection, &of(queries::KEYS_OUT)).await?;
        let partitions = names(connection, &of(queries::PARTITIONS_OF_OTHERS)).await?;
        for query in [queries::DISOWN, queries::DROP_KEYS, queries::DETACH] {
            apply(connection, &of(query)).await?;
        }
        let mut notes = Vec::new();
        if !keys.is_empty() {
            notes.push(format!(
                "foreign keys to tables that are not extracted are left out, because they would lead to tables of the server itself: {}",
                listed(&keys)
            ));
        }
        if !partitions.is_empty() {
            notes.push(format!(
                "what is a partition or inherits becomes a table of its own, because its parent is not extracted: {}",
                listed(&partitions)
            ));
        }
        Ok(Remarks { notes, warnings })
    }

    /// Moves tables into a new schema.
    async fn gather(&self, connection: &mut Connection, selected: &[u32]) -> anyhow::Result<()> {
        if selected.is_empty() {
            bail!("no table matches");
        }
        make_way(connection, self.schema).await?;
        connection.execute(&format!("CREATE SCHEMA {}", identifier(self.schema))).await?;
        for query in [queries::MOVE, queries::MOVE_STATISTICS] {
            apply(connection, &queries::of(query, selected, self.schema)).await?;
        }
        Ok(())
    }

    /// Renames a schema, and moves sequences of its defaults into it.
    async fn rename(&self, connection: &mut Connection, selected: &[u32]) -> anyhow::Result<()> {
        let schemas = queries::of(queries::SCHEMAS, &self.selection.of(CLASS), "")
            .replace("$NAMESPACES", &oids(&self.selection.of(NAMESPACE)));
        let found = names(connection, &schemas).await?;
        let [old] = &found[..] else {
            return Err(Diagnostic::new("one schema at a time can be loaded into a server")
                .detail(format!("The pattern matches: {}.", listed(&found)))
                .into());
        };
        self.rename_schema(connection, old, selected).await?;
        apply(connection, &queries::of(queries::MOVE, selected, self.schema)).await
    }

    /// Renames it, and takes out what was not selected, and extensions, which the server has under the old name. Where the name stays,
    /// these go elsewhere.
    async fn rename_schema(
        &self,
        connection: &mut Connection,
        old: &str,
        selected: &[u32],
    ) -> anyhow::Result<()> {
        let is_same = old == self.schema;
        let others = identifier(if is_same { NOT_EXTRACTED } else { old });
        if is_same {
            make_way(connection, NOT_EXTRACTED).await?;
        } else {
            make_way(connection, self.schema).await?;
            let (old, new) = (identifier(old), identifier(self.schema));
            connection.execute(&format!("ALTER SCHEMA {old} RENAME TO {new}")).await?;
        }
        connection.execute(&format!("CREATE SCHEMA {others}")).await?;
        let here =
            |query: &str| query.replace("$SCHEMA", &literal(self.schema)).replace("$OLD", &literal(&others));
        connection.execute(&here(queries::FORGET_INITIAL_RIGHTS)).await?;
        connection.execute(&here(queries::MAKE_RELOCATABLE)).await?;
        for query in [queries::EXTENSIONS_BACK, queries::OTHERS_BACK, queries::STATISTICS_BACK] {
            apply(connection, &here(&queries::of(query, selected, ""))).await?;
        }
        Ok(())
    }

    /// Gives the new schema its owner and its comment.
    async fn finish(&self, connection: &mut Connection) -> anyhow::Result<()> {
        let (schema, owner) = (identifier(self.schema), identifier(self.owner));
        let exists = format!(
            "SELECT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = {}) AS found",
            literal(self.owner)
        );
        if !connection.query(&exists).await?.one()?.get::<bool>("found")? {
            connection.execute(&format!("CREATE ROLE {owner}")).await?;
        }
        connection.execute(&format!("ALTER SCHEMA {schema} OWNER TO {owner}")).await?;
        if self.keeps_owners {
            let owners = queries::LET_OWNERS_IN.replace("$SCHEMA", &literal(self.schema));
            apply(connection, &owners).await?;
        }
        let comment = format!("COMMENT ON SCHEMA {schema} IS {}", literal(self.comment));
        connection.execute(&comment).await?;
        connection.execute("COMMIT").await?;
        Ok(())
    }
}

/// Fails if there are names that several would have in one schema.
fn require_names(twice: &[String]) -> anyhow::Result<()> {
    if twice.is_empty() {
        return Ok(());
    }
    Err(Diagnostic::new(format!("what has the same name cannot be loaded into one schema: {}", listed(twice)))
        .hint(
            "Load the tables to which these belong one at a time: with its schema before its name, a pattern matches one table only.",
        )
        .into())
}

/// Takes a name from a schema that had it at that moment.
async fn make_way(connection: &mut Connection, schema: &str) -> anyhow::Result<()> {
    let taken = queries::RENAME_TAKEN.replace("$SCHEMA", &literal(schema));
    apply(connection, &taken).await
}

/// Executes what a query makes of statements.
async fn apply(connection: &mut Connection, query: &str) -> anyhow::Result<()> {
    let rows = connection.query(query).await?;
    let statements: Result<Vec<String>, RowError> =
        rows.iter().map(|row: &Row| row.get("statement")).collect();
    for statement in statements? {
        connection.execute(&statement).await.with_context(|| shown(&statement))?;
    }
    Ok(())
}

async fn numbers(connection: &mut Connection, query: &str) -> anyhow::Result<Vec<u32>> {
    let rows = connection.query(query).await?;
    let numbers: Result<Vec<u32>, RowError> = rows.iter().map(|row| row.get("oid")).collect();
    Ok(numbers?)
}
