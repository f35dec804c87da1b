//! `--version` of all four programs names the commit they were built from, in a release as in a build by hand.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use walpoint_tests::dir::TestDir;
use walpoint_tests::process::{self, Output};
use walpoint_tests::{testbed, user};

const LIMIT: Duration = Duration::from_secs(60);

fn top() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a parent")
}

/// Is `text` a version with a commit, or without one where git knows nothing?
fn is_version(text: &str, with_commit: bool) -> bool {
    let version = env!("CARGO_PKG_VERSION");
    if !with_commit {
        return text == version;
    }
    let commit = text.strip_prefix(&format!("{version} (")).and_then(|rest| rest.strip_suffix(')'));
    let commit = commit.map(|commit| commit.strip_suffix("-dirty").unwrap_or(commit));
    commit.is_some_and(|c| (12..=40).contains(&c.len()) && c.bytes().all(|b| b.is_ascii_hexdigit()))
}

#[test]
fn all_four_programs_name_their_commit() {
    let git =
        Command::new("git").args(["ls-files", "--error-unmatch", "Cargo.toml"]).current_dir(top()).output();
    let with_commit = git.is_ok_and(|output| output.status.success());
    for program in ["archive-agent", "archive-push", "restore-agent", "restore-fetch"] {
        for option in ["--version", "-V"] {
            let mut command = Command::new(testbed::under_test(program));
            command.arg(option).current_dir("/");
            let told = process::run(user::become_user(&mut command), LIMIT).expect_success().stdout;
            let version = told.trim_end().strip_prefix(program).and_then(|rest| rest.strip_prefix(' '));
            assert!(version.is_some_and(|version| is_version(version, with_commit)), "{told:?}");
        }
    }
}

/// Each agent answers a command of the other one with the command line that was meant, and exits as for any wrong command line.
#[test]
fn a_command_of_the_other_agent_is_answered_with_its_command_line() {
    let meant = |program: &str, arguments: &[&str]| {
        let mut command = Command::new(testbed::under_test(program));
        command.args(arguments).current_dir("/");
        process::run(user::become_user(&mut command), LIMIT).expect_status(2).stderr
    };
    let told = meant("archive-agent", &["restore", "--pgdata", "/var/lib/a b", "--target-name", "x"]);
    assert!(told.contains("HINT: restore is a command of restore-agent: "), "{told}");
    assert!(told.contains("restore-agent restore --pgdata '/var/lib/a b' --target-name x"), "{told}");
    // Each lists the commands of the other one: all of them, and no other.
    for (one, other) in [("archive-agent", "restore-agent"), ("restore-agent", "archive-agent")] {
        let help = process::run(
            user::become_user(Command::new(testbed::under_test(other)).arg("--help").current_dir("/")),
            LIMIT,
        );
        let help = help.expect_success().stdout;
        let listed = help.lines().skip_while(|line| !line.starts_with("Commands:")).skip(1);
        let listed = listed.take_while(|line| !line.is_empty()).filter(|line| !line.starts_with("    "));
        let commands: Vec<&str> = listed.filter_map(|line| line.split_whitespace().next()).collect();
        assert!(commands.len() > 4, "{help}");
        for command in commands.into_iter().filter(|command| *command != "help") {
            let told = meant(one, &[command]);
            assert!(told.contains(&format!("command of {other}: {other} {command}")), "{command}: {told}");
        }
    }
    // What another tool calls a list of backups.
    assert!(meant("archive-agent", &["backup-list"]).contains("restore-agent list"));
}

/// The build script, and sources with a package in them that it can run for.
struct Sources {
    dir: TestDir,
    script: PathBuf,
}

