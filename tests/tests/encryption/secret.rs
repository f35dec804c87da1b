//! What opens the repositories of these tests.

use std::path::PathBuf;

use walpoint_repo::Repository;
use walpoint_storage::store::StoreSettings;
use walpoint_storage::store::settings::EncryptionSettings;
use walpoint_tests::agent::Agent;
use walpoint_tests::archived::Archived;
use walpoint_tests::user;

pub(crate) const PASSPHRASE: &str = "correct horse battery staple";

/// A file of the agent's own.
pub(crate) fn file(agent: &Agent, name: &str, text: &str) -> PathBuf {
    let path = agent.place().join(name);
    std::fs::write(&path, text).unwrap();
    user::give(&path);
    path
}

/// With a key file, which `init` makes.
pub(crate) fn key_file(agent: Agent) -> Agent {
    let line = format!("key_file = \"{}\"", agent.place().join("main.key").display());
    agent.repository_line("main", &line)
}

/// With a passphrase in a file.
pub(crate) fn passphrase(agent: Agent) -> Agent {
    let path = file(&agent, "passphrase", &format!("{PASSPHRASE}\n"));
    agent.repository_line("main", &format!("passphrase_file = \"{}\"", path.display()))
}

/// With what stands for a key management service.
pub(crate) fn service(agent: Agent) -> Agent {
    agent
        .repository_line("main", "wrap_command = \"printf kms:; tr 0-9a-f g-v\"")
        .repository_line("main", "unwrap_command = \"sed s/^kms:// | tr g-v 0-9a-f\"")
}

/// Another agent for the same cluster and store, with nothing or something else for a key.
pub(crate) fn other_agent(bed: &Archived, lines: &[&str]) -> Agent {
    let agent = Agent::with(&bed.cluster, &bed.store)
        .cluster_line("fetch_timeout = \"1s\"")
        .cluster_line("push_timeout = \"2s\"");
    lines.iter().fold(agent, |agent, line| agent.repository_line("main", line))
}

/// The repository of the bed, opened with its key file by the library.
pub(crate) fn open(runtime: &tokio::runtime::Runtime, bed: &Archived) -> Repository {
    let key_file = Some(bed.agent.place().join("main.key"));
    let encryption = EncryptionSettings { key_file, ..EncryptionSettings::default() };
    let settings = StoreSettings { encryption, ..bed.store.settings() };
    runtime.block_on(Repository::open("test", &settings)).unwrap()
}

pub(crate) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}
