//! K5: `check` tries what archiving and backups need and names what does not work; `init` makes, joins and describes a
//! repository, and finds out a store that cannot be trusted before anything is trusted to it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use walpoint_tests::agent::Agent;
use walpoint_tests::archived::Archived;
use walpoint_tests::cluster::{Cluster, Shutdown};
use walpoint_tests::http_faults::{FaultRule, HttpProxy};
use walpoint_tests::process::{self, Output};
use walpoint_tests::seaweed::Credentials;
use walpoint_tests::store::Store;
use walpoint_tests::{needs_root, user, wait};

const LIMIT: Duration = Duration::from_secs(120);

/// A cluster that is not running, in a directory with room for more, and a configuration file that is not there yet.
struct Bed {
    cluster: Cluster,
    agent: Agent,
    config: PathBuf,
}

impl Bed {
    fn new() -> Bed {
        Bed::of(Cluster::builder().init())
    }

    fn of(cluster: Cluster) -> Bed {
        let agent = Agent::new(&cluster);
        let config = agent.place().join("new.toml");
        Bed { cluster, agent, config }
    }

    /// `archive-agent init` for this cluster with more arguments.
    fn init(&self, arguments: &[&str]) -> Output {
        let pgdata = self.cluster.pgdata().display().to_string();
        let conninfo = self.cluster.conninfo();
        let socket = self.agent.push_socket().display().to_string();
        let mut all = vec!["init", "--pgdata", &pgdata, "--conninfo", &conninfo, "--push-socket", &socket];
        all.extend(arguments);
        if !arguments.contains(&"--cluster") {
            all.extend(["--cluster", "main"]);
        }
        self.run(&all)
    }

    /// Any command with the new configuration.
    fn run(&self, arguments: &[&str]) -> Output {
        let config = self.config.display().to_string();
        let mut all = arguments.to_vec();
        all.extend(["--config", &config]);
        process::run(&mut self.agent.command("archive-agent", all), LIMIT)
    }
}

/// Arguments that reach a store.
fn store_arguments(store: &Store, place: &Path) -> Vec<String> {
    let mut all = vec!["--repo".to_owned(), store.url()];
    if let Some(port) = store.port() {
        for ((_, value), key) in store.env().iter().zip(["access-key-id", "secret-access-key"]) {
            let file = place.join(key);
            fs::write(&file, value).unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
            user::give(&file);
            all.extend([format!("--{key}-file"), file.display().to_string()]);
        }
        all.extend(["--endpoint".to_owned(), format!("http://127.0.0.1:{port}")]);
        all.extend(["--region", "us-east-1", "--path-style", "--allow-http"].map(str::to_owned));
    }
    all
}

fn as_str(arguments: &[String]) -> Vec<&str> {
    arguments.iter().map(String::as_str).collect()
}

#[track_caller]
fn json(output: &Output) -> Value {
    serde_json::from_str(&output.stdout)
        .unwrap_or_else(|e| panic!("{e}: {} {}", output.stdout, output.stderr))
}

/// The grade of one line of `check --json`.
#[track_caller]
fn grade(report: &Value, what: &str) -> String {
    let lines = report["checks"].as_array().unwrap();
    let line = lines.iter().find(|line| line["check"] == what);
    line.unwrap_or_else(|| panic!("no line {what}: {report:#}"))["result"].as_str().unwrap().to_owned()
}

