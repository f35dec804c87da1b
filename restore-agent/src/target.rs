//! The options that say where to recover to, for every command that plans.

use clap::{Args, ValueEnum};
use jiff::Timestamp;
use walpoint_base::target::{is_relative, parse_time, parse_xid};
use walpoint_base::{BackupId, LineageId, Lsn, PgTimestamp, RecoveryTarget, TargetTimeline};
use walpoint_plan::restore::{RestoreRequest, TargetAction};
use walpoint_runtime::config::{DrillKind, DrillScenario};
use walpoint_runtime::exit::Failure;
use walpoint_runtime::help;

/// Where to recover to. Without a target: to the end of the archive.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = help::TARGET)]
pub(crate) struct TargetArgs {
    /// Recover up to this time, with a zone: "2026-11-21 10:00:00+02", "…Z", "…[Europe/Rome]", or "5 minutes ago".
    ///
    /// Includes the last transaction that ended at or before that time.
    #[arg(long, value_name = "TIME", group = "target")]
    target_time: Option<String>,
    /// Recover up to this position in the WAL, such as 0/5000148.
    #[arg(long, value_name = "LSN", group = "target")]
    target_lsn: Option<Lsn>,
    /// Recover up to the end of this transaction, as pg_current_xact_id() printed it, or with its epoch: "1:703".
    #[arg(long, value_name = "XID", group = "target")]
    target_xid: Option<String>,
    /// Recover up to this restore point (pg_create_restore_point); "restore-agent list" shows them.
    #[arg(long, value_name = "NAME", group = "target")]
    target_name: Option<String>,
    /// Recover only until the backup is consistent.
    #[arg(long, group = "target")]
    target_immediate: bool,
    /// Follow this timeline to the target: latest, current (the backup's), or a number [default: latest].
    #[arg(long, value_name = "TIMELINE")]
    target_timeline: Option<TargetTimeline>,
    /// Recover in this lineage; required if a diverged copy has the target too. "restore-agent list" shows them.
    #[arg(long, value_name = "LINEAGE")]
    pub(crate) lineage: Option<LineageId>,
    /// Stop just before the target: a time, a position or a transaction [default: include it].
    #[arg(long, requires = "target", conflicts_with_all = ["target_name", "target_immediate"])]
    pub(crate) target_exclusive: bool,
    /// Start from this backup [default: the newest one before the target].
    #[arg(long, value_name = "ID")]
    pub(crate) backup: Option<BackupId>,
    /// Recover to the end of a timeline that ends in the middle of a segment.
    ///
    /// After a failover the archive has that segment only as .partial, or as the first one of the next timeline. Only without a target.
    #[arg(long, conflicts_with = "target")]
    pub(crate) use_partial: bool,
}

/// What PostgreSQL does when it has reached the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum TargetActionArgument {
    /// Pause, read-only, until you call pg_wal_replay_resume().
    Pause,
    /// End recovery and accept writes, on a new timeline.
    Promote,
    /// Shut down.
    Shutdown,
}

impl TargetArgs {
    /// Whether recovery is to follow the newest timeline.
    pub(crate) fn follows_the_latest(&self) -> bool {
        self.timeline() == TargetTimeline::Latest
    }

    /// The timeline that recovery is to follow.
    pub(crate) fn timeline(&self) -> TargetTimeline {
        self.target_timeline.unwrap_or_default()
    }

    /// These options, and what a scenario says where they say nothing. A target of theirs replaces the scenario's as a whole.
    pub(crate) fn over(&self, scenario: &DrillScenario) -> Self {
        let own = self.clone();
        let merged = Self {
            target_timeline: own.target_timeline.or(scenario.target_timeline),
            lineage: own.lineage.or(scenario.lineage),
            backup: own.backup.or(scenario.backup),
            ..own
        };
        if merged.has_target() || merged.use_partial {
            return merged;
        }
        Self {
            target_time: scenario.target_time.clone(),
            target_lsn: scenario.target_lsn,
            target_xid: scenario.target_xid.clone(),
            target_name: scenario.target_name.clone(),
            target_immediate: scenario.target_immediate || scenario.kind == DrillKind::Backup,
            target_exclusive: scenario.target_exclusive,
            use_partial: scenario.use_partial,
            ..merged
        }
    }

