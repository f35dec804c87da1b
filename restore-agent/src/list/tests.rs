//! What is printed of contents that are written by hand.

use walpoint_base::{BackupId, Lsn, PgMajor, PgTimestamp, SegmentSize, TimelineId};
use walpoint_repo::backup::{BackupKind, BackupStage, Method};
use walpoint_repo::catalog::RestorePointStatus;
use walpoint_repo::catalog::status::{
    BackupDetails, BackupStatus, ClusterStatus, DamagedLineageStatus, LineageStatus, TimelineStatus,
    WindowStatus,
};
use walpoint_runtime::args::CommonArgs;
use walpoint_storage::RepoError;

use super::document::ListDocument;
use super::options::PlanOptions;
use super::read::{Contents, Listed, Unlisted, latest_time, nothing_listed, open_segment};
use super::{ListArgs, Sections, text};

const DEFAULT: ListArgs = ListArgs { backups: false, restore_points: false };

fn id(n: u32) -> BackupId {
    format!("20261121T100000Z-00000001-0000000002000028-{n:08x}").parse().unwrap()
}

fn backup(n: u32, state: BackupStage, details: Option<BackupDetails>) -> BackupStatus {
    let id = id(n);
    BackupStatus {
        id,
        timeline: id.timeline(),
        start_lsn: id.start(),
        start_time: id.started(),
        state,
        damaged_page_count: None,
        manifest_damage: None,
        details,
    }
}

fn details(lineage: &str, label: &str, damage: Option<&str>) -> Option<BackupDetails> {
    Some(BackupDetails {
        label: label.to_owned(),
        lineage: lineage.parse().unwrap(),
        kind: BackupKind::Full,
        method: Method::Local,
        from_standby: false,
        stop_time: "2026-11-21T10:00:05.5Z".parse().unwrap(),
        seconds: 5.5,
        file_bytes: 24 << 20,
        new_bytes: 24 << 20,
        stored_bytes: 4 << 20,
        page_count: 3000,
        data_checksums: true,
        damaged_pages: 0,
        damaged_pack_count: 0,
        damaged_segment_count: 0,
        damage: damage.map(str::to_owned),
    })
}

fn time(text: &str) -> PgTimestamp {
    PgTimestamp::from_time(text.parse().unwrap())
}

fn point(name: &str, lsn: &str, same_name: usize) -> RestorePointStatus {
    RestorePointStatus {
        name: name.to_owned(),
        timeline: TimelineId::FIRST,
        lsn: lsn.parse().unwrap(),
        time: Some(time("2026-11-21T10:01:00.25Z")),
        same_name,
    }
}

fn timeline(number: u32) -> TimelineStatus {
    let window = WindowStatus {
        from_lsn: "0/2000100".parse().unwrap(),
        from_time: Some(time("2026-11-21T10:00:05.5Z")),
        until_lsn: "0/5000000".parse().unwrap(),
        until_time: None,
        continues_parent: false,
        oldest_backup: id(1),
        backup_count: 1,
    };
    TimelineStatus {
        timeline: TimelineId::new(number).unwrap(),
        parent: None,
        first_segment: None,
        last_segment: None,
        segment_count: 4,
        stored_bytes: 4096,
        windows: vec![window],
        gaps: Vec::new(),
        breaks: Vec::new(),
        damaged_segments: Vec::new(),
    }
}

fn lineage(id: &str, timelines: &[u32], restore_points: Vec<RestorePointStatus>) -> LineageStatus {
    LineageStatus {
        lineage: id.parse().unwrap(),
        parent: None,
        postgresql_major: PgMajor::new(17).unwrap(),
        segment_bytes: 16 << 20,
        timelines: timelines.iter().map(|number| timeline(*number)).collect(),
        restore_points,
        older_restore_points: 0,
        errors: Vec::new(),
        settlements: Vec::new(),
    }
}

fn listed(lineages: Vec<LineageStatus>, backups: Vec<BackupStatus>) -> Listed {
    let drawings = lineages.iter().map(|_| "  timeline 1    B====\n".to_owned()).collect();
    let status = ClusterStatus {
        cluster: "main".parse().unwrap(),
        repository: "near".to_owned(),
        url: "file:///near".to_owned(),
        time: "2026-11-22T00:00:00Z".parse().unwrap(),
        lineages,
        damaged_lineages: Vec::new(),
        backups,
    };
    Listed {
        repository: "near".to_owned(),
        url: "file:///near".to_owned(),
        contents: Ok(Contents { status, drawings }),
    }
}

