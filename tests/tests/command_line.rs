//! What people type: the configuration checked as a file, and options that are misspelt. No server is needed.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use walpoint_tests::dir::TestDir;
use walpoint_tests::process::{self, Output};
use walpoint_tests::{testbed, user};

fn run(program: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new(testbed::under_test(program));
    command.args(arguments).env_remove("WALPOINT_CONFIG").current_dir("/");
    process::run(user::become_user(&mut command), Duration::from_secs(30))
}

fn config(dir: &TestDir, text: &str) -> String {
    let path = dir.join("walpoint.toml");
    fs::write(&path, text).expect("a file");
    user::give(&path);
    path.to_str().expect("a path").to_owned()
}

/// The address leads nowhere and the secret is not there: a check of the file opens neither.
#[test]
fn a_configuration_is_checked_without_opening_what_it_names() {
    let dir = TestDir::new();
    let sound = "[repository.far]
url = \"s3://backups/prod\"
endpoint = \"https://192.0.2.1:9\"
access_key_id = \"k\"
secret_access_key_file = \"/missing\"
key_file = \"/missing.key\"

[cluster.main]
repositories = [\"far\"]
pgdata = \"/missing/data\"
";
    let path = config(&dir, sound);
    let told = run("archive-agent", &["config", "check", "--config", &path]).expect_success();
    assert_eq!(
        told.stdout,
        format!(
            "{path}: ok\n  cluster main: repository far, pgdata /missing/data\n  repository far: s3://backups/prod\n"
        )
    );
    assert!(told.took < Duration::from_secs(5), "{told:#?}");

    let path = config(&dir, &sound.replace("far\"", "near\"").replace("endpoint", "endpiont"));
    let told = run("archive-agent", &["config", "check", "--config", &path]).expect_status(2);
    let lines: Vec<&str> = told.stdout.lines().collect();
    let expected = [
        format!("{path}:3: [repository.far]: unknown key \"endpiont\""),
        "HINT: Perhaps you meant \"endpoint\".".to_owned(),
        format!(
            "{path}:9: [cluster.main]: \"repositories\" names \"near\", but there is no [repository.near]"
        ),
        "DETAIL: There is: far.".to_owned(),
    ];
    assert!(expected.iter().all(|line| lines.contains(&line.as_str())), "{told:#?}");
    assert!(told.stderr.contains("problem"), "{told:#?}");
    let json = run("archive-agent", &["config", "check", "--json", "--config", &path]).expect_status(2);
    let json: serde_json::Value = serde_json::from_str(&json.stdout).expect("JSON");
    assert_eq!(
        (&json["errors"][0]["line_number"], &json["errors"][0]["key"], &json["errors"][0]["hint"]),
        (&3.into(), &"endpiont".into(), &"Perhaps you meant \"endpoint\".".into()),
        "{json:#}"
    );
    assert_eq!(json["clusters"], serde_json::json!([]), "{json:#}");

    // Other commands name the same problems, and all of them.
    let told = run("archive-agent", &["status", "--config", &path]).expect_status(2);
    assert!(
        told.stderr.contains("line 3, [repository.far]") && told.stderr.contains("line 9, [cluster.main]"),
        "{told:#?}"
    );
    let missing = dir.join("missing.toml");
    assert!(!Path::new(&missing).exists());
    run("archive-agent", &["config", "check", "--config", missing.to_str().expect("a path")])
        .expect_status(2);
}

/// Each program names the option that was probably meant, and ends as for any wrong command line.
#[test]
fn a_misspelt_option_names_the_nearest_one() {
    for (program, arguments, status, meant) in [
        ("archive-agent", &["backup", "--labl", "x"][..], 2, "'--label'"),
        ("archive-agent", &["verify", "--smaple", "10%"], 2, "'--sample'"),
        ("archive-agent", &["status", "--cluter", "main"], 2, "'--cluster'"),
        ("restore-agent", &["plan", "--target-tme", "now"], 2, "'--target-time'"),
        ("restore-agent", &["plan", "--repos", "main"], 2, "'--repo'"),
        ("archive-push", &["--sokcet", "s", "pg_wal/x"], 2, "'--socket'"),
        ("restore-fetch", &["--socket", "s", "--clustre", "main", "x", "y"], 255, "'--cluster'"),
    ] {
        let told = run(program, arguments).expect_status(status).stderr;
        assert!(told.contains(meant), "{program} {arguments:?}: {told}");
    }
    let told = run("archive-agent", &["bakcup"]).expect_status(2).stderr;
    assert!(told.contains("'backup'"), "{told}");
}

#[test]
fn logs_are_text_or_json_as_asked() {
    let dir = TestDir::new();
    let path = config(&dir, "");
    for (program, command) in [("archive-agent", "status"), ("restore-agent", "plan")] {
        let log = |options: &[&str]| {
            let arguments = [&[command, "--config", &path], options].concat();
            run(program, &arguments).expect_status(2).stderr
        };
        let is_json =
            |log: &str| log.lines().all(|line| serde_json::from_str::<serde_json::Value>(line).is_ok());
        assert!(!is_json(&log(&[])) && !is_json(&log(&["--json", "--log-format", "text"])));
        for options in [&["--log-format", "json"][..], &["--json"]] {
            let log = log(options);
            assert!(is_json(&log) && log.contains("no [cluster.NAME]"), "{program} {options:?}: {log}");
        }
    }
}

/// A log that cannot be written is lost: its disk is full, and the status is that of the work.
#[test]
fn a_full_standard_error_changes_no_exit_status() {
    let dir = TestDir::new();
    let text = "[repository.near]\nurl = \"file:///missing/repo\"\n\n[cluster.main]\nrepositories = [\"near\"]\n\
                pgdata = \"/missing/data\"\nconninfo = \"host=/missing\"\n";
    let path = config(&dir, text);
    for (program, arguments) in
        [("archive-agent", &["status"][..]), ("archive-agent", &["backup"]), ("restore-agent", &["plan"])]
    {
        let started = || {
            let mut command = Command::new(testbed::under_test(program));
            command.args(arguments).env("WALPOINT_CONFIG", &path).current_dir("/");
            user::become_user(&mut command);
            command
        };
        let status = |mut command: Command, errors: fs::File| {
            command.stdout(Stdio::null()).stderr(errors).status().expect("a process").code()
        };
        let null = fs::File::options().write(true).open("/dev/null").expect("a device");
        let full = fs::File::options().write(true).open("/dev/full").expect("a device");
        let expected = status(started(), null);
        assert_ne!(expected, Some(0), "{program} {arguments:?} logs nothing");
        assert_eq!(status(started(), full), expected, "{program} {arguments:?}");
    }
}

/// Another user than the one who installs runs the clients, and none but that one may replace them: whatever the umask is.
#[test]
fn what_is_installed_is_everybodys_to_use_and_nobodys_to_replace() {
    for umask in ["000", "077"] {
        let dir = TestDir::new();
        for command in ["install-clients", "man"] {
            let place = dir.join(command).join("below");
            let script = format!("umask {umask}; exec \"$0\" {command} \"$1\"");
            let mut shell = Command::new("sh");
            shell.args(["-c", &script]).arg(testbed::under_test("archive-agent")).arg(&place);
            process::run(user::become_user(&mut shell), Duration::from_secs(30)).expect_success();
            let mode = |path: &Path| fs::metadata(path).expect("it is there").permissions().mode() & 0o777;
            assert_eq!((mode(&dir.join(command)), mode(&place)), (0o755, 0o755), "{command}, umask {umask}");
            let wanted = if command == "man" { 0o644 } else { 0o755 };
            for entry in fs::read_dir(&place).expect("a directory") {
                let path = entry.expect("an entry").path();
                assert_eq!(mode(&path), wanted, "{}, umask {umask}", path.display());
            }
        }
    }
}
