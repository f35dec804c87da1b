//! The options of `drill`, alone and over a scenario of the configuration.

use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use clap::{Args, ValueEnum};
use walpoint_base::{Diagnostic, ScenarioName};
use walpoint_runtime::config::{self, DrillKind, DrillScenario, SkippedCheck};
use walpoint_runtime::exit::Failure;
use walpoint_runtime::{args, help};

use crate::extract::Rehearsal;
use crate::scratch::{SCRATCH, ScratchArgs};
use crate::target::TargetArgs;

/// The heading of the options about what is checked.
const CHECKS: &str = "Checks";
/// The heading of the options about the drills in the configuration.
const SCENARIOS: &str = "Scenarios";
/// No heading.
const NONE: Option<&str> = None;

const EXAMPLES: &[(&str, &str)] = &[
    ("Test that everything in the archive can be recovered", "restore-agent drill"),
    (
        "Check the data, and how long a recovery takes and what it loses",
        "restore-agent drill --rto 1h --rpo 5m \\\n          --check \"select count(*) > 1000 from public.orders\"",
    ),
    (
        "Run a file of checks on yesterday's data, and write a page about it",
        "restore-agent drill --target-time \"1 day ago\" \\\n          --checks /etc/walpoint/checks.toml --report /var/www/drill.html",
    ),
    ("Keep the copy to look into it", "restore-agent drill --keep --directory /srv/drill"),
    ("Run a drill of the configuration", "restore-agent drill --scenario nightly"),
];

/// Options of `drill`.
#[derive(Debug, Clone, Args)]
#[command(after_long_help = help::examples(EXAMPLES))]
pub(crate) struct DrillArgs {
    #[command(flatten)]
    pub(super) target: TargetArgs,
    #[command(flatten)]
    pub(super) scratch: ScratchArgs,
    /// Run --check and --checks with the rights of this role [default: the superuser's].
    #[arg(long, value_name = "ROLE", help_heading = SCRATCH)]
    pub(super) role: Option<String>,
    /// Keep the scratch directory, with its server stopped, and print how to start it.
    #[arg(long, help_heading = SCRATCH)]
    pub(super) keep: bool,
    /// Require that this query answers true. Can be repeated.
    #[arg(long = "check", value_name = "SQL", help_heading = CHECKS)]
    pub(super) queries: Vec<String>,
    /// Run the checks in this file (TOML).
    #[arg(long, value_name = "FILE", help_heading = CHECKS)]
    pub(super) checks: Option<PathBuf>,
    /// Leave out a check that every drill makes. Can be repeated.
    #[arg(long, value_name = "CHECK", help_heading = CHECKS)]
    pub(super) skip: Vec<Skipped>,
    /// Fail if it takes longer than this until the last check has passed (recovery time).
    #[arg(long, value_name = "SPAN", value_parser = args::span, help_heading = CHECKS)]
    pub(super) rto: Option<Duration>,
    /// Fail if the newest commit that can be recovered is older than this (recovery point).
    #[arg(long, value_name = "SPAN", value_parser = args::span, help_heading = CHECKS)]
    pub(super) rpo: Option<Duration>,
    /// Run the drill [cluster.NAME.drill.SCENARIO] of the configuration. Options on the command line override its keys.
    #[arg(long, value_name = "SCENARIO", help_heading = SCENARIOS)]
    pub(super) scenario: Option<ScenarioName>,
    /// Run all drills of the configuration, one after another. Options on the command line override the keys of each.
    #[arg(
        long,
        conflicts_with_all = ["scenario", "target", "use_partial", "backup", "directory", "keep", "report"],
        help_heading = SCENARIOS
    )]
    pub(super) all_scenarios: bool,
    /// List the drills of the configuration, and how the last run of each ended.
    #[arg(
        long,
        conflicts_with_all = ["all_scenarios", "scenario", "target", "target_timeline", "use_partial", "lineage", "backup",
            "directory", "pg_bindir", "preload", "recovery_timeout", "role", "keep", "queries", "checks", "skip", "rto", "rpo",
            "report"],
        help_heading = SCENARIOS
    )]
    pub(super) list_scenarios: bool,
    /// Write a report to this file, as an HTML page.
    #[arg(long, value_name = "FILE", help_heading = NONE)]
    pub(super) report: Option<PathBuf>,
    /// What a scenario asks for and the command line cannot.
    #[arg(skip)]
    pub(super) extraction: Option<Extraction>,
    /// Over a scenario: the options of the command line that make another drill of it.
    #[arg(skip)]
    pub(super) changed_by: Vec<&'static str>,
}

/// An extraction that is rehearsed.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Extraction {
    pub(super) rehearsal: Rehearsal,
    /// The least size of what comes out of it.
    pub(super) least: u64,
}

/// What every drill looks at unless it is left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Skipped {
    /// Structure of tables and indexes, with pg_amcheck.
    Amcheck,
    /// Checksums of all data pages.
    PageChecksums,
    /// Sizes and rows of the largest tables.
    Tables,
}

