//! The harness itself: the programs under test are found, and run as the right user with the right configuration.

use std::time::Duration;

use walpoint_tests::agent::Agent;
use walpoint_tests::cluster::Cluster;
use walpoint_tests::process;
use walpoint_tests::proxy::Proxy;
use walpoint_tests::store::Store;
use walpoint_tests::{testbed, user};

#[test]
fn the_configuration_says_what_was_asked_for() {
    let cluster = Cluster::builder().init();
    let (local, s3) = (Store::local(), Store::s3());
    let proxy = Proxy::to(s3.port().unwrap());
    let agent = Agent::new(&cluster)
        .repository("near", &local)
        .repository_via("far", &s3, &proxy)
        .repository_line("far", "# a line more")
        .cluster_line("# and one here");
    let text = std::fs::read_to_string(agent.write()).unwrap();
    for part in [
        format!("[repository.near]\nurl = \"{}\"", local.url()),
        format!("[repository.far]\nurl = \"{}\"", s3.url()),
        format!("endpoint = \"http://127.0.0.1:{}\"", proxy.port()),
        "# a line more\n\n[cluster.main]\nrepositories = [\"near\", \"far\"]".to_owned(),
        format!("pgdata = \"{}\"", cluster.pgdata().display()),
        "# and one here".to_owned(),
    ] {
        assert!(text.contains(&part), "no {part:?} in\n{text}");
    }
    let secret = agent.place().join("far.secret_access_key");
    assert_eq!(std::fs::read_to_string(secret).unwrap(), "walpoint-secret");
}

#[test]
fn the_programs_can_be_started_by_the_servers_user() {
    for name in ["archive-agent", "archive-push", "restore-agent", "restore-fetch"] {
        let mut command = std::process::Command::new("test");
        command.arg("-x").arg(testbed::under_test(name));
        process::run(user::become_user(&mut command), Duration::from_secs(10)).expect_success();
    }
}

#[test]
fn commands_carry_their_configuration_and_run_in_the_data_directory() {
    let cluster = Cluster::builder().init();
    let store = Store::local();
    let agent = Agent::with(&cluster, &store);
    let push = agent.push_command("pg_wal/000000010000000000000001");
    let arguments: Vec<_> = push.get_args().map(|a| a.to_string_lossy().into_owned()).collect();
    assert_eq!(arguments[0], "--socket");
    assert_eq!(arguments[2..4], ["--config".to_owned(), agent.config().display().to_string()]);
    assert_eq!(arguments[4], "pg_wal/000000010000000000000001");
    assert_eq!(push.get_current_dir(), Some(cluster.pgdata()));
    assert!(agent.config().exists());
}
