//! Reading the records of each selected repository for a report. What cannot be read is left out of it, and is a failure of the command.

use futures_util::StreamExt;
use walpoint_base::Diagnostic;
use walpoint_repo::evidence::ReadRecord;
use walpoint_runtime::args::Selection;
use walpoint_runtime::exit::Failure;
use walpoint_storage::RepoError;
use walpoint_storage::store::StoreSettings;
use walpoint_words::format_chain;

/// Hands over all records of a repository that can be read, the oldest first. What is wrong with the others.
pub(super) async fn records(
    selection: &Selection<StoreSettings>,
    repository: (&str, &StoreSettings),
    mut take: impl FnMut(ReadRecord),
) -> anyhow::Result<Vec<String>> {
    let evidence = super::open(selection, repository).await?;
    let mut unreadable = Vec::new();
    let mut reading = Box::pin(evidence.records().await?);
    while let Some((_, read)) = reading.next().await {
        match read {
            Ok(read) => take(read),
            Err(error @ (RepoError::Corrupt { .. } | RepoError::NotFound { .. })) => {
                unreadable.push(walpoint_words::error(&error).to_string());
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(unreadable)
}

/// What of the evidence is not in a report.
#[derive(Debug, Default)]
pub(super) struct LeftOut(Vec<String>);

impl LeftOut {
    /// A repository could not be read.
    pub(super) fn repository(&mut self, name: &str, error: &anyhow::Error) {
        self.0.push(format!("repository {name}: {}", format_chain(error)));
    }

    /// These records of a repository could not be read.
    pub(super) fn records(&mut self, name: &str, unreadable: &[String]) {
        self.0.extend(unreadable.iter().map(|what| format!("repository {name}: {what}")));
    }

    /// What the command ends with, when the report is printed.
    pub(super) fn end(self) -> Result<(), Failure> {
        match self.0.is_empty() {
            true => Ok(()),
            false => Err(Diagnostic::gather("not all records could be read", self.0).into()),
        }
    }
}
