//! What a person and a program get to see of a plan, and of a refusal.

use walpoint_base::{BackupId, Lsn, RecoveryTarget, SegmentNo};
use walpoint_plan::restore::testing::forked::{on, world};
use walpoint_plan::restore::testing::world::*;
use walpoint_plan::restore::{
    Removal, RestorePlan, RestoreRequest, TargetAction, UnlockedPosition, Verdict, Why,
};

use super::document::PlanReport;
use super::text;
use super::words::{self, CommandLine, hints, options};

fn given() -> CommandLine {
    ["restore-agent", "plan", "--cluster", "main", "--target-time", "1 hour ago"].into()
}

fn notes(plan: &RestorePlan) -> Vec<String> {
    words::notes(plan, &given())
}

fn json(verdict: &Verdict) -> serde_json::Value {
    serde_json::to_value(match verdict {
        Ok(plan) => PlanReport::plan(plan, notes(plan), &[], (size(), &given())),
        Err(refusal) => PlanReport::refusal(refusal, &given()),
    })
    .unwrap()
}

/// The document of the plan that begins with that backup.
fn plan_from(backup: BackupId) -> serde_json::Value {
    serde_json::json!({
        "result": "plan",
        "lineage": "7-1",
        "target": { "kind": "time", "value": "2000-01-01T03:06:40Z", "inclusive": false },
        "options": [
            "--target-time", "2000-01-01 03:06:40.000000+00", "--target-exclusive", "--lineage", "7-1", "--target-timeline", "2",
            "--backup",
            backup.to_string(),
        ],
        "backup": {
            "id": backup.to_string(),
            "label": "",
            "timeline": 1,
            "start_lsn": "0/800000",
            "stop_lsn": "0/880000",
            "start_time": "2000-01-01T00:13:20Z",
            "stop_time": "2000-01-01T00:14:20Z",
            "damaged_page_count": 0,
        },
        "path": [
            { "timeline": 1, "start_lsn": "0/0", "end_lsn": "0/A80000" },
            { "timeline": 2, "start_lsn": "0/A80000" },
        ],
        "timeline": 2,
        "stop": {
            "timeline": 2,
            "lsn": "0/C00000",
            "end_lsn": "0/C80000",
            "replayed": false,
            "time": "2000-01-01T03:06:40Z",
            "xid": 2024,
        },
        "until_lsn": "0/C80000",
        "segments": [
            {
                "first_segment": "000000010000000000000008",
                "last_segment": "000000010000000000000009",
                "segment_count": 2,
            },
            {
                "first_segment": "00000002000000000000000A",
                "last_segment": "00000002000000000000000C",
                "segment_count": 3,
            },
        ],
        "history_files": ["00000002.history"],
        "signal_file": "recovery.signal",
        "settings": [
            { "name": "recovery_prefetch", "value": "off" },
            { "name": "recovery_target", "value": "" },
            { "name": "recovery_target_lsn", "value": "" },
            { "name": "recovery_target_name", "value": "" },
            { "name": "recovery_target_xid", "value": "" },
            { "name": "recovery_target_timeline", "value": "2" },
            { "name": "recovery_target_inclusive", "value": "off" },
            { "name": "recovery_target_action", "value": "pause" },
            { "name": "recovery_target_time", "value": "2000-01-01 03:06:40.000000+00" },
        ],
        "estimate": {
            "file_bytes": 1000,
            "block_bytes": 500,
            "segment_count": 5,
            "segment_bytes": 5 << 20,
            "stored_segment_bytes": 500,
            "seconds": 1,
        },
        "notes": [],
    })
}

#[test]
fn a_plan_as_json_and_as_text() {
    let (world, [_, second, _]) = world();
    let request = RestoreRequest {
        inclusive: false,
        action: TargetAction::Pause,
        backup: Some(second),
        ..on(2, RecoveryTarget::Time(at(11_200)))
    };
    let verdict = world.plan(&request);
    assert_eq!(json(&verdict), plan_from(second));
    let plan = verdict.unwrap();
    let text = text::plan(&plan, &notes(&plan), size());
    for line in [
        "Restore to  time 2000-01-01 03:06:40.000000+00, on timeline 2\n",
        "Path        timeline 1 up to 0/A80000, then timeline 2\n",
        "WAL         5 segments, 5.0 MiB, from 0/800000 to 0/C80000\n",
        "            000000010000000000000008 to 000000010000000000000009 (2 segments)\n",
        "Ends        before the end of transaction 2024 of 2000-01-01 03:06:40.000000+00 at 0/C00000\n",
        "            recovery_target_time = '2000-01-01 03:06:40.000000+00'\n",
    ] {
        assert!(text.contains(line), "{line:?} is not in\n{text}");
    }
    let again = format!(
        "Again by    --target-time '2000-01-01 03:06:40.000000+00' --target-exclusive --lineage 7-1 --target-timeline 2 --backup {second}\n"
    );
    assert!(text.contains(&again), "{text}");
}