/// What `init` prints and writes is enough: PostgreSQL archives with the printed settings, without another file, with and
/// without a daemon; `check` finds everything right.
#[test]
fn what_init_prints_works_on_every_store() {
    for store in Store::all_good() {
        let mut bed = Bed::new();
        let mut arguments = store_arguments(&store, bed.agent.place());
        arguments.push("--json".to_owned());
        let told = json(&bed.init(&as_str(&arguments)).expect_success());
        assert_eq!(
            (&told["config_change"], &told["cluster"]),
            (&"written".into(), &"main".into()),
            "{told:#}"
        );
        assert_eq!(told["repositories"][0]["repository_created"], true);
        let mode = fs::metadata(&bed.config).unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "nobody else's business");
        for setting in told["settings"].as_array().unwrap() {
            bed.cluster.set(setting["name"].as_str().unwrap(), setting["value"].as_str().unwrap());
        }
        bed.cluster.start();
        let segment = bed.cluster.switch_wal();
        bed.cluster.wait_archived(&segment);
        let key = format!("/{segment}");
        assert!(store.back_door().list("clusters").iter().any(|stored| stored.ends_with(&key)));

        let report = json(&bed.run(&["check", "--json"]).expect_success());
        for what in
            ["data directory", "connection", "rights", "repository main: lineage", "archiving", "files"]
        {
            assert_eq!(grade(&report, what), "ok", "{report:#}");
        }
        assert_eq!(grade(&report, "daemon"), "warning");
        assert_eq!(report["failed_count"], 0);
        if store.port().is_some() {
            let secret = bed.agent.place().join("secret-access-key");
            fs::set_permissions(&secret, fs::Permissions::from_mode(0o604)).unwrap();
            let report = json(&bed.run(&["check", "--json"]).expect_success());
            assert_eq!(grade(&report, "repository main: secrets"), "warning", "{report:#}");
        }

        // Once more: nothing changes, and the server's settings are recognised.
        let before = fs::read(&bed.config).unwrap();
        let objects = store.back_door().list("");
        let again = json(&bed.init(&as_str(&arguments)).expect_success());
        assert_eq!(again["config_change"], "unchanged");
        assert_eq!(
            (&again["repositories"][0]["repository_created"], &again["repositories"][0]["lineage_created"]),
            (&false.into(), &false.into())
        );
        assert!(
            again["settings"].as_array().unwrap().iter().all(|s| s["current_value"].is_string()),
            "{again:#}"
        );
        let text = bed.init(&as_str(&arguments[..arguments.len() - 1])).expect_success().stdout;
        assert!(
            text.contains("archive_mode = 'on'  # set already") && text.contains("All of it is set"),
            "{text}"
        );
        assert_eq!(fs::read(&bed.config).unwrap(), before);
        let documents = |keys: &[String]| keys.iter().filter(|key| key.contains("lineages/")).count();
        assert_eq!(documents(&objects), documents(&store.back_door().list("")));
    }
}

/// The printed SQL makes a role that may do all of it; without it each missing right is named with its GRANT.
#[test]
fn the_role_of_init_has_every_right() {
    let mut bed = Bed::new();
    let store = Store::local();
    let arguments = store_arguments(&store, bed.agent.place());
    let told = json(&bed.init(&[&as_str(&arguments)[..], &["--json"]].concat()).expect_success());
    for setting in told["settings"].as_array().unwrap() {
        bed.cluster.set(setting["name"].as_str().unwrap(), setting["value"].as_str().unwrap());
    }
    bed.cluster.start();
    bed.cluster.psql("create role walpoint login");
    let text = fs::read_to_string(&bed.config).unwrap().replace("user=postgres", "user=walpoint");
    fs::write(&bed.config, text).unwrap();
    let output = bed.run(&["check", "--json"]).expect_status(3);
    assert!(output.stdout.contains("GRANT pg_read_all_settings"), "{}", output.stdout);
    bed.cluster.psql("grant pg_read_all_settings to walpoint");
    let report = json(&bed.run(&["check", "--json", "--no-switch"]).expect_status(3));
    assert_eq!(grade(&report, "rights"), "failed");
    assert!(
        report.to_string().contains("GRANT EXECUTE ON FUNCTION pg_catalog.pg_backup_start"),
        "{report:#}"
    );
    bed.cluster.psql(told["role_sql"].as_str().unwrap());
    let report = json(&bed.run(&["check", "--json"]).expect_success());
    assert_eq!((grade(&report, "rights"), grade(&report, "archiving")), ("ok".to_owned(), "ok".to_owned()));
    bed.run(&["backup"]).expect_success();
    bed.run(&["restore-point", "by-the-role"]).expect_success();
    bed.cluster.psql("revoke execute on function pg_create_restore_point(text) from walpoint");
    let report = json(&bed.run(&["check", "--json", "--no-switch"]));
    assert_eq!(grade(&report, "rights"), "warning", "{report:#}");
    assert_eq!(grade(&report, "archive_timeout"), "ok", "{report:#}");
    bed.cluster.psql("alter system set archive_timeout = 0");
    bed.cluster.reload();
    bed.cluster.wait_for("show archive_timeout", "0");
    let open = json(&bed.run(&["check", "--json", "--no-switch"]));
    assert_eq!(grade(&open, "archive_timeout"), "warning", "{open:#}");
    assert!(
        report.to_string().contains("GRANT EXECUTE ON FUNCTION pg_catalog.pg_create_restore_point(text)"),
        "{report:#}"
    );
}

