//! `archive-agent init --encrypt`, and K5: `check` proves the key.

use std::os::unix::fs::PermissionsExt;

use serde_json::Value;
use walpoint_tests::agent::Agent;
use walpoint_tests::archived::Archived;
use walpoint_tests::cluster::Cluster;
use walpoint_tests::store::Store;
use walpoint_tests::user;

use crate::secret;

/// A new repository by one command: a key file beside the configuration, the configuration names it, and what it means is
/// printed.
#[test]
fn init_makes_a_key_and_says_what_to_keep() {
    let cluster = Cluster::builder().segment_size_mb(1).init();
    let dir = cluster.dir().mkdir("place");
    let agent = Agent::new(&cluster);
    let config = dir.join("walpoint.toml");
    let root = dir.join("repository");
    let (config_text, pgdata) = (config.to_str().unwrap(), cluster.pgdata().to_str().unwrap());
    let url = format!("file://{}", root.display());
    let init = |more: &[&str]| {
        let arguments =
            ["--config", config_text, "init", "--cluster", "main", "--repo", &url, "--pgdata", pgdata];
        agent.run(&[&arguments, more].concat())
    };
    // What would not be what was meant is refused, and leaves nothing.
    let told = init(&["--key-file", "/nowhere/key"]).expect_status(1).stderr;
    assert!(told.contains("--encrypt"), "{told}");
    let told = init(&["--encrypt", "--passphrase-file", "/nowhere/passphrase"]).expect_status(1).stderr;
    assert!(told.contains("/nowhere/passphrase"), "{told}");
    assert!(!config.exists() && !root.join("walpoint.json").exists());

    let output = init(&["--encrypt"]).expect_success().stdout;
    assert!(output.contains("KEEP A COPY OF WHAT OPENS THE REPOSITORY"), "{output}");
    let key = dir.join("main.key");
    assert!(
        output.contains(&format!("encrypted: key slot 0 opens with the key from file {}", key.display())),
        "{output}"
    );
    assert_eq!(std::fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
    let secret = std::fs::read_to_string(&key).unwrap();
    assert!(!output.contains(secret.trim()), "the key itself is printed");
    let written = std::fs::read_to_string(&config).unwrap();
    assert!(written.contains(&format!("key_file = \"{}\"", key.display())), "{written}");
    // Again: the same repository, the same key.
    let again: Value = serde_json::from_str(&init(&["--encrypt", "--json"]).expect_success().stdout).unwrap();
    let repository = &again["repositories"][0];
    assert_eq!(
        (&repository["repository_created"], &repository["key_slot"]),
        (&false.into(), &0.into()),
        "{again}"
    );
    assert_eq!(again["config_change"], "unchanged");
    assert_eq!(std::fs::read_to_string(&key).unwrap(), secret);
    // A key that is lost is not made anew, as if that could open anything.
    std::fs::remove_file(&key).unwrap();
    let told = init(&["--encrypt"]).expect_status(1).stderr;
    assert!(told.contains("main.key") && !key.exists(), "{told}");

    // Encryption is chosen once.
    let plain = format!("file://{}", dir.join("plain").display());
    let arguments =
        ["--config", config_text, "init", "--cluster", "b", "--repo", &plain, "--repo-name", "plain"];
    let more = ["--pgdata", pgdata, "--push-socket", "/run/walpoint/b"];
    agent.run(&[&arguments[..], &more].concat()).expect_success();
    let told = agent.run(&[&arguments[..], &more, &["--encrypt"]].concat()).expect_status(2).stderr;
    assert!(told.contains("its own settings"), "{told}");
}

/// K5: `check` proves the key of an encrypted repository.
#[test]
fn check_proves_the_key() {
    let builder = Cluster::builder().segment_size_mb(1);
    let bed = Archived::start_encrypted(builder, Store::local(), secret::passphrase);
    let shown = bed.agent.run(&["check"]).expect_success().stdout;
    assert!(shown.contains("repository main: key"), "{shown}");
    assert!(shown.contains("opens slot 0, the only one"), "{shown}");
    let wrong = secret::file(&bed.agent, "wrong", "another passphrase entirely");
    let agent = secret::other_agent(&bed, &[&format!("passphrase_file = \"{}\"", wrong.display())]);
    let shown = agent.run(&["check", "--no-switch"]).expect_status(3).stdout;
    assert!(shown.contains("failed") && shown.contains("does not open its key slot"), "{shown}");
    // A repository that is not encrypted, where one with a key is meant, is not taken for it.
    let plain = Store::local();
    Agent::with(&bed.cluster, &plain).init(&[]).expect_success();
    user::give_tree(plain.root().unwrap());
    let agent = Agent::with(&bed.cluster, &plain);
    let agent = secret::passphrase(agent);
    let shown = agent.run(&["check", "--no-switch"]).expect_status(3).stdout;
    assert!(shown.contains("it is not encrypted, and a key is configured for it"), "{shown}");
}
