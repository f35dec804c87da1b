//! The options about the scratch instance, for every command that opens one.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use jiff::Timestamp;
use walpoint_runtime::args;
use walpoint_runtime::config::{self, DrillScenario};
use walpoint_runtime::exit::Failure;

use super::ScratchRequest;
use crate::target::TargetArgs;

/// The heading of these options.
pub(crate) const SCRATCH: &str = "Scratch instance";

/// How long recovery may take unless the command line says otherwise: 12 hours.
const RECOVERY: Duration = Duration::from_secs(12 * 60 * 60);

/// Where the instance is made, and with what.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct ScratchArgs {
    /// Restore into this directory, which must be new or empty [default: a new one in scratch_directory of the configuration, or in
    /// $TMPDIR, or in /var/tmp].
    #[arg(long, value_name = "DIR", help_heading = SCRATCH)]
    directory: Option<PathBuf>,
    /// Run PostgreSQL's programs in this directory [default: those of the right version in PATH, or where packages put them].
    #[arg(long, value_name = "DIR", help_heading = SCRATCH)]
    pg_bindir: Option<PathBuf>,
    /// Load this library of shared_preload_libraries, although it may run jobs. Can be repeated [default: only libraries that are
    /// known to run none].
    #[arg(long, value_name = "LIBRARY", value_parser = args::line, help_heading = SCRATCH)]
    preload: Vec<String>,
    /// Fail if recovery takes longer than this [default: 12h].
    #[arg(long, value_name = "SPAN", value_parser = args::span, help_heading = SCRATCH)]
    recovery_timeout: Option<Duration>,
}

impl ScratchArgs {
    /// These options, and what a scenario says where they say nothing.
    pub(crate) fn over(&self, scenario: &DrillScenario) -> Self {
        let own = self.clone();
        Self {
            pg_bindir: own.pg_bindir.or_else(|| scenario.pg_bindir.clone()),
            preload: if own.preload.is_empty() { scenario.preload.clone() } else { own.preload },
            recovery_timeout: own.recovery_timeout.or(scenario.recovery_timeout.map(config::duration)),
            ..own
        }
    }

    /// Those of them that change what the instance is, or when it fails: not where it is, and where its programs are.
    pub(crate) fn changing(&self) -> Vec<&'static str> {
        let all = [
            ("--preload", !self.preload.is_empty()),
            ("--recovery-timeout", self.recovery_timeout.is_some()),
        ];
        all.into_iter().filter(|(_, is_given)| *is_given).map(|(option, _)| option).collect()
    }

    /// What they ask for: an instance that is not kept, and sessions with the superuser's rights. `now`: what relative times are from.
    pub(crate) fn request(&self, target: &TargetArgs, now: Timestamp) -> Result<ScratchRequest, Failure> {
        Ok(ScratchRequest {
            target: target.clone(),
            request: target.request(None, false, now, None)?,
            directory: self.directory.clone(),
            bindir: self.pg_bindir.clone(),
            preload: self.preload.clone(),
            role: None,
            recovery_timeout: self.recovery_timeout.unwrap_or(RECOVERY),
            keep: false,
        })
    }
}
