//! The command line that was given, with another target: what a person copies to get there.

/// Options with a value that say where to recover to.
const TARGETS: [&str; 4] = ["--target-time", "--target-lsn", "--target-xid", "--target-name"];

/// Those without one.
const PLAIN: [&str; 2] = ["--target-immediate", "--target-exclusive"];

/// A command line.
#[derive(Clone, Debug)]
pub(crate) struct CommandLine(Vec<String>);

impl CommandLine {
    /// This program's.
    pub(crate) fn given() -> Self {
        Self(std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect())
    }

    /// The one that restores over what this one restored.
    pub(crate) fn over(mut self) -> Self {
        self.0.retain(|word| word != "--replace");
        if !self.0.iter().any(|word| word == "--delta") {
            self.0.push("--delta".to_owned());
        }
        self
    }

    /// With these options in place of its target.
    pub(crate) fn with_target(&self, target: &[String]) -> Vec<String> {
        let mut words: Vec<String> = Vec::new();
        let mut place = None;
        // Behind two dashes are another program's options.
        let end = self.0.iter().position(|word| word == "--").unwrap_or(self.0.len());
        let (own, passed_on) = self.0.split_at(end);
        let mut given = own.iter();
        while let Some(word) = given.next() {
            let name = word.split_once('=').map_or(word.as_str(), |(name, _)| name);
            if !(TARGETS.contains(&name) || PLAIN.contains(&name)) {
                words.push(word.clone());
                continue;
            }
            place.get_or_insert(words.len());
            if TARGETS.contains(&word.as_str()) {
                given.next();
            }
        }
        let place = place.unwrap_or(words.len());
        words.splice(place..place, target.iter().cloned());
        words.extend(passed_on.iter().cloned());
        words
    }
}

#[cfg(test)]
impl<const N: usize> From<[&str; N]> for CommandLine {
    fn from(words: [&str; N]) -> Self {
        Self(words.map(str::to_owned).to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(line: CommandLine) -> String {
        line.with_target(&["--target-xid".to_owned(), "7".to_owned(), "--target-exclusive".to_owned()])
            .join(" ")
    }

    #[test]
    fn every_option_but_the_target_stays() {
        for (given, expected) in [
            (
                [
                    "restore-agent",
                    "--config=c",
                    "plan",
                    "--target-time",
                    "5 minutes ago",
                    "--cluster",
                    "main",
                ],
                "restore-agent --config=c plan --target-xid 7 --target-exclusive --cluster main",
            ),
            (
                [
                    "restore-agent",
                    "plan",
                    "--target-exclusive",
                    "--json",
                    "--target-lsn=0/1",
                    "--backup",
                    "b",
                ],
                "restore-agent plan --target-xid 7 --target-exclusive --json --backup b",
            ),
            (
                [
                    "restore-agent",
                    "plan",
                    "--target-timeline",
                    "2",
                    "--target-name",
                    "--target-x",
                    "--lineage=l",
                ],
                "restore-agent plan --target-timeline 2 --target-xid 7 --target-exclusive --lineage=l",
            ),
        ] {
            assert_eq!(with(given.into()), expected);
        }
    }

    #[test]
    fn options_of_another_program_stay_behind_the_targets() {
        let line =
            CommandLine::from(["restore-agent", "extract", "--database=d", "--", "-n", "--target-lsn=1"]);
        assert_eq!(
            with(line),
            "restore-agent extract --database=d --target-xid 7 --target-exclusive -- -n --target-lsn=1"
        );
    }

    #[test]
    fn what_was_restored_is_restored_over() {
        let line = CommandLine::from([
            "restore-agent",
            "restore",
            "--replace",
            "--target-time=now",
            "--pgdata",
            "d",
        ]);
        let expected = "restore-agent restore --target-xid 7 --target-exclusive --pgdata d --delta";
        assert_eq!(with(line.clone().over()), expected);
        assert_eq!(with(line.over().over()), expected);
    }
}