/// A store that accepts `If-None-Match` and overwrites all the same is refused before anything is trusted to it.
#[test]
fn a_store_that_overwrites_is_found_out() {
    let bed = Bed::new();
    let store = Store::rclone();
    let arguments = store_arguments(&store, bed.agent.place());
    let output = bed.init(&as_str(&arguments)).expect_status(1);
    assert!(output.stderr.contains("overwrote") && output.stderr.contains("look-first"), "{}", output.stderr);
    assert!(
        !bed.config.exists() && store.back_door().get("walpoint.json").is_none(),
        "nothing was trusted to it"
    );
}

/// Credentials that may not write, may not list, or are nobody's; a bucket that is not there.
#[test]
fn a_store_that_denies_is_told_apart() {
    let mut store = Store::s3();
    for (credentials, told) in [(Credentials::reader(), "denied"), (Credentials::unknown(), "denied")] {
        let bed = Bed::new();
        store.set_credentials(credentials);
        let output = bed.init(&as_str(&store_arguments(&store, bed.agent.place()))).expect_status(1);
        assert!(output.stderr.contains(told), "{}", output.stderr);
        assert!(!bed.config.exists());
    }
    store.set_credentials(Credentials::full());
    // S3 proper answers 403 for a missing key to whoever may not list.
    let proxy = HttpProxy::to(store.port().unwrap());
    proxy.set(vec![FaultRule::new("GET", "walpoint.json", 403, "AccessDenied")]);
    let bed = Bed::new();
    let mut arguments = store_arguments(&store, bed.agent.place());
    let endpoint = format!("http://127.0.0.1:{}", store.port().unwrap());
    for argument in &mut arguments {
        if *argument == endpoint {
            *argument = format!("http://127.0.0.1:{}", proxy.port());
        }
    }
    let output = bed.init(&as_str(&arguments)).expect_status(1);
    assert!(output.stderr.contains("s3:ListBucket"), "{}", output.stderr);

    let mut arguments = store_arguments(&store, bed.agent.place());
    arguments[1] = "s3://no-such-bucket/repo".to_owned();
    let output = bed.init(&as_str(&arguments)).expect_status(1);
    assert!(output.stderr.contains("no-such-bucket"), "{}", output.stderr);
}