fn unreadable() -> Listed {
    Listed {
        repository: "far".to_owned(),
        url: "s3://far".to_owned(),
        contents: Err(Unlisted::Unread("it did not answer".to_owned())),
    }
}

fn printed(all: &[Listed], args: ListArgs) -> String {
    let common = CommonArgs { cluster: Some("main".parse().unwrap()), ..CommonArgs::default() };
    let options = PlanOptions::of(&common, all);
    text::cluster(&"main".parse().unwrap(), all, &options, args.sections(), args.backups)
}

#[test]
fn a_cluster_is_listed_with_the_commands_that_plan_its_restore() {
    let points = vec![
        point("before upgrade", "0/3000028", 0),
        point("daily", "0/4000028", 1),
        point("daily", "0/4000100", 1),
    ];
    let backups = vec![
        backup(1, BackupStage::Finished, details("7-1", "first", None)),
        backup(2, BackupStage::Finished, details("7-1", "", Some("2 damaged pages"))),
        backup(3, BackupStage::Finished, None),
        backup(4, BackupStage::Aborted, None),
        backup(5, BackupStage::Unfinished, None),
    ];
    let all = [listed(vec![lineage("7-1", &[1], points)], backups), unreadable()];
    assert_eq!(
        printed(&all, DEFAULT),
        "Cluster main in near (file:///near)\n\
         \n\
         Lineage 7-1, PostgreSQL 17\n  \
           timeline 1    B====\n\
         \n  \
           Backups\n    \
             FINISHED              KIND  SIZE      TIMELINE  STATE    LABEL  ID\n    \
             2026-11-21T10:00:05Z  full  24.0 MiB  1         sound    first  20261121T100000Z-00000001-0000000002000028-00000001\n    \
             2026-11-21T10:00:05Z  full  24.0 MiB  1         DAMAGED         20261121T100000Z-00000001-0000000002000028-00000002\n      \
               damage: 2 damaged pages\n\
         \n  \
           Restore points\n    \
             NAME              TIME                     LSN        TIMELINE  PLAN WITH\n    \
             before upgrade    2026-11-21T10:01:00.25Z  0/3000028  1         --target-name 'before upgrade'\n    \
             daily (one of 2)  2026-11-21T10:01:00.25Z  0/4000028  1         --target-lsn 0/4000028\n    \
             daily (one of 2)  2026-11-21T10:01:00.25Z  0/4000100  1         --target-lsn 0/4000100\n\
         \n  \
           Windows, every moment of which can be recovered\n    \
             timeline 1  2026-11-21T10:00:05.5Z (backup, 0/2000100) to 0/5000000 (no transaction has ended since), 1 backup\n\
         \n\
         Backups whose manifests could not be read\n    \
             20261121T100000Z-00000001-0000000002000028-00000003\n\
         \n\
         1 unfinished backup, never used to restore\n\
         \n\
         Cluster main in far (s3://far)\n  \
           cannot be read: it did not answer\n\
         \n\
         Plan a restore, which writes nothing:\n  \
           restore-agent plan --cluster main                                 # to the end of the archive\n  \
           restore-agent plan --cluster main --target-time TIME              # to a time in a window\n  \
           restore-agent plan --cluster main --target-name NAME              # to a restore point\n  \
           restore-agent plan --cluster main --target-immediate --backup ID  # to the end of a backup\n"
    );
}

#[test]
fn what_is_asked_for_alone_is_listed_whole() {
    let named = |n| backup(n, BackupStage::Finished, details("7-1", &format!("b{n}."), None));
    let backups: Vec<BackupStatus> = (0..25).map(named).collect();
    let mut lineage = lineage("7-1", &[1], vec![point("p", "0/3000028", 0)]);
    lineage.older_restore_points = 4;
    let all = [listed(vec![lineage], backups)];
    let text = printed(&all, DEFAULT);
    assert!(!text.contains("b4.") && text.contains("b5.") && text.contains("5 older: --backups"), "{text}");
    assert!(text.contains("4 older: --restore-points lists all"), "{text}");
    let text = printed(&all, ListArgs { backups: true, restore_points: false });
    assert!(text.contains("b0.") && !text.contains("older"), "{text}");
    assert!(!text.contains("Restore points") && !text.contains("Windows"), "{text}");
    let text = printed(&all, ListArgs { backups: false, restore_points: true });
    assert!(text.contains("--target-name p\n") && !text.contains("  Backups\n"), "{text}");
}

