//! The build script of all four programs: tells `--version` which commit they are built from.
//!
//! Sets `WALPOINT_VERSION` to the version and, in brackets, the commit: `0.1.0 (0123456789ab)`, with `-dirty` behind it when
//! files that git knows differ from that commit. `$WALPOINT_COMMIT`, if set, stands in for git: for builds that have the
//! sources only. Without either it is the version alone.

use std::env;
use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-env-changed=WALPOINT_COMMIT");
    let version = env::var("CARGO_PKG_VERSION").unwrap_or_default();
    let given = env::var("WALPOINT_COMMIT").ok().filter(|commit| !commit.is_empty());
    match given.or_else(commit) {
        Some(commit) => println!("cargo::rustc-env=WALPOINT_VERSION={version} ({commit})"),
        None => println!("cargo::rustc-env=WALPOINT_VERSION={version}"),
    }
}

/// The commit that is checked out here. `None` without git, and in sources that were unpacked inside another project's
/// repository.
fn commit() -> Option<String> {
    git(&["ls-files", "--error-unmatch", "Cargo.toml"])?;
    let commit = git(&["rev-parse", "--short=12", "HEAD"])?;
    // The first names the branch, the second grows with every commit and checkout.
    for path in ["HEAD", "logs/HEAD"] {
        watch(&git(&["rev-parse", "--git-path", path])?);
    }
    // Whatever makes these sources differ from the commit makes the programs be built again anyway.
    let manifest = env::current_dir().ok()?;
    let workspace = manifest.ancestors().find(|directory| directory.join("Cargo.lock").exists())?;
    for source in [".".as_ref(), workspace.join("shared").as_path(), &workspace.join("Cargo.lock")] {
        watch(&source.display().to_string());
    }
    let changed = git(&["--no-optional-locks", "status", "--porcelain", "--untracked-files=no"])?;
    Some(if changed.is_empty() { commit } else { commit + "-dirty" })
}

/// Runs this script again when a file changes. One that is not there would have it run at every build.
fn watch(path: &str) {
    if Path::new(path).exists() {
        println!("cargo::rerun-if-changed={path}");
    }
}

/// What git prints, if there is one and it succeeds.
fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}