impl From<SkippedCheck> for Skipped {
    fn from(skipped: SkippedCheck) -> Self {
        match skipped {
            SkippedCheck::Amcheck => Self::Amcheck,
            SkippedCheck::PageChecksums => Self::PageChecksums,
            SkippedCheck::Tables => Self::Tables,
        }
    }
}

impl DrillArgs {
    /// Fails if they leave out what a scenario does not make.
    pub(super) fn require_use_in(
        &self,
        name: &ScenarioName,
        scenario: &DrillScenario,
    ) -> Result<(), Failure> {
        if scenario.kind != DrillKind::Extract || self.skip.is_empty() {
            return Ok(());
        }
        let error = Diagnostic::new(format!("--skip leaves nothing out of scenario \"{name}\""));
        let why = "It is of kind \"extract\", and makes none of the checks that --skip can name.";
        Err(Failure::usage(error.detail(why).hint("Leave --skip out.")))
    }

    /// These options, and what a scenario says where they say nothing.
    pub(super) fn over(&self, name: &ScenarioName, scenario: &DrillScenario) -> Self {
        let mut own = self.clone();
        if scenario.kind == DrillKind::Extract {
            // With --all-scenarios, it is about the others.
            own.skip.clear();
        }
        Self {
            changed_by: own.changing(),
            target: own.target.over(scenario),
            scratch: own.scratch.over(scenario),
            role: own.role.or_else(|| scenario.role.clone()),
            checks: own.checks.or_else(|| scenario.checks.clone()),
            skip: match own.skip.is_empty() {
                true => scenario.skip.iter().copied().map(Skipped::from).collect(),
                false => own.skip,
            },
            rto: own.rto.or(scenario.rto.map(config::duration)),
            rpo: own.rpo.or(scenario.rpo.map(config::duration)),
            report: own.report.or_else(|| scenario.report.clone()),
            scenario: Some(name.clone()),
            extraction: extraction(scenario),
            ..own
        }
    }

    /// Those of these options that make another drill of a scenario: not where it is made, nor where its report goes.
    fn changing(&self) -> Vec<&'static str> {
        let Self { target, scratch, role, keep, queries, checks, skip, rto, rpo, .. } = self;
        let own = [
            ("--role", role.is_some()),
            ("--keep", *keep),
            ("--check", !queries.is_empty()),
            ("--checks", checks.is_some()),
            ("--skip", !skip.is_empty()),
            ("--rto", rto.is_some()),
            ("--rpo", rpo.is_some()),
        ];
        let own = own.into_iter().filter(|(_, is_given)| *is_given).map(|(option, _)| option);
        target.given().into_iter().chain(scratch.changing()).chain(own).collect()
    }

    /// What to know of a drill that the command line made another one than its scenario.
    pub(super) fn changed(&self) -> Option<String> {
        let name = self.scenario.as_ref().filter(|_| !self.changed_by.is_empty())?;
        let options = self.changed_by.join(", ");
        Some(format!("this is not a run of scenario \"{name}\", but another drill, changed by {options}"))
    }

    /// Whether a check that every drill makes is made. A drill of an extraction proves that alone.
    pub(super) fn makes(&self, check: Skipped) -> bool {
        self.extraction.is_none() && !self.skip.contains(&check)
    }
}