#[test]
fn where_there_are_several_the_options_choose_lineage_and_timeline() {
    let relative = CommonArgs { config: Some("w.toml".into()), ..CommonArgs::default() };
    let here = std::env::current_dir().unwrap().join("w.toml");
    assert_eq!(PlanOptions::of(&relative, &[]).selection, ["--config", here.to_str().unwrap()]);
    let common = CommonArgs::default();
    let two = [listed(vec![lineage("7-1", &[1, 2], vec![]), lineage("8-1", &[1], vec![])], vec![])];
    let options = PlanOptions::of(&common, &two);
    let Ok(Contents { status, .. }) = &two[0].contents else { panic!("it is readable") };
    let [first, second] = &status.lineages[..] else { panic!("there are two") };
    let to = |lineage: &LineageStatus, point: &RestorePointStatus| options.to_point(lineage, point).join(" ");
    assert_eq!(to(first, &point("p", "0/3000028", 0)), "--lineage 7-1 --target-timeline 1 --target-name p");
    assert_eq!(to(second, &point("-p", "0/3000028", 0)), "--lineage 8-1 --target-name=-p");
    assert_eq!(to(second, &point("a\nb", "0/3000028", 0)), "--lineage 8-1 --target-lsn 0/3000028");
    assert!(printed(&two, DEFAULT).contains(", 1 backup: --lineage 7-1 --target-timeline 2\n"));

    // What is known of a lineage only from its damaged facts may be meant, too.
    let mut one = listed(vec![lineage("7-1", &[1], vec![])], vec![]);
    assert!(!PlanOptions::of(&common, std::slice::from_ref(&one)).several_lineages);
    if let Ok(contents) = &mut one.contents {
        let (lineage, error) = ("9-1".parse().unwrap(), "torn".to_owned());
        let damaged = DamagedLineageStatus { lineage, object: "x".to_owned(), error };
        contents.status.damaged_lineages.push(damaged);
    }
    assert!(PlanOptions::of(&common, &[one]).several_lineages);
}

#[test]
fn a_timeline_is_chosen_where_another_repository_has_a_younger_one() {
    let both = [
        listed(vec![lineage("7-1", &[1], vec![]), lineage("8-1", &[1], vec![])], vec![]),
        unreadable(),
        listed(vec![lineage("7-1", &[1, 2], vec![])], vec![]),
    ];
    let options = PlanOptions::of(&CommonArgs::default(), &both);
    let Ok(Contents { status, .. }) = &both[0].contents else { panic!("it is readable") };
    let of = |lineage: &LineageStatus| options.on_timeline(lineage, TimelineId::FIRST).join(" ");
    assert_eq!(of(&status.lineages[0]), "--lineage 7-1 --target-timeline 1");
    assert_eq!(of(&status.lineages[1]), "--lineage 8-1");
}

#[test]
fn without_anything_to_list_the_failure_says_whose_fault_it_is() {
    let none = || Listed {
        contents: Err(Unlisted::NoCluster(
            "the repository has no cluster main\nDETAIL: It has: x.".to_owned(),
        )),
        ..unreadable()
    };
    let wrong = || Listed { contents: Err(Unlisted::WrongSettings("no key".to_owned())), ..unreadable() };
    for (listed, status, says) in [
        (vec![unreadable(), wrong()], 1, "no repository of cluster \"main\" could be read"),
        (vec![wrong(), unreadable()], 2, "no repository of cluster \"main\" could be read"),
        (vec![none(), wrong()], 2, "no repository that could be read has cluster \"main\""),
        (vec![none(), unreadable()], 1, "no repository that could be read has cluster \"main\""),
        (vec![none(), none()], 1, "no repository has cluster \"main\""),
    ] {
        let failure = nothing_listed(&"main".parse().unwrap(), &listed);
        assert_eq!((failure.status, failure.to_string().as_str()), (status, says), "{listed:?}");
    }
    let text = printed(&[none()], DEFAULT);
    assert!(
        text.contains("(s3://far)\n  the repository has no cluster main\n  DETAIL: It has: x.\n"),
        "{text}"
    );
    let settings = RepoError::settings("url", "it is wrong");
    assert!(matches!(Unlisted::from(settings), Unlisted::WrongSettings(_)));
}

