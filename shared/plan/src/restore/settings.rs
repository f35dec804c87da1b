//! The recovery settings of a plan, as data: what goes into postgresql.auto.conf and which signal file is made.
//!
//! Two traps decide the order. PostgreSQL refuses to start when more than one recovery target is set, so targets that the
//! user's own postgresql.conf may hold are emptied. And emptying one target forgets another that was set before it
//! (`assign_recovery_target` and its siblings in xlogrecovery.c), so the emptied ones come first and ours last.

use walpoint_base::target::FullXid;
use walpoint_base::{Lsn, RecoveryTarget, TargetTimeline, TimelineId};

use super::request::{RestoreRequest, TargetAction};

/// One line of postgresql.auto.conf.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RecoverySetting {
    /// The parameter.
    pub name: &'static str,
    /// Its value, not quoted.
    pub value: String,
}

impl RecoverySetting {
    fn new(name: &'static str, value: impl Into<String>) -> Self {
        Self { name, value: value.into() }
    }

    /// As a line of a configuration file, without the newline.
    pub fn line(&self) -> String {
        format!("{} = {}", self.name, quote(&self.value))
    }
}

/// A value as PostgreSQL's configuration files want it (`guc-file.l`, `GUC_scanstr`): in single quotes, with quotes,
/// backslashes and line ends escaped.
pub fn quote(value: &str) -> String {
    let mut quoted = String::with_capacity(value.len() + 2);
    quoted.push('\'');
    for c in value.chars() {
        match c {
            '\'' => quoted.push_str("''"),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            c => quoted.push(c),
        }
    }
    quoted.push('\'');
    quoted
}

/// The file whose presence makes PostgreSQL recover.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Signal {
    /// `recovery.signal`.
    Recovery,
    /// `standby.signal`.
    Standby,
}

impl Signal {
    /// Its name in the data directory.
    pub fn file_name(self) -> &'static str {
        match self {
            Self::Recovery => "recovery.signal",
            Self::Standby => "standby.signal",
        }
    }
}

/// Where PostgreSQL is told to stop.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum StopAt {
    /// What the request says.
    Requested,
    /// Before the first record at or after a position: where a timeline without WAL of its own was forked.
    Before(Lsn),
    /// After the record that starts at a position: the last one of a backup, behind which there may be none.
    After(Lsn),
}

const TARGETS: [&str; 5] = [
    "recovery_target",
    "recovery_target_lsn",
    "recovery_target_name",
    "recovery_target_time",
    "recovery_target_xid",
];

/// Keeps recovery from reading ahead (`xlogprefetcher.c`, from version 15): it would ask for the segment behind the target,
/// and be stopped where that is a gap.
pub(super) fn without_look_ahead() -> RecoverySetting {
    RecoverySetting::new("recovery_prefetch", "off")
}

/// How far recovery reads ahead at the most: the largest `wal_decode_buffer_size`.
pub(super) const LOOK_AHEAD: u64 = 1 << 30;

/// The first major version that reads ahead.
pub(super) const LOOKS_AHEAD_SINCE: u8 = 15;

/// The settings, in the order in which they are to be written. `restore_command` is not among them: the plan does not
/// know by which program the WAL will come.
///
/// `newest`: no younger timeline is known that counts, and a standby finds this one. Abandoned ones it passes over.
pub(super) fn settings(
    request: &RestoreRequest,
    timeline: TimelineId,
    newest: bool,
    stop: &StopAt,
) -> Vec<RecoverySetting> {
    let target = match (stop, &request.target) {
        (StopAt::Before(lsn) | StopAt::After(lsn), _) => {
            Some(RecoverySetting::new("recovery_target_lsn", lsn.to_string()))
        }
        (_, RecoveryTarget::Latest) => None,
        (_, RecoveryTarget::Immediate) => Some(RecoverySetting::new("recovery_target", "immediate")),
        (_, RecoveryTarget::Time(time)) => {
            Some(RecoverySetting::new("recovery_target_time", time.to_string()))
        }
        (_, RecoveryTarget::Lsn(lsn)) => Some(RecoverySetting::new("recovery_target_lsn", lsn.to_string())),
        (_, RecoveryTarget::Xid(xid)) => Some(RecoverySetting::new("recovery_target_xid", xid.to_string())),
        (_, RecoveryTarget::FullXid(full)) => {
            Some(RecoverySetting::new("recovery_target_xid", FullXid(*full).xid().to_string()))
        }
        (_, RecoveryTarget::Name(name)) => Some(RecoverySetting::new("recovery_target_name", name.clone())),
    };
    let inclusive = match stop {
        StopAt::Requested => request.inclusive,
        StopAt::Before(_) => false,
        StopAt::After(_) => true,
    };
    let used = target.as_ref().map(|t| t.name);
    let mut settings: Vec<RecoverySetting> = TARGETS
        .into_iter()
        .filter(|&name| Some(name) != used)
        .map(|name| RecoverySetting::new(name, ""))
        .collect();
    // A standby follows its upstream to timelines that do not exist yet; a number would keep it from that. Where a timeline
    // was asked for, or the backup does not lead to the newest one, or a number before it is not in use here, "latest" would
    // leave the plan's, or not come to it.
    let follows = request.standby && target.is_none() && newest && request.timeline == TargetTimeline::Latest;
    let timeline = if follows { "latest".to_owned() } else { timeline.to_string() };
    settings.push(RecoverySetting::new("recovery_target_timeline", timeline));
    settings.push(RecoverySetting::new("recovery_target_inclusive", if inclusive { "on" } else { "off" }));
    let action = if target.is_none() { TargetAction::Promote } else { request.action };
    settings.push(RecoverySetting::new("recovery_target_action", action.as_str()));
    settings.extend(target);
    settings
}

