//! An extraction that a drill rehearses: made as `extract` makes it, measured, and thrown away.
//!
//! The output lies in the scratch directory, under a temporary name that it never loses, and is removed as soon as its size is known. A
//! crash leaves it there, and the next run in the same place removes it with the directory ([`crate::scratch`]).

use std::path::PathBuf;
use std::time::Instant;

use anyhow::Context;
use walpoint_runtime::args::CommonArgs;
use walpoint_runtime::exit::Failure;

use super::destination::Destination;
use super::passed_on::Shape;
use super::query::CopyFormat;
use super::{ExtractArgs, Extraction, release, require_database};
use crate::plan::Planned;
use crate::scratch::ScratchRestore;
use crate::server::{Instance, Reached};

/// The name that the output would have.
const OUTPUT: &str = "extracted";

/// What is extracted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rehearsal {
    /// From this database.
    pub(crate) database: String,
    /// Only tables that match these patterns.
    pub(crate) tables: Vec<String>,
    /// Only schemas that match these patterns.
    pub(crate) schemas: Vec<String>,
    /// The rows of this query instead.
    pub(crate) query: Option<String>,
    /// Where the client programs are, if not beside the server's.
    pub(crate) client_bindir: Option<PathBuf>,
}

impl Rehearsal {
    /// The options of `extract` that ask for the same. Of a query only its rows are written: without any, nothing is.
    fn options(&self) -> ExtractArgs {
        ExtractArgs {
            database: Some(self.database.clone()),
            tables: self.tables.clone(),
            schemas: self.schemas.clone(),
            query: self.query.clone(),
            format: self.query.as_ref().map(|_| CopyFormat::Text),
            client_bindir: self.client_bindir.clone(),
            ..ExtractArgs::default()
        }
    }

    /// Fails if a client program is missing or refuses what it would be asked for: before anything is restored.
    pub(crate) async fn prove(
        &self,
        common: &CommonArgs,
        scratch: &mut ScratchRestore<'_>,
        planned: &Planned,
    ) -> Result<(), Failure> {
        let args = self.options();
        let extraction = Extraction { common, args: &args, load: None, began: Instant::now() };
        extraction.prove(scratch, planned, &Destination::Standard).await.map(drop)
    }

    /// Extracts. The size of what was written, and what a person should know of it. Fails if a table comes without any of its rows.
    pub(crate) async fn run(
        &self,
        common: &CommonArgs,
        scratch: &mut ScratchRestore<'_>,
        instance: &Instance,
    ) -> anyhow::Result<(u64, Vec<String>)> {
        if let Reached::Elsewhere(where_it_ended) = &instance.reached {
            anyhow::bail!("{where_it_ended}: nothing was extracted");
        }
        release(instance).await?;
        require_database(instance, &self.database).await?;
        let planned = scratch.restored().context("nothing was restored")?.planned.clone();
        let output = scratch.path().context("nothing was restored")?.join(OUTPUT);
        let destination = Destination::prepare(Some(&output), Shape::File, false)?;
        let args = self.options();
        let extraction = Extraction { common, args: &args, load: None, began: Instant::now() };
        let work =
            extraction.prove(scratch, &planned, &destination).await.map_err(|failure| failure.error)?;
        let warnings = work.look(instance, scratch.user()).await?;
        work.run(&destination, instance, scratch.user()).await?;
        Ok((destination.written()?, warnings))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_that_gives_no_row_gives_nothing() {
        let rehearsal = |query: Option<&str>| Rehearsal {
            database: "shop".to_owned(),
            tables: Vec::new(),
            schemas: Vec::new(),
            query: query.map(str::to_owned),
            client_bindir: None,
        };
        // The others begin with the names of the columns, or with a header.
        assert_eq!(rehearsal(Some("select 1 where false")).options().format, Some(CopyFormat::Text));
        assert_eq!(rehearsal(None).options().format, None);
    }
}