impl Sources {
    fn new() -> Sources {
        let dir = TestDir::new();
        let script = dir.join("version");
        let mut rustc = Command::new("rustc");
        rustc
            .args(["--edition=2024", "--crate-name=version", "-o"])
            .arg(&script)
            .arg(top().join("shared/version.rs"));
        process::run(&mut rustc, LIMIT).expect_success();
        fs::create_dir_all(dir.join("sources/package")).expect("directories");
        fs::create_dir_all(dir.join("sources/shared")).expect("directories");
        fs::write(dir.join("sources/Cargo.lock"), "").expect("a file");
        fs::write(dir.join("sources/package/Cargo.toml"), "[package]\n").expect("a file");
        Sources { dir, script }
    }

    fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        command.current_dir(self.dir.join("sources/package"));
        for name in ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "WALPOINT_COMMIT"] {
            command.env_remove(name);
        }
        command.env("CARGO_PKG_VERSION", "1.2.3").env("GIT_CONFIG_GLOBAL", "/dev/null");
        command.env("GIT_CONFIG_SYSTEM", "/dev/null");
        for who in ["AUTHOR", "COMMITTER"] {
            command
                .env(format!("GIT_{who}_NAME"), "nobody")
                .env(format!("GIT_{who}_EMAIL"), "nobody@localhost");
        }
        command
    }

    fn git(&self, arguments: &[&str]) -> Output {
        process::run(self.command("git").args(arguments), LIMIT).expect_success()
    }

    /// What the script tells cargo, and the version in it.
    fn describe(&self, commit: Option<&str>) -> (String, String) {
        let mut command = self.command(&self.script);
        command.envs(commit.map(|commit| ("WALPOINT_COMMIT", commit)));
        let told = process::run(&mut command, LIMIT).expect_success().stdout;
        let version = told.lines().find_map(|line| line.strip_prefix("cargo::rustc-env=WALPOINT_VERSION="));
        let version = version.unwrap_or_else(|| panic!("no version: {told}")).to_owned();
        (told, version)
    }
}

#[test]
fn the_commit_comes_from_git_or_from_the_environment() {
    let sources = Sources::new();
    assert_eq!(sources.describe(None).1, "1.2.3");
    assert_eq!(sources.describe(Some("")).1, "1.2.3");
    assert_eq!(sources.describe(Some("0123456789ab")).1, "1.2.3 (0123456789ab)");

    // Another project's repository around them says nothing about these sources.
    sources.git(&["init", "--quiet", ".."]);
    sources.git(&["commit", "--quiet", "--allow-empty", "--message=another project"]);
    assert_eq!(sources.describe(None).1, "1.2.3");

    sources.git(&["add", "..", "."]);
    sources.git(&["commit", "--quiet", "--message=sources"]);
    let commit = sources.git(&["rev-parse", "HEAD"]).stdout[..12].to_owned();
    let (told, version) = sources.describe(None);
    assert_eq!(version, format!("1.2.3 ({commit})"));
    for watched in ["HEAD", "logs/HEAD", "shared", "Cargo.lock", "=."] {
        assert!(
            told.lines().any(|l| l.starts_with("cargo::rerun-if-changed=") && l.ends_with(watched)),
            "{told}"
        );
    }
    assert_eq!(sources.describe(Some("fedcba987654")).1, "1.2.3 (fedcba987654)");

    fs::write(sources.dir.join("sources/untracked"), "").expect("a file");
    assert_eq!(sources.describe(None).1, version);
    fs::write(sources.dir.join("sources/package/Cargo.toml"), "[package] # changed\n").expect("a file");
    assert_eq!(sources.describe(None).1, format!("1.2.3 ({commit}-dirty)"));

    // A worktree has a HEAD of its own.
    sources.git(&["checkout", "--quiet", "."]);
    sources.git(&["worktree", "add", "--quiet", "--detach", "../../beside"]);
    fs::remove_dir_all(sources.dir.join("sources/package")).expect("remove");
    let beside = sources.dir.join("beside/package");
    let mut command = sources.command(&sources.script);
    let told = process::run(command.current_dir(beside), LIMIT).expect_success().stdout;
    assert!(told.contains(&format!("WALPOINT_VERSION=1.2.3 ({commit})")), "{told}");
    assert!(told.contains("/worktrees/beside/logs/HEAD"), "{told}");
}