/// A local repository: the last directory is made, a typo further up is not; a directory that cannot be written to, or that
/// lies inside PGDATA or around it, is refused.
#[test]
fn directories_that_cannot_be_a_repository() {
    let bed = Bed::new();
    let place = bed.agent.place().to_owned();
    let at = |path: &Path| format!("file://{}", path.display());
    let output = bed.init(&["--repo", &at(&place.join("typo/backup"))]).expect_status(1);
    assert!(output.stderr.contains("typo/backup does not exist"), "{}", output.stderr);
    assert!(!place.join("typo").exists() && !bed.config.exists());

    let closed = place.join("closed");
    fs::create_dir(&closed).unwrap();
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o555)).unwrap();
    let output = bed.init(&["--repo", &at(&closed)]).expect_status(1);
    assert!(output.stderr.contains("closed"), "{}", output.stderr);

    let output = bed.init(&["--repo", &at(&bed.cluster.pgdata().join("backup"))]).expect_status(2);
    assert!(output.stderr.contains("inside the data directory"), "{}", output.stderr);
    assert!(!bed.cluster.pgdata().join("backup").exists());
    let around = bed.cluster.pgdata().parent().unwrap();
    let output = bed.init(&["--repo", &at(around)]).expect_status(2);
    assert!(output.stderr.contains("would contain the data directory"), "{}", output.stderr);
    assert!(!around.join("walpoint.json").exists());

    bed.init(&["--repo", &at(&place.join("backup"))]).expect_success();
    // Write-protected later on: check says so.
    let repository = place.join("backup");
    fs::set_permissions(&repository, fs::Permissions::from_mode(0o500)).unwrap();
    let report = json(&bed.run(&["check", "--json"]).expect_status(3));
    assert_eq!(grade(&report, "repository main"), "failed", "{report:#}");
    fs::set_permissions(&repository, fs::Permissions::from_mode(0o700)).unwrap();
    // Not mounted: never mistaken for an empty repository.
    fs::rename(&repository, place.join("moved")).unwrap();
    let report = json(&bed.run(&["check", "--json"]).expect_status(3));
    assert_eq!(grade(&report, "repository main"), "failed");
    fs::create_dir(&repository).unwrap();
    user::give(&repository);
    let report = bed.run(&["check", "--json"]).expect_status(3).stdout;
    assert!(report.contains("walpoint.json"), "{report}");
}

/// Wrong usage is told as such, secrets are no arguments, and what is not offered is not accepted.
#[test]
fn arguments_that_are_refused() {
    let bed = Bed::new();
    let repo = format!("file://{}", bed.agent.place().join("r").display());
    for (arguments, told) in [
        (vec!["--repo", "ftp://x/y"], "ftp"),
        (vec!["--repo", &repo, "--encrypt", "--passphrase", "x"], "--passphrase"),
        (vec!["--repo", &repo, "--secret-access-key", "x"], "--secret-access-key"),
        (vec!["--repo", &repo, "--store-option", "regoin=x"], "regoin"),
        (vec!["--repo", "gs://backups", "--store-option", "sse=AES256"], "\"sse\" is a setting of S3"),
        (vec!["--repo", &repo, "--cluster", "Prod"], "cluster name"),
        (vec![], "--repo"),
    ] {
        let output = bed.init(&arguments).expect_status(2);
        assert!(output.stderr.contains(told), "{arguments:?}: {}", output.stderr);
    }
    let pgdata = bed.cluster.pgdata().display().to_string();
    let password = [
        "init",
        "--cluster",
        "main",
        "--repo",
        &repo,
        "--pgdata",
        &pgdata,
        "--conninfo",
        "user=u password=p",
    ];
    let output = bed.run(&password).expect_status(2);
    assert!(output.stderr.contains("password file"), "{}", output.stderr);
    let nowhere = ["init", "--cluster", "main", "--repo", &repo, "--pgdata", "/nonexistent"];
    assert!(bed.run(&nowhere).expect_status(1).stderr.contains("/nonexistent"));
    assert!(!bed.config.exists() && !bed.agent.place().join("r").exists());
}

/// K5: what only another provider has would do nothing in the table where it stands, so it is an error with its line.
#[test]
fn a_key_of_another_provider_is_refused_with_file_and_line() {
    let bed = Bed::new();
    let path = bed.config.display().to_string();
    for (url, key, value, told) in [
        (
            "gs://backups",
            "sse",
            "\"aws:kms\"",
            "a setting of S3 (s3://), but \"url\" leads to Google Cloud Storage (gs://)",
        ),
        (
            "s3://backups",
            "account",
            "\"x\"",
            "a setting of Azure Blob Storage (az://), but \"url\" leads to S3 (s3://)",
        ),
        (
            "file:///backups",
            "allow_http",
            "false",
            "a setting of S3 (s3://), Google Cloud Storage (gs://) and Azure Blob Storage (az://), but \"url\" leads to a directory",
        ),
    ] {
        let table = format!("[repository.main]\n# Our own.\n  {key} = {value}\nurl = \"{url}\"\n");
        fs::write(&bed.config, format!("{table}\n[cluster.main]\nrepositories = [\"main\"]\n")).unwrap();
        user::give(&bed.config);
        let whole = format!(
            "the configuration {path:?} is wrong:\nline 3, [repository.main]: \"{key}\" is {told}\nHINT: Remove \"{key}\", or \
             correct \"url\"."
        );
        for arguments in [["status"], ["check"]] {
            let output = bed.run(&arguments).expect_status(2);
            assert!(output.stderr.contains(&whole), "{}", output.stderr);
        }
    }
}