/// Makes recovery stay on the timeline of the backup's checkpoint, without asking for the history of one that is named.
pub(super) fn follow_current(settings: &mut [RecoverySetting]) {
    for setting in settings.iter_mut().filter(|setting| setting.name == "recovery_target_timeline") {
        setting.value = "current".to_owned();
    }
}

#[cfg(test)]
mod tests {
    use walpoint_base::PgTimestamp;

    use super::*;

    fn lines(request: &RestoreRequest, stop: &StopAt) -> Vec<String> {
        settings(request, TimelineId::new(26).unwrap(), true, stop)
            .iter()
            .map(RecoverySetting::line)
            .collect()
    }

    #[test]
    fn one_target_is_set_last_and_the_others_are_emptied_before() {
        let time = RestoreRequest {
            target: RecoveryTarget::Time(PgTimestamp(0)),
            inclusive: false,
            action: TargetAction::Pause,
            ..RestoreRequest::default()
        };
        assert_eq!(
            lines(&time, &StopAt::Requested),
            [
                "recovery_target = ''",
                "recovery_target_lsn = ''",
                "recovery_target_name = ''",
                "recovery_target_xid = ''",
                "recovery_target_timeline = '26'",
                "recovery_target_inclusive = 'off'",
                "recovery_target_action = 'pause'",
                "recovery_target_time = '2000-01-01 00:00:00.000000+00'",
            ]
        );
    }

    #[test]
    fn without_a_target_recovery_goes_to_the_end_of_the_archive() {
        let latest = lines(&RestoreRequest::default(), &StopAt::Requested);
        assert_eq!(latest.iter().filter(|l| l.ends_with("= ''")).count(), 5);
        assert!(latest.contains(&"recovery_target_timeline = '26'".to_owned()));
        let standby =
            lines(&RestoreRequest { standby: true, ..RestoreRequest::default() }, &StopAt::Requested);
        assert!(standby.contains(&"recovery_target_timeline = 'latest'".to_owned()));
        let number = TargetTimeline::Id(TimelineId::new(26).unwrap());
        let standby = RestoreRequest { standby: true, timeline: number, ..RestoreRequest::default() };
        assert!(lines(&standby, &StopAt::Requested).contains(&"recovery_target_timeline = '26'".to_owned()));
        let standby = RestoreRequest { standby: true, ..RestoreRequest::default() };
        let older = settings(&standby, TimelineId::new(26).unwrap(), false, &StopAt::Requested);
        assert!(older.iter().any(|s| s.line() == "recovery_target_timeline = '26'"));
        let fork = lines(&RestoreRequest::default(), &StopAt::Before(Lsn(0x5000060)));
        assert!(fork.contains(&"recovery_target_inclusive = 'off'".to_owned()));
        assert_eq!(fork.last().unwrap(), "recovery_target_lsn = '0/5000060'");
        let end = RestoreRequest {
            target: RecoveryTarget::Immediate,
            inclusive: false,
            action: TargetAction::Pause,
            ..RestoreRequest::default()
        };
        let end = lines(&end, &StopAt::After(Lsn(0x5000060)));
        for line in [
            "recovery_target = ''",
            "recovery_target_inclusive = 'on'",
            "recovery_target_action = 'pause'",
            "recovery_target_lsn = '0/5000060'",
        ] {
            assert!(end.contains(&line.to_owned()), "{end:?}");
        }
    }

    #[test]
    fn values_are_quoted_for_a_configuration_file() {
        assert_eq!(quote("it's \\ a\nname"), "'it''s \\\\ a\\nname'");
    }
}