/// R3: the end of the archive, as `status` shows it, is no target, and is not called later than itself.
#[test]
fn the_end_of_the_archive_is_not_said_to_lie_before_itself() {
    let (_, [_, second, _]) = world();
    let (backup, until) = (second, Lsn(6 * SIZE));
    let ends = "the archive ends at 0/600000, and no record in it reaches the target";
    assert_eq!(words::why(&Why::AfterEnd { backup, until, latest: None }), ends);
    let latest = Some(at(11_200));
    let text = words::why(&Why::AfterEnd { backup, until, latest });
    assert_eq!(text, format!("{ends}; the latest transaction in it ended at 2000-01-01 03:06:40.000000+00"));
}

#[test]
fn a_refusal_as_json_and_as_text() {
    let (mut world, [_, second, _]) = world();
    world.files.remove(&(tli(1), SegmentNo(5)));
    let verdict = world.plan(&on(1, RecoveryTarget::Lsn(Lsn(6 * SIZE))));
    let expected = serde_json::json!({
        "result": "unreachable",
        "target": { "kind": "lsn", "value": "0/600000" },
        "target_timeline": "1",
        "reason": "missing-wal",
        "message": format!(
            "LSN 0/600000 (timeline 1) cannot be reached: WAL is missing between backup {} and the target",
            world.backups[0].id
        ),
        "missing_segments": [
            {
                "first_segment": "000000010000000000000005",
                "last_segment": "000000010000000000000005",
                "segment_count": 1,
            },
        ],
        "nearest_targets": [
            {
                "earlier": true,
                "timeline": 1,
                "lsn": "0/480000",
                "time": "2000-01-01T00:07:30Z",
                "options": ["--target-timeline", "1", "--target-lsn", "0/480000"],
            },
            {
                "earlier": false,
                "timeline": 1,
                "lsn": "0/880000",
                "time": "2000-01-01T00:14:20Z",
                "options": ["--target-timeline", "1", "--target-immediate", "--backup", second.to_string()],
            },
        ],
        "hint": json(&verdict)["hint"],
    });
    assert_eq!(json(&verdict), expected);
    let text = text::unreachable(&verdict.unwrap_err(), &given());
    assert!(text.contains("Missing     000000010000000000000005\n"), "{text}");
    assert!(text.contains("reached by --target-timeline 1 --target-lsn 0/480000\n"), "{text}");
}

/// What the planner calls facts names the options that reach what is meant.
#[test]
fn hints_and_notes_name_options() {
    let (mut world, [first, second, _]) = world();
    let hints = |request: &RestoreRequest| {
        let refusal = world.plan(request).unwrap_err();
        refusal.hints.iter().map(|hint| hints::hint(hint, &given())).collect::<Vec<_>>().join("\n")
    };
    let elsewhere = hints(&on(3, RecoveryTarget::Name("late".into())));
    assert!(elsewhere.contains("add --target-timeline 1."), "{elsewhere}");
    let mistyped = hints(&on(3, RecoveryTarget::Name("leat".into())));
    assert!(mistyped.contains("restore points, the newest first: late, early."), "{mistyped}");
    let abandoned = hints(&on(3, RecoveryTarget::Lsn(Lsn(12 * SIZE))));
    assert!(abandoned.contains("Timeline 2 has that moment: add --target-timeline 2."), "{abandoned}");
    let also = world
        .plan(&RestoreRequest { target: RecoveryTarget::Time(at(900)), ..RestoreRequest::default() })
        .unwrap();
    assert_eq!(
        notes(&also),
        ["Timeline 1 has that moment, too.\nHINT: --target-timeline 1 recovers it there."]
    );

    world.backups[1].damaged_pages = 2;
    let spared = world.plan(&on(1, RecoveryTarget::Latest)).unwrap();
    assert_eq!(spared.backup.id, first);
    let expected = format!(
        "Backup {second} is newer but was not chosen: 2 of its pages had wrong checksums when it was \
         taken.\nHINT: --backup \
         {second} restores it anyway."
    );
    assert!(notes(&spared).contains(&expected), "{spared:?}");
}

