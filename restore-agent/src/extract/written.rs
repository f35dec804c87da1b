//! A dump that is written to the output, and what is looked at before: pg_dump takes it for granted that a pattern means what it matches.

use std::path::PathBuf;
use std::time::Duration;

use super::destination::Destination;
use super::passed_on::PassedOptions;
use super::pg_dump::Dump;
use super::rows;
use super::selection::{CLASS, Selection};
use crate::server::{Instance, ServerUser};

/// How long a look at the catalogs may take.
const LOOKING: Duration = Duration::from_secs(600);

/// A dump that is written.
#[derive(Debug)]
pub(super) struct WrittenDump<'a> {
    pub(super) dump: Dump<'a>,
    /// pg_restore, of the same installation, which lists what patterns select. `None`: there are no patterns.
    pub(super) pg_restore: Option<PathBuf>,
    /// What the options of pg_dump say.
    pub(super) options: PassedOptions,
}

impl WrittenDump<'_> {
    /// Fails if a table would come without any row. What else a person should know of the rows.
    pub(super) async fn look(&self, instance: &Instance, user: &ServerUser) -> anyhow::Result<Vec<String>> {
        let (Some(pg_restore), dump) = (&self.pg_restore, &self.dump) else { return Ok(Vec::new()) };
        let only = Dump { program: dump.program.clone(), passed_on: &self.options.selecting, ..*dump };
        let selected = Selection::of_dump(&only, pg_restore, instance, user).await?.of(CLASS);
        let mut connection = instance.connect(dump.database, Some(LOOKING)).await?;
        connection.execute("SET search_path = ''").await?;
        let is_chosen = !(dump.tables.is_empty() && dump.schemas.is_empty());
        let requires_rows = is_chosen && self.options.has_all_rows;
        let mut warnings = rows::warnings(&mut connection, &selected, requires_rows).await?;
        if !dump.tables.is_empty() && self.options.has_all_rows {
            warnings.extend(rows::warnings_of_script(&mut connection, &selected).await?);
        }
        connection.close().await;
        Ok(warnings)
    }

    /// Dumps.
    pub(super) async fn run(
        &self,
        destination: &Destination,
        instance: &Instance,
        user: &ServerUser,
    ) -> anyhow::Result<()> {
        self.dump.run(destination, instance, user).await
    }
}