/// A configuration file that is there is extended by new clusters, and otherwise never touched.
#[test]
fn an_existing_configuration_is_extended_or_left_alone() {
    let bed = Bed::new();
    let place = bed.agent.place();
    let repo = |name: &str| format!("file://{}", place.join(name).display());
    bed.init(&["--repo", &repo("one")]).expect_success();
    let other = Cluster::builder().in_dir(bed.cluster.dir()).init();
    let second = Bed { agent: Agent::new(&other), config: bed.config.clone(), cluster: other };
    second.init(&["--repo", &repo("one"), "--cluster", "other"]).expect_success();
    let text = fs::read_to_string(&bed.config).unwrap();
    assert_eq!((text.matches("[repository.").count(), text.matches("[cluster.").count()), (1, 2), "{text}");
    // A comment of the user's own survives all of this.
    fs::write(&bed.config, text.clone() + "# mine\n").unwrap();
    let output = bed.init(&["--repo", &repo("two"), "--repo-name", "offsite"]).expect_status(1);
    assert!(output.stdout.contains("[repository.offsite]"), "{}", output.stdout);
    assert!(output.stdout.contains("repositories = [\"main\", \"offsite\"]"), "{}", output.stdout);
    assert_eq!(fs::read_to_string(&bed.config).unwrap(), text.clone() + "# mine\n");
    fs::write(&bed.config, text + "look_ahed = 1\n").unwrap();
    let output = bed.init(&["--repo", &repo("one")]).expect_status(2);
    assert!(output.stderr.contains("look_ahed") && output.stderr.contains("line"), "{}", output.stderr);
}

/// Settings that no repository can be opened with are wrong usage for every command that only reads, and a secret in a URL is not shown.
#[test]
fn wrong_settings_have_the_status_of_wrong_usage() {
    let bed = Bed::new();
    let write = |table: &str| {
        let cluster = "[cluster.main]\nrepositories = [\"main\"]\n";
        fs::write(&bed.config, format!("[repository.main]\n{table}\n{cluster}")).unwrap();
        user::give(&bed.config);
    };
    let reading = [&["status"][..], &["verify"], &["expire"], &["hold", "list"]];
    write("url = \"s3://b/p\"\nendpoint = \"http://127.0.0.1:1\"");
    for command in reading {
        let refused = bed.run(command).expect_status(2);
        let told = format!("{}{}", refused.stdout, refused.stderr);
        assert!(told.contains("allow_http"), "{refused:#?}");
    }
    write("url = \"az://c/p?sig=hidden\"");
    for command in [&reading[..], &[&["config", "check"]]].concat() {
        let refused = bed.run(command);
        assert!(!refused.success() && !format!("{refused:?}").contains("hidden"), "{refused:#?}");
    }
}

/// A server to which only this shell's environment leads is not the daemon's: that is told, unless `conninfo` says where it is.
#[test]
fn a_server_found_by_the_environment_alone_is_told() {
    let mut bed = Bed::new();
    bed.cluster.start();
    let repo = format!("file://{}", bed.agent.place().join("r").display());
    let (pgdata, conninfo) = (bed.cluster.pgdata().display().to_string(), bed.cluster.conninfo());
    let init = |config: &str, more: &[&str]| {
        let config = bed.agent.place().join(config).display().to_string();
        let all = ["init", "--cluster", "main", "--repo", &repo, "--pgdata", &pgdata, "--config", &config];
        let mut command = bed.agent.command("archive-agent", [&all, more].concat());
        command.env("PGHOST", bed.cluster.socket_dir()).env("PGPORT", bed.cluster.port().to_string());
        process::run(command.env("PGUSER", "postgres"), LIMIT).expect_success()
    };
    for (config, more, told) in
        [("shell.toml", vec!["--json"], true), ("own.toml", vec!["--json", "--conninfo", &conninfo], false)]
    {
        let output = init(config, &more);
        assert_eq!(
            output.stdout.contains("made with PGHOST, PGPORT of this environment"),
            told,
            "{output:#?}"
        );
    }
}