/// Where a timeline has no segment yet, its number is what asks for the same again, not that of its parent.
#[test]
fn a_plan_is_asked_for_again_by_the_timeline_it_leads_to() {
    let (mut world, [first, ..]) = world();
    world.files.retain(|(timeline, _)| *timeline != tli(3));
    let plan = world.plan(&RestoreRequest { backup: Some(first), ..RestoreRequest::default() }).unwrap();
    let again = options::of_plan(&plan).join(" ");
    assert_eq!(plan.timeline, tli(1));
    assert!(again.contains("--target-timeline 3 "), "{again}");
}

#[test]
fn a_moment_of_a_named_lineage_is_reached_with_its_name() {
    let (mut world, _) = world();
    world.files.remove(&(tli(1), SegmentNo(5)));
    let mut refusal = world.plan(&on(1, RecoveryTarget::Lsn(Lsn(6 * SIZE)))).unwrap_err();
    refusal.nearest[0].lineage = Some("7-1".parse().unwrap());
    let options = options::of_moment(&refusal.nearest[0]);
    assert_eq!(options, ["--lineage", "7-1", "--target-timeline", "1", "--target-lsn", "0/480000"]);
}

#[test]
fn a_name_of_another_party_is_one_word_and_controls_no_terminal() {
    let (world, _) = world();
    let mut plan = world.plan(&on(1, RecoveryTarget::Name("early".into()))).unwrap();
    plan.target = RecoveryTarget::Name("-x\nHINT: run \u{1b}[2Jit".to_owned());
    assert_eq!(options::of_plan(&plan)[0], "--target-name=-x\nHINT: run \u{1b}[2Jit");
    let text = text::plan(&plan, &[], size());
    assert!(!text.contains('\u{1b}') && !text.contains("\nHINT"), "{text}");
    assert!(text.contains("restore point \"-x\\nHINT"), "{text}");
}

/// One command, copied as it is printed, leads to the moment before a removal; programs get the same.
#[test]
fn a_removal_before_the_target_comes_with_the_command_that_leads_before_it() {
    let (mut world, _) = world();
    let request = RestoreRequest { action: TargetAction::Pause, ..on(1, RecoveryTarget::Time(at(700))) };
    let (lsn, time) = (Lsn(5 * SIZE), at(500));
    let mut plan_with = |unlocked| {
        world.removals = vec![(tli(1), Removal { xid: 900, time, lsn, unlocked, database: None })];
        world.plan(&request)
    };
    let unlocked = |same_transactions| Some(UnlockedPosition { lsn: Lsn(0x4FFF00), same_transactions });
    let (by_lsn, by_xid) = (
        "restore-agent plan --cluster main --target-lsn 0/4FFF00 --target-exclusive",
        "restore-agent plan --cluster main --target-xid 900 --target-exclusive",
    );
    let verdict = plan_with(unlocked(true));
    let expected = format!(
        "Transaction 900 was committed before the target, at 2000-01-01 00:08:20.000000+00, and removed relations, as DROP and \
         TRUNCATE do: the restored server does not have them.\nHINT: If that was the accident, restore the moment before it: {by_lsn}"
    );
    assert_eq!(notes(verdict.as_ref().unwrap()), [expected]);
    assert_eq!(
        json(&verdict)["removal"],
        serde_json::json!({
            "xid": 900,
            "time": "2000-01-01T00:08:20Z",
            "lsn": "0/500000",
            "unlocked_lsn": "0/4FFF00",
            "other_transactions_between": false,
            "options": ["--target-lsn", "0/4FFF00", "--target-exclusive"],
            "command": by_lsn.split(' ').collect::<Vec<_>>(),
        })
    );
    let note = notes(&plan_with(unlocked(false)).unwrap()).remove(0);
    let both = [": ", by_lsn, "\nHINT: Other transactions ended"].concat();
    assert!(note.contains(&both) && note.ends_with(&[": ", by_xid].concat()), "{note}");
    let note = notes(&plan_with(None).unwrap()).remove(0);
    let waits = [": ", by_xid, "\nHINT: Queries that read what was removed then wait"].concat();
    assert!(note.contains(&waits), "{note}");

    world.removals =
        vec![(tli(1), Removal { xid: 901, time, lsn: Lsn(12 * SIZE), unlocked: None, database: None })];
    let after = RestoreRequest { target: RecoveryTarget::Time(at(99_999)), ..request };
    let verdict = world.plan(&after);
    assert_eq!(json(&verdict)["removal"]["xid"], 901);
    let text = text::unreachable(&verdict.unwrap_err(), &given());
    let by_xid = by_xid.replace("900", "901");
    assert!(
        text.contains(&format!("If that was the accident, restore the moment before it: {by_xid}\nHINT: ")),
        "{text}"
    );
}
