//! A restore that was killed between its last file and the removal of its marker: the same command removes the marker, and nothing else
//! is left to do. Another command gets no answer from it: what lies there recovers as the marker says.

use std::path::Path;

use anyhow::{anyhow, bail};
use walpoint_base::RecoveryTarget;
use walpoint_runtime::args::{CommonArgs, Selection};
use walpoint_runtime::exit::Failure;
use walpoint_storage::store::StoreSettings;

use super::directory::{self, Marker};
use super::requested::RequestedRecovery;
use super::{RestoreArgs, hook, previous, reach};

/// Ends it, if it is what the command asks for.
pub(super) fn end(
    common: &CommonArgs,
    args: &RestoreArgs,
    target: &RecoveryTarget,
    pgdata: &Path,
    marker: &Marker,
) -> Result<(), Failure> {
    let selection: Selection<StoreSettings> = common.select_to_read()?;
    let wanted = Wanted {
        cluster: selection.cluster.to_string(),
        target: target.to_string(),
        requested: RequestedRecovery::of(args, target),
    };
    end_if(&wanted, args, pgdata, marker)?;
    match args.start.start {
        // How its server is started is known only to the restore that was interrupted.
        true => Err(not_started(pgdata).into()),
        false => Ok(()),
    }
}

/// What is missing of `--start`.
fn not_started(pgdata: &Path) -> anyhow::Error {
    anyhow!(
        "{} was restored by an earlier command, and is complete: its server was not started\nHINT: Start it with pg_ctl, or remove the \
         directory and restore again.",
        pgdata.display()
    )
}

fn end_if(wanted: &Wanted, args: &RestoreArgs, pgdata: &Path, marker: &Marker) -> anyhow::Result<()> {
    let shown = pgdata.display();
    let differences = wanted.differences(marker);
    if !differences.is_empty() {
        bail!(
            "{shown} holds a finished restore of backup {} that recovers to {}: nothing was changed\nDETAIL: This command asks \
             for another restore: {}.\nHINT: Start what is there, or give an empty directory.",
            marker.backup,
            marker.target,
            differences.join("; ")
        );
    }
    previous::succeed(pgdata);
    directory::release(pgdata, marker, reach::owner_of(pgdata))?;
    tracing::info!("{shown} holds the finished restore of backup {}; nothing was left to do", marker.backup);
    hook("--post-command", args.post_command.as_deref(), pgdata)
}

/// What a command asks for.
struct Wanted {
    cluster: String,
    target: String,
    requested: RequestedRecovery,
}

impl Wanted {
    /// In what it differs from what a finished restore was asked for.
    fn differences(&self, marker: &Marker) -> Vec<String> {
        let mut compared = vec![
            ("the cluster", self.cluster.clone(), marker.cluster.clone()),
            ("the target", self.target.clone(), marker.target.clone()),
        ];
        if let Some(earlier) = &marker.requested {
            let wanted = &self.requested;
            let flag = |given: bool| if given { "on" } else { "off" }.to_owned();
            // Who names what was chosen then asks for the same.
            let named = |wanted: &Option<String>, earlier: &Option<String>, chosen: &str| {
                let shown = |name: &Option<String>| name.clone().unwrap_or_else(|| "none".to_owned());
                let is_chosen = earlier.is_none() && wanted.as_deref() == Some(chosen);
                (shown(wanted), shown(if is_chosen { wanted } else { earlier }))
            };
            let (lineage, chosen_lineage) = {
                let chosen = marker.lineage.split(' ').next().unwrap_or_default();
                named(&wanted.lineage, &earlier.lineage, chosen)
            };
            let (backup, chosen_backup) = named(&wanted.backup, &earlier.backup, &marker.backup);
            compared.extend([
                ("--lineage", lineage, chosen_lineage),
                ("--backup", backup, chosen_backup),
                ("--target-timeline", wanted.timeline.clone(), earlier.timeline.clone()),
                ("--target-exclusive", flag(wanted.exclusive), flag(earlier.exclusive)),
                ("--use-partial", flag(wanted.partial), flag(earlier.partial)),
                ("--target-action", wanted.action.clone(), earlier.action.clone()),
                ("--standby", flag(wanted.standby), flag(earlier.standby)),
                ("--resume-archiving", flag(wanted.archiving), flag(earlier.archiving)),
            ]);
        }
        let differing = compared.into_iter().filter(|(_, wanted, earlier)| wanted != earlier);
        differing.map(|(what, wanted, earlier)| format!("{what} is {wanted}, not {earlier}")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn requested() -> RequestedRecovery {
        RequestedRecovery {
            timeline: "latest".into(),
            lineage: None,
            backup: None,
            exclusive: false,
            partial: false,
            action: "promote".into(),
            standby: false,
            archiving: false,
        }
    }

    fn wanted(requested: RequestedRecovery) -> Wanted {
        Wanted { cluster: "c".into(), target: "latest".into(), requested }
    }

    #[test]
    fn whatever_was_asked_for_otherwise_is_another_restore() {
        let marker = Marker {
            repository: "r".into(),
            cluster: "c".into(),
            lineage: "7-1".into(),
            backup: "b".into(),
            target: "latest".into(),
            requested: Some(requested()),
            relative: None,
            replaces: None,
            directories: Vec::new(),
            delta: false,
            claiming: false,
        };
        let named = |name: &str| Some(name.to_owned());
        for (wanted, expected) in [
            (wanted(requested()), ""),
            (wanted(RequestedRecovery { backup: named("b"), lineage: named("7-1"), ..requested() }), ""),
            (Wanted { cluster: "d".into(), ..wanted(requested()) }, "the cluster is d, not c"),
            (Wanted { target: "xid 7".into(), ..wanted(requested()) }, "the target is xid 7, not latest"),
            (wanted(RequestedRecovery { backup: named("a"), ..requested() }), "--backup is a, not none"),
            (
                wanted(RequestedRecovery { lineage: named("7-2"), ..requested() }),
                "--lineage is 7-2, not none",
            ),
            (
                wanted(RequestedRecovery { timeline: "2".into(), ..requested() }),
                "--target-timeline is 2, not latest",
            ),
            (
                wanted(RequestedRecovery { standby: true, archiving: true, ..requested() }),
                "--standby is on, not off; --resume-archiving is on, not off",
            ),
        ] {
            assert_eq!(wanted.differences(&marker).join("; "), expected);
        }
        let chose = RequestedRecovery { backup: named("b"), ..requested() };
        let marker = Marker { requested: Some(chose), ..marker };
        assert_eq!(wanted(requested()).differences(&marker), ["--backup is none, not b"]);
        let older = Marker { requested: None, ..marker };
        assert!(wanted(requested()).differences(&older).is_empty());
    }
}
