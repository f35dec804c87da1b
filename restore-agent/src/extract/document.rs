//! What was extracted or listed, as a document.

use schemars::JsonSchema;
use serde::Serialize;
use walpoint_base::Diagnostic;
use walpoint_base::diagnostic::shown;

use super::contents::{Database, Table};
use crate::plan::PlanReport;
use crate::scratch::Moment;

/// What `restore-agent extract --json` prints.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(untagged)]
pub(super) enum ExtractDocument<'a> {
    /// What was extracted.
    Extracted(&'a ExtractReport),
    /// With `--into`, what was loaded, and where.
    Loaded(&'a LoadReport),
    /// With `--list`, what could be.
    Listed(&'a ListReport),
    /// If the target cannot be reached, why.
    #[expect(dead_code, reason = "the function that prints it for plan prints it here too")]
    Plan(PlanReport),
}

walpoint_runtime::document!(ExtractDocument<'_>, "restore-agent extract");

/// What was extracted.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Extract")]
pub(super) struct ExtractReport {
    /// The outcome.
    pub(super) result: Extracted,
    /// Where it is from.
    #[serde(flatten)]
    pub(super) moment: Moment,
    /// The database.
    pub(super) database: String,
    /// The file or the directory.
    pub(super) output: String,
    /// Its size.
    pub(super) output_bytes: u64,
    /// What it took.
    #[serde(flatten)]
    pub(super) costs: Costs,
}

/// What was loaded into a server.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "ExtractLoad")]
pub(super) struct LoadReport {
    /// The outcome.
    pub(super) result: Loaded,
    /// Where it is from.
    #[serde(flatten)]
    pub(super) moment: Moment,
    /// The database that was read.
    pub(super) database: String,
    /// The server that was loaded into, with the role and the database of the session: `role@host:port/database`.
    pub(super) into_server: String,
    /// The database that was loaded into.
    pub(super) into_database: String,
    /// The new schema.
    pub(super) into_schema: String,
    /// How many tables it has. Absent if the server did not say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) table_count: Option<u64>,
    /// What it took.
    #[serde(flatten)]
    pub(super) costs: Costs,
}

/// What an extraction took, and what a person should know of it.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Costs {
    /// How long it took to write the files of the scratch instance.
    pub(super) restore_seconds: f64,
    /// How long it took from the start of its server to the target.
    pub(super) recovery_seconds: f64,
    /// How long everything took.
    pub(super) seconds: f64,
    /// Notes for the operator, one sentence each.
    #[serde(serialize_with = "walpoint_base::diagnostic::parts")]
    #[schemars(with = "Vec<Diagnostic>")]
    pub(super) notes: Vec<String>,
}

impl LoadReport {
    /// Where it went, without secrets.
    pub(super) fn place(&self) -> String {
        place(&self.into_schema, &self.into_server)
    }
}

/// A schema at a server, without secrets.
pub(super) fn place(schema: &str, server: &str) -> String {
    format!("schema {} at {server}", shown(schema))
}

/// What a moment holds.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "ExtractList")]
pub(super) struct ListReport {
    /// The outcome.
    pub(super) result: Listed,
    /// The moment.
    #[serde(flatten)]
    pub(super) moment: Moment,
    /// The databases.
    pub(super) databases: Vec<Database>,
    /// The database whose schemas and tables are listed. Absent if none was named.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) database: Option<String>,
    /// Its schemas. Absent if no database was named.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) schemas: Option<Vec<String>>,
    /// Its tables. Absent if no database was named.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) tables: Option<Vec<Table>>,
    /// Notes for the operator, one sentence each.
    #[serde(serialize_with = "walpoint_base::diagnostic::parts")]
    #[schemars(with = "Vec<Diagnostic>")]
    pub(super) notes: Vec<String>,
}

/// The outcome of an extraction.
#[derive(Debug, Clone, Copy, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Extracted {
    /// The output is complete.
    Extracted,
}

/// The outcome of a load.
#[derive(Debug, Clone, Copy, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Loaded {
    /// Everything was loaded.
    Loaded,
}

/// The outcome of a list.
#[derive(Debug, Clone, Copy, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Listed {
    /// The list is complete.
    Listed,
}