/// Another cluster under a name that is taken is refused; `--new-lineage` begins a path of its own.
#[test]
fn a_name_belongs_to_one_cluster() {
    let bed = Bed::new();
    let repo = format!("file://{}", bed.agent.place().join("r").display());
    bed.init(&["--repo", &repo]).expect_success();
    let mode = fs::metadata(bed.agent.place().join("r")).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o750, "a group may restore");
    let other = Bed::new();
    let output = other.init(&["--repo", &repo]).expect_status(1);
    assert!(
        output.stderr.contains("another cluster") && output.stderr.contains("--new-lineage"),
        "{}",
        output.stderr
    );
    let told = json(&other.init(&["--repo", &repo, "--new-lineage", "--json"]).expect_success());
    let lineage = told["repositories"][0]["lineage"].as_str().unwrap().to_owned();
    assert!(lineage.ends_with("-1"), "{lineage}");
    let splits_off = |told: &Value| told["checks"].to_string().contains("archives into a lineage of its own");
    assert!(!splits_off(&told), "{told}");
    let told = json(&bed.init(&["--repo", &repo, "--new-lineage", "--json"]).expect_success());
    let own = told["repositories"][0]["lineage"].as_str().unwrap();
    assert!(own.ends_with("-2") && own != lineage, "{own}");
    // The original of a copy may still be alive: it stays where it was.
    assert!(splits_off(&told), "{told}");
}

/// Readers go by the ack set that a lineage was registered with: `check` tells when the configuration has another.
#[test]
fn an_ack_set_that_is_not_the_lineages_is_told() {
    let cluster = Cluster::builder().init();
    let (main, second) = (Store::local(), Store::local());
    let agent = || Agent::with(&cluster, &main).repository("second", &second);
    agent().init(&[]).expect_success();
    let lines = |agent: Agent| {
        let report = json(&agent.run(&["check", "--json"]).expect_status(3));
        let all = report["checks"].as_array().unwrap().clone();
        all.into_iter().filter(|line| line["check"].as_str().unwrap().ends_with(": ack")).collect::<Vec<_>>()
    };
    assert_eq!(lines(agent()), Vec::<Value>::new());
    let told = lines(agent().cluster_line("ack = [\"main\"]"));
    assert_eq!(told.len(), 2, "one for each repository: {told:?}");
    for line in told {
        assert_eq!(line["result"], "warning");
        let found = line["message"].as_str().unwrap();
        assert!(found.contains("registered with main (") && found.contains(", second ("), "{line}");
    }
}

