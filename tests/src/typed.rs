//! A shell that types the command lines of a page as they stand there, with the places of a test.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::cluster::Cluster;
use crate::process::{self, Output};
use crate::{testbed, user};

/// No line takes longer.
const LIMIT: Duration = Duration::from_secs(120);

/// A page of the repository.
#[track_caller]
pub fn page(name: &str) -> String {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a parent").join(name);
    fs::read_to_string(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()))
}

/// The lines of a page's blocks that name no language, without comments. A line that ends in a backslash goes on in the next.
pub fn lines(page: &str) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    let blocks = page.split("```").skip(1).step_by(2).filter_map(|block| block.strip_prefix('\n'));
    let mut goes_on = false;
    for line in blocks.flat_map(str::lines) {
        let line = line.split(" #").next().unwrap_or_default().trim();
        let (part, more) = line.strip_suffix('\\').map_or((line, false), |part| (part.trim_end(), true));
        match lines.last_mut().filter(|_| goes_on) {
            Some(last) => *last = format!("{last} {part}"),
            None => lines.push(part.to_owned()),
        }
        goes_on = more;
    }
    lines.retain(|line| !line.is_empty() && !line.starts_with('#'));
    lines
}

/// A shell of PostgreSQL's user.
pub struct Shell<'a> {
    /// Whose programs it finds.
    pub cluster: &'a Cluster,
    /// The configuration that Walpoint's programs read.
    pub config: PathBuf,
    /// What stands in place of what the page has.
    pub places: Vec<(&'static str, String)>,
}

impl Shell<'_> {
    /// One line, to be run by `bash`.
    pub fn command(&self, line: &str) -> Command {
        let line = self.places.iter().fold(line.to_owned(), |line, (there, here)| line.replace(there, here));
        let directory = |program: &Path| program.parent().expect("a directory").display().to_string();
        let programs = directory(&testbed::under_test("archive-agent"));
        let postgres = directory(&testbed::pg_program(self.cluster.major(), "postgres"));
        let mut command = Command::new("bash");
        command.arg("-c").arg(line).current_dir(self.cluster.dir().path());
        command.env("PATH", format!("{programs}:{postgres}:/usr/bin:/bin"));
        command.env("WALPOINT_CONFIG", &self.config);
        user::become_user(&mut command);
        command
    }

    /// Types it; panics if it fails.
    #[track_caller]
    pub fn types(&self, line: &str) -> Output {
        process::run(&mut self.command(line), LIMIT).expect_success()
    }
}