#[test]
fn a_name_or_a_label_stays_on_its_line() {
    let backups = vec![backup(1, BackupStage::Finished, details("7-1", "a\u{1b}[31m\nb", None))];
    let text =
        printed(&[listed(vec![lineage("7-1", &[1], vec![point("x\ny", "0/1", 0)])], backups)], DEFAULT);
    assert!(text.contains(r"a\u{1b}[31m\nb") && text.contains(r"x\ny"), "{text}");
}

#[test]
fn the_document_has_what_was_asked_for() {
    let points = vec![point("daily", "0/4000028", 1)];
    let finished = backup(1, BackupStage::Finished, details("7-1", "first", None));
    let backups = vec![finished, backup(4, BackupStage::Aborted, None)];
    let all = [listed(vec![lineage("7-1", &[1], points)], backups), unreadable()];
    let options = PlanOptions::of(&CommonArgs::default(), &all);
    let json = |sections: Sections| {
        let (cluster, now) = ("main".parse().unwrap(), "2026-11-22T00:00:00Z".parse().unwrap());
        serde_json::to_value(ListDocument::new(&cluster, now, &all, &options, sections)).unwrap()
    };
    let whole = json(DEFAULT.sections());
    let near = &whole["repositories"][0];
    assert_eq!(whole["plan_command"], serde_json::json!(["restore-agent", "plan"]));
    assert_eq!(near["backups"].as_array().unwrap().len(), 1, "{near}");
    assert_eq!(
        (&near["backups"][0]["lineage"], &near["backups"][0]["id"]),
        (&"7-1".into(), &id(1).to_string().into())
    );
    let point = &near["restore_points"][0];
    assert_eq!((&point["name"], &point["same_name_count"]), (&"daily".into(), &1.into()), "{point}");
    assert_eq!(point["options"], serde_json::json!(["--target-lsn", "0/4000028"]));
    let window = &near["windows"][0];
    assert_eq!((&window["timeline"], &window["from_lsn"]), (&1.into(), &"0/2000100".into()), "{window}");
    let far = &whole["repositories"][1];
    assert!(far["error"]["message"] == "it did not answer" && far.get("backups").is_none(), "{far}");
    let only = json(ListArgs { backups: true, restore_points: false }.sections());
    let near = &only["repositories"][0];
    assert!(near.get("restore_points").is_none() && near.get("windows").is_none(), "{near}");
    assert!(near["backups"].is_array(), "{near}");
}

#[test]
fn only_the_timelines_own_commits_count_for_it() {
    let mut of = lineage("1-1", &[1, 2], Vec::new());
    for (timeline, until) in of.timelines.iter_mut().zip(["2026-11-21T12:00:00Z", "2026-11-21T11:00:00Z"]) {
        timeline.windows[0].until_time = Some(time(until));
    }
    let listed = [listed(vec![of.clone()], Vec::new()), unreadable()];
    let latest = |timeline| latest_time(&listed, of.lineage, TimelineId::new(timeline).unwrap());
    assert_eq!(latest(1), Some(time("2026-11-21T12:00:00Z")));
    assert_eq!(latest(2), Some(time("2026-11-21T11:00:00Z")));
    assert_eq!(latest(3), None);
}

#[test]
fn a_window_that_ends_within_a_segment_has_more_than_whole_segments() {
    let open = |until: u64| {
        let size = SegmentSize::new(16 << 20).unwrap();
        let found = open_segment(Lsn(until), TimelineId::FIRST, size);
        found.map(|(name, until)| (name.to_string(), until.0))
    };
    assert_eq!(open(0x500_0000), None);
    let name = "000000010000000000000005".to_owned();
    assert_eq!(open(0x500_0158), Some((name, 0x500_0158)));
}
