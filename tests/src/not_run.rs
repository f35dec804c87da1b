//! Tests that need root and were started without: they are counted and named, never silently passed.

use std::io::Write;
use std::path::PathBuf;

use crate::{testbed, user};

/// The file that collects the names of tests that did not run; `make test` sums it up and CI fails when it is not empty.
pub fn file() -> PathBuf {
    let profile = testbed::profile_dir();
    profile.parent().unwrap_or(&profile).join("walpoint-not-run")
}

/// True when the test may go on; otherwise notes that `test` was not run.
pub fn may_run_as_root(test: &str) -> bool {
    if user::is_root() {
        return true;
    }
    println!("not run: {test} (needs root)");
    let mut file =
        std::fs::OpenOptions::new().create(true).append(true).open(file()).expect("note a test not run");
    writeln!(file, "{test} (needs root)").expect("note a test not run");
    false
}

/// First line of a test that mounts, traces other users' processes or changes owners.
#[macro_export]
macro_rules! needs_root {
    () => {
        fn here() {}
        let name = std::any::type_name_of_val(&here);
        if !$crate::not_run::may_run_as_root(name.strip_suffix("::here").unwrap_or(name)) {
            return;
        }
    };
}
