//! `evidence head`.

use anyhow::anyhow;
use schemars::JsonSchema;
use serde::Serialize;
use walpoint_base::{ClusterName, Diagnostic};
use walpoint_runtime::args::{CommonArgs, Selection};
use walpoint_runtime::exit::Failure;
use walpoint_runtime::output;
use walpoint_storage::store::StoreSettings;
use walpoint_words::format_chain;

/// What `archive-agent evidence head --json` prints.
#[derive(Debug, Serialize, JsonSchema)]
struct EvidenceHeadDocument {
    /// The cluster.
    cluster: ClusterName,
    /// The end of each repository's chain.
    repositories: Vec<RepositoryHead>,
}

walpoint_runtime::document!(EvidenceHeadDocument, "archive-agent evidence head");

/// The end of one repository's chain.
#[derive(Debug, Serialize, JsonSchema)]
struct RepositoryHead {
    /// The repository's name in the configuration.
    repository: String,
    /// The hash of the last record.
    hash: String,
    /// The number of the last record.
    number: u64,
    /// Both, as `verify --head` takes them.
    head: String,
}

/// Runs the command.
pub(super) async fn run(common: &CommonArgs, selection: &Selection<StoreSettings>) -> Result<(), Failure> {
    let mut document = EvidenceHeadDocument { cluster: selection.cluster.clone(), repositories: Vec::new() };
    let mut failed = Vec::new();
    for (name, settings) in &selection.repositories {
        let head = async { anyhow::Ok(super::open(selection, (name, settings)).await?.head().await?) };
        let none = || anyhow!("it has no evidence of cluster {}", selection.cluster);
        match head.await.and_then(|head| head.ok_or_else(none)) {
            Ok(head) => document.repositories.push(RepositoryHead {
                repository: name.clone(),
                hash: head.hash.to_string(),
                number: head.number,
                head: head.to_string(),
            }),
            Err(error) => failed.push(format!("repository {name}: {}", format_chain(&error))),
        }
    }
    if common.json {
        output::json(&document)?;
    } else {
        // Of one repository what --head takes, and nothing else.
        let alone = selection.repositories.len() == 1;
        let lines = document.repositories.iter().map(|one| match alone {
            true => format!("{}\n", one.head),
            false => format!("{}  {}\n", one.head, one.repository),
        });
        output::text(&lines.collect::<String>())?;
    }
    match failed.is_empty() {
        true => Ok(()),
        false => Err(Diagnostic::gather("", failed).into()),
    }
}