    /// The names of those options that are given.
    pub(crate) fn given(&self) -> Vec<&'static str> {
        let all = [
            ("--target-time", self.target_time.is_some()),
            ("--target-lsn", self.target_lsn.is_some()),
            ("--target-xid", self.target_xid.is_some()),
            ("--target-name", self.target_name.is_some()),
            ("--target-immediate", self.target_immediate),
            ("--target-timeline", self.target_timeline.is_some()),
            ("--lineage", self.lineage.is_some()),
            ("--target-exclusive", self.target_exclusive),
            ("--backup", self.backup.is_some()),
            ("--use-partial", self.use_partial),
        ];
        all.into_iter().filter(|(_, is_given)| *is_given).map(|(option, _)| option).collect()
    }

    fn has_target(&self) -> bool {
        self.target_time.is_some()
            || self.target_lsn.is_some()
            || self.target_xid.is_some()
            || self.target_name.is_some()
            || self.target_immediate
    }

    /// The target itself.
    fn target(&self, now: Timestamp, resolved: Option<PgTimestamp>) -> Result<RecoveryTarget, Failure> {
        if let Some(time) = &self.target_time {
            if let Some(time) = resolved {
                return Ok(RecoveryTarget::Time(time));
            }
            let time =
                parse_time(time, now).map_err(|e| Failure::usage(anyhow::anyhow!("--target-time: {e}")))?;
            return Ok(RecoveryTarget::Time(time));
        }
        if let Some(xid) = &self.target_xid {
            return parse_xid(xid).map_err(|e| Failure::usage(anyhow::anyhow!("--target-xid: {e}")));
        }
        if let Some(name) = &self.target_name {
            // MAXFNAMELEN of PostgreSQL, with its final zero.
            if name.is_empty() || name.len() > 63 {
                return Err(Failure::usage(anyhow::anyhow!(
                    "--target-name: a restore point has 1 to 63 bytes"
                )));
            }
            return Ok(RecoveryTarget::Name(name.clone()));
        }
        Ok(match self.target_lsn {
            Some(lsn) => RecoveryTarget::Lsn(lsn),
            None if self.target_immediate => RecoveryTarget::Immediate,
            None => RecoveryTarget::Latest,
        })
    }

    /// The target time as it was written, if it is another moment each time it is read: "5 minutes ago".
    pub(crate) fn relative(&self) -> Option<&str> {
        self.target_time.as_deref().map(str::trim).filter(|time| is_relative(time))
    }

    /// What these options ask for. Without an action PostgreSQL pauses at a target, and promotes at the end of the archive.
    /// `resolved` is what a relative time meant when an interrupted restore first read it.
    pub(crate) fn request(
        &self,
        action: Option<TargetActionArgument>,
        standby: bool,
        now: Timestamp,
        resolved: Option<PgTimestamp>,
    ) -> Result<RestoreRequest, Failure> {
        let target = self.target(now, resolved)?;
        let action = match action {
            Some(TargetActionArgument::Promote) => TargetAction::Promote,
            Some(TargetActionArgument::Shutdown) => TargetAction::Shutdown,
            Some(TargetActionArgument::Pause) => TargetAction::Pause,
            None if target == RecoveryTarget::Latest => TargetAction::Promote,
            None => TargetAction::Pause,
        };
        Ok(RestoreRequest {
            target,
            timeline: self.timeline(),
            inclusive: !self.target_exclusive,
            lineage: self.lineage,
            backup: self.backup,
            action,
            standby,
            use_partial: self.use_partial,
            archives: false,
            unreadable: std::collections::BTreeSet::new(),
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Command {
        #[command(flatten)]
        target: TargetArgs,
    }

    fn request(line: &[&str]) -> Result<RestoreRequest, String> {
        let now = "2026-11-21T12:00:00Z".parse().unwrap();
        let command = Command::try_parse_from([&["x"], line].concat()).map_err(|e| e.to_string())?;
        command.target.request(None, false, now, None).map_err(|e| e.to_string())
    }

    #[test]
    fn one_target_at_the_most() {
        assert_eq!(request(&[]).unwrap(), RestoreRequest::default());
        let lsn = request(&["--target-lsn", "0/2000028", "--target-exclusive"]).unwrap();
        assert_eq!(
            (lsn.target, lsn.inclusive, lsn.action),
            (RecoveryTarget::Lsn(Lsn(0x2000028)), false, TargetAction::Pause)
        );
        let full = RecoveryTarget::FullXid(4294967999);
        assert_eq!(request(&["--target-xid", "4294967999"]).unwrap().target, full);
        let time = request(&["--target-time", "5 minutes ago"]).unwrap().target;
        assert_eq!(time.to_string(), "time 2026-11-21 11:55:00.000000+00");
        assert!(
            request(&["--target-immediate", "--target-xid", "9"])
                .unwrap_err()
                .contains("cannot be used with")
        );
    }

    #[test]
    fn a_target_of_the_command_line_replaces_that_of_a_scenario() {
        let scenario = |text: &str| toml::from_str::<DrillScenario>(text).unwrap();
        let merged = |line: &[&str], text: &str| {
            let now = "2026-11-21T12:00:00Z".parse().unwrap();
            let command = Command::try_parse_from([&["x"], line].concat()).unwrap();
            command.target.over(&scenario(text)).request(None, false, now, None).unwrap()
        };
        let past =
            "kind = \"pitr\"\ntarget_lsn = \"0/2000028\"\ntarget_exclusive = true\ntarget_timeline = \"2\"";
        let of_scenario = merged(&[], past);
        assert_eq!((of_scenario.target, of_scenario.inclusive), (RecoveryTarget::Lsn(Lsn(0x2000028)), false));
        let named = merged(&["--target-name", "x"], past);
        assert_eq!((named.target, named.inclusive), (RecoveryTarget::Name("x".to_owned()), true));
        assert_eq!(named.timeline, "2".parse().unwrap());
        let other = merged(&["--target-timeline", "latest"], past);
        assert_eq!((other.timeline, other.inclusive), (TargetTimeline::Latest, false));
        assert_eq!(merged(&["--use-partial"], past).target, RecoveryTarget::Latest);
        assert_eq!(merged(&[], "kind = \"backup\"").target, RecoveryTarget::Immediate);
        assert_eq!(merged(&[], "kind = \"pitr\""), RestoreRequest::default());
    }

    #[test]
    fn mistakes_are_told() {
        for (line, told) in [
            (["--target-time", "2026-11-21 10:00:00"], "zone"),
            (["--target-xid", "2"], "none has one of the numbers 0 to 2"),
            (["--target-time", "2026-10-25 02:30:00[Europe/Rome]"], "2026-10-25 02:30:00+01:00"),
            (["--target-lsn", "12"], "LSN"),
            (["--target-name", ""], "1 to 63"),
            (["--target-timeline", "newest"], "latest, current or a number"),
            (["--backup", "yesterday"], "backup id"),
            (["--target-exclusive", "--target-timeline=2"], "--target-time <TIME>"),
            (["--target-exclusive", "--target-name=x"], "cannot be used with '--target-name"),
            (["--target-exclusive", "--target-immediate"], "cannot be used with '--target-immediate"),
        ] {
            let error = request(&line).unwrap_err();
            assert!(error.contains(told), "{line:?}: {error}");
        }
    }
}