/// `check` on a cluster where much is wrong: each thing is a line, with what to do, and the status is 3.
#[test]
fn check_names_what_is_wrong() {
    let mut bed = Bed::of(Cluster::builder().checksums(false).init());
    let repo = format!("file://{}", bed.agent.place().join("r").display());
    bed.init(&["--repo", &repo]).expect_success();
    let report = json(&bed.run(&["check", "--json"]).expect_status(3));
    assert_eq!(
        (grade(&report, "data directory"), grade(&report, "connection")),
        ("ok".into(), "failed".into())
    );

    bed.cluster.start();
    let report = json(&bed.run(&["check", "--json"]).expect_status(3));
    assert_eq!(
        (grade(&report, "connection"), grade(&report, "archive settings")),
        ("ok".into(), "failed".into())
    );
    assert_eq!(
        (grade(&report, "page checksums"), grade(&report, "archiving")),
        ("warning".into(), "warning".into())
    );

    bed.cluster.stop(Shutdown::Fast);
    bed.cluster.set("archive_mode", "on");
    bed.cluster.set("archive_command", "/bin/true");
    bed.cluster.start();
    let output = bed.run(&["check", "--timeout", "2s"]).expect_status(3);
    let text = &output.stdout;
    assert!(text.contains("failed   archiving") && text.contains("somewhere else"), "{text}");
    assert!(text.contains("reload the daemon"), "{text}");
    assert!(text.contains("HINT: This does not call archive-push"), "{text}");

    bed.cluster.set("archive_command", "exit 3");
    bed.cluster.reload();
    let segment = bed.cluster.switch_wal();
    bed.cluster.wait_for("select last_failed_wal is not null from pg_stat_archiver", "t");
    let output = bed.run(&["check", "--timeout", "2s"]).expect_status(3);
    let text = &output.stdout;
    assert!(text.contains("failed   archiver") && text.contains(&segment), "{text}");
    assert!(output.stderr.contains("waiting up to 2s for PostgreSQL"), "{}", output.stderr);

    // The connection leads to another cluster, and to a copy of this one.
    let standby = bed.cluster.streaming_standby();
    let other = Cluster::builder().start();
    for (wrong, told) in [(&other, "another cluster"), (&standby, "another server than that of")] {
        let text = fs::read_to_string(&bed.config).unwrap();
        fs::write(&bed.config, text.replace(&bed.cluster.conninfo(), &wrong.conninfo())).unwrap();
        let found = bed.run(&["check"]).expect_status(3).stdout;
        assert!(found.contains(told), "{found}");
        fs::write(&bed.config, text).unwrap();
    }
}

/// Whoever is not PostgreSQL's user is told both uids.
#[test]
fn another_user_is_refused() {
    needs_root!();
    let bed = Bed::new();
    let repo = format!("file://{}", bed.agent.place().join("r").display());
    bed.init(&["--repo", &repo]).expect_success();
    for command in ["check", "backup", "init"] {
        let program = walpoint_tests::testbed::under_test("archive-agent");
        let mut command = std::process::Command::new(program)
            .arg(command)
            .arg("--config")
            .arg(&bed.config)
            .output()
            .unwrap();
        let text =
            String::from_utf8_lossy(&command.stderr).into_owned() + &String::from_utf8_lossy(&command.stdout);
        assert!(text.contains("runs as uid 0") && text.contains("belongs to uid"), "{text}");
        command.stdout.clear();
    }
}

/// What a restore to a point in time leaves in `postgresql.auto.conf` would stop every standby that is made from the server:
/// `check` names the settings and how to reset them, and says nothing once they are reset.
#[test]
fn check_names_recovery_settings_that_outlived_a_restore() {
    let bed = Archived::start(Cluster::builder().segment_size_mb(1), Store::local());
    bed.cluster.psql("create table t (n int)");
    bed.backup();
    let target = bed.cluster.lsn();
    bed.settle();
    let told = |agent: &Agent| agent.run(&["check", "--no-switch"]).stdout;
    assert!(!told(&bed.agent).contains("recovery settings"), "{}", told(&bed.agent));
    let copy = bed.restore_and_start("copy", &["--target-lsn", &target, "--target-action", "promote"]);
    copy.wait_promoted();
    let agent = Agent::with(&copy, &bed.store);
    let warned = told(&agent);
    assert!(warned.contains(&format!("recovery_target_lsn = '{target}'")), "{warned}");
    assert!(warned.contains("recovery_target_timeline = "), "{warned}");
    // Each in a call of its own, as psql runs what it is given.
    let words = warned.split_whitespace().collect::<Vec<_>>().join(" ");
    let (_, remedy) = words.split_once("As a superuser, run: psql ").expect("a command");
    let statements = remedy.split("-c \"").skip(1).filter_map(|rest| rest.split('"').next());
    let statements: Vec<&str> = statements.collect();
    assert!(statements.len() >= 3, "{warned}");
    statements.iter().for_each(|statement| drop(copy.psql(statement)));
    wait::until_true(Duration::from_secs(30), "they are reset", || {
        !told(&agent).contains("recovery settings")
    });
}