fn extraction(scenario: &DrillScenario) -> Option<Extraction> {
    let database = scenario.database.clone().filter(|_| scenario.kind == DrillKind::Extract)?;
    let rehearsal = Rehearsal {
        database,
        tables: scenario.tables.clone(),
        schemas: scenario.schemas.clone(),
        query: scenario.query.clone(),
        client_bindir: scenario.client_bindir.clone(),
    };
    // What is empty is no extraction.
    Some(Extraction {
        rehearsal,
        least: scenario.output_min.map_or(0, |least: ByteSize| least.as_u64()).max(1),
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: DrillArgs,
    }

    fn merged(line: &[&str], text: &str) -> DrillArgs {
        let scenario: DrillScenario = toml::from_str(text).unwrap();
        let line = Line::try_parse_from([&["drill"], line].concat()).unwrap();
        line.args.over(&"nightly".parse().unwrap(), &scenario)
    }

    #[test]
    fn the_command_line_wins_over_a_scenario() {
        let text = "kind = \"pitr\"\nrto = \"1h\"\nrpo = \"5m\"\nskip = [\"amcheck\"]\nrole = \"reader\"\nchecks = \"/c\"\n\
                    report = \"/r\"";
        let plain = merged(&[], text);
        assert_eq!((plain.rto, plain.rpo), (Some(Duration::from_secs(3600)), Some(Duration::from_secs(300))));
        assert_eq!((plain.role.as_deref(), plain.checks), (Some("reader"), Some(PathBuf::from("/c"))));
        assert_eq!(
            (plain.skip.as_slice(), plain.report),
            (&[Skipped::Amcheck][..], Some(PathBuf::from("/r")))
        );
        assert_eq!(plain.scenario.map(|name| name.to_string()).as_deref(), Some("nightly"));
        let line =
            ["--rto", "2h", "--skip", "tables", "--role", "other", "--checks", "d", "--check", "select true"];
        let given = merged(&line, text);
        assert_eq!((given.rto, given.rpo), (Some(Duration::from_secs(7200)), Some(Duration::from_secs(300))));
        assert_eq!((given.role.as_deref(), given.checks), (Some("other"), Some(PathBuf::from("d"))));
        assert_eq!((given.skip.as_slice(), given.queries.len()), (&[Skipped::Tables][..], 1));
    }

    #[test]
    fn options_that_make_another_drill_of_a_scenario_are_known() {
        let text = "kind = \"pitr\"\nrto = \"1h\"\nrpo = \"5m\"\nskip = [\"amcheck\"]";
        let none: [&str; 0] = [];
        assert_eq!(merged(&[], text).changed_by, none);
        // Where it is made is not what is made.
        let place = ["--directory", "d", "--pg-bindir", "b", "--report", "r"];
        assert_eq!(merged(&place, text).changed_by, none);
        let lighter = ["--target-immediate", "--skip", "amcheck", "--rto", "100h"];
        assert_eq!(merged(&lighter, text).changed_by, ["--target-immediate", "--skip", "--rto"]);
        let note = merged(&["--rto", "1h"], text).changed();
        assert_eq!(
            note.as_deref(),
            Some("this is not a run of scenario \"nightly\", but another drill, changed by --rto")
        );
        assert_eq!(merged(&place, text).changed(), None);
        let others = [
            ["--target-time", "1 hour ago"],
            ["--target-lsn", "0/1"],
            ["--target-xid", "703"],
            ["--target-name", "x"],
            ["--target-timeline", "1"],
            ["--preload", "x"],
            ["--recovery-timeout", "1h"],
            ["--role", "x"],
            ["--check", "select true"],
            ["--checks", "c"],
            ["--rpo", "1h"],
        ];
        for given in others {
            assert_eq!(merged(&given, text).changed_by, given[..1]);
        }
        assert_eq!(merged(&["--use-partial", "--keep"], text).changed_by, ["--use-partial", "--keep"]);
    }

    #[test]
    fn a_drill_of_an_extraction_makes_no_other_check_of_its_own() {
        let text = "kind = \"extract\"\ndatabase = \"shop\"\ntables = [\"orders\"]\noutput_min = \"1KiB\"";
        let args = merged(&[], text);
        let extraction = args.extraction.clone().unwrap();
        assert_eq!((extraction.least, extraction.rehearsal.tables), (1024, vec!["orders".to_owned()]));
        assert!(!args.makes(Skipped::Amcheck) && !args.makes(Skipped::Tables));
        let least = |text| merged(&[], text).extraction.map(|extraction| extraction.least);
        assert_eq!(least("kind = \"extract\"\ndatabase = \"shop\""), Some(1));
        assert_eq!(least("kind = \"backup\""), None);
        assert!(merged(&[], "kind = \"backup\"").makes(Skipped::Amcheck));
    }

    #[test]
    fn a_check_that_a_scenario_does_not_make_cannot_be_left_out() {
        let line = Line::try_parse_from(["drill", "--skip", "tables"]).unwrap().args;
        let none = Line::try_parse_from(["drill", "--rto", "1h"]).unwrap().args;
        let name: ScenarioName = "shop".parse().unwrap();
        let extract: DrillScenario = toml::from_str("kind = \"extract\"\ndatabase = \"shop\"").unwrap();
        let backup: DrillScenario = toml::from_str("kind = \"backup\"").unwrap();
        let refused = line.require_use_in(&name, &extract).unwrap_err();
        assert_eq!(refused.status, 2);
        assert!(refused.to_string().starts_with("--skip leaves nothing out of scenario \"shop\""));
        line.require_use_in(&name, &backup).unwrap();
        none.require_use_in(&name, &extract).unwrap();
        // Of all scenarios, an extraction is what it is without the option.
        assert_eq!(line.over(&name, &extract).changed_by, [] as [&str; 0]);
        assert_eq!(line.over(&name, &backup).changed_by, ["--skip"]);
    }

    #[test]
    fn what_is_about_several_drills_takes_no_options_of_one() {
        for line in [
            &["--all-scenarios", "--scenario", "a"][..],
            &["--all-scenarios", "--target-lsn", "0/1"],
            &["--all-scenarios", "--report", "r"],
            &["--all-scenarios", "--keep"],
            &["--list-scenarios", "--all-scenarios"],
            &["--list-scenarios", "--rto", "1h"],
            &["--scenario", "No"],
        ] {
            Line::try_parse_from([&["drill"], line].concat()).unwrap_err();
        }
        Line::try_parse_from(["drill", "--all-scenarios", "--skip", "amcheck", "--rto", "1h"]).unwrap();
    }
}
