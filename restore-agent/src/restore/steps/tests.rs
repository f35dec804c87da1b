//! The table of [`decide`]: every combination of what can lie at a target and in which mode it is restored into, and what is decided.

use std::io;

use walpoint_base::SystemId;

use super::*;
use crate::restore::directory::DirectoryError;
use crate::restore::existing::Existing;
use crate::restore::kept::Kept;
use crate::restore::previous::Record;
use crate::restore::running::{Hiding, LockFile, Reason};
use crate::restore::target_state::Previous;

/// What lies in the directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum In {
    Unreadable,
    Empty,
    /// An unfinished restore.
    Begun,
    /// An unfinished repair.
    BegunRepair,
    /// A finished restore with its marker.
    Finished,
    Other,
}

/// Whether there is a data directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Data {
    Unreadable,
    None,
    Found,
}

/// What an earlier restore moved aside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Moved {
    UnreadableRecord,
    None,
    Unreadable,
    /// Its record is left, and no data directory.
    Emptied,
    /// Another data directory has come in its place since.
    Succeeded,
    Found,
}

const CONTENTS: &[In] = &[In::Unreadable, In::Empty, In::Begun, In::BegunRepair, In::Finished, In::Other];
const DATA: &[Data] = &[Data::Unreadable, Data::None, Data::Found];
const MOVED: &[Moved] = &[
    Moved::UnreadableRecord,
    Moved::None,
    Moved::Unreadable,
    Moved::Emptied,
    Moved::Succeeded,
    Moved::Found,
];

const NEW: RestoreMode = RestoreMode::New;
const DELTA: RestoreMode = RestoreMode::Delta { discard_wal: false, overwrite_other: false };
const DELTA_DISCARD: RestoreMode = RestoreMode::Delta { discard_wal: true, overwrite_other: false };
const DELTA_OVERWRITE: RestoreMode = RestoreMode::Delta { discard_wal: false, overwrite_other: true };
const DELTA_DISCARD_OVERWRITE: RestoreMode = RestoreMode::Delta { discard_wal: true, overwrite_other: true };
const REPLACE: RestoreMode = RestoreMode::Replace { discard_wal: false };
const REPLACE_DISCARD: RestoreMode = RestoreMode::Replace { discard_wal: true };
const MODES: &[RestoreMode] =
    &[NEW, DELTA, DELTA_DISCARD, DELTA_OVERWRITE, DELTA_DISCARD_OVERWRITE, REPLACE, REPLACE_DISCARD];

const EVERY_DELTA: &[RestoreMode] = &[DELTA, DELTA_DISCARD, DELTA_OVERWRITE, DELTA_DISCARD_OVERWRITE];
const KEEPING_DELTA: &[RestoreMode] = &[DELTA, DELTA_OVERWRITE];
const DISCARDING_DELTA: &[RestoreMode] = &[DELTA_DISCARD, DELTA_DISCARD_OVERWRITE];
const BOTH_REPLACE: &[RestoreMode] = &[REPLACE, REPLACE_DISCARD];

/// Of these combinations, what is decided.
struct Row {
    contents: &'static [In],
    modes: &'static [RestoreMode],
    data: &'static [Data],
    moved: &'static [Moved],
    is: Result<Vec<Step>, Refusal>,
}

fn marker(delta: bool) -> Marker {
    Marker {
        repository: "r".into(),
        cluster: "c".into(),
        lineage: "7-1".into(),
        backup: "b".into(),
        target: "latest".into(),
        requested: None,
        relative: None,
        replaces: None,
        directories: claimed(),
        delta,
        claiming: false,
    }
}

fn claimed() -> Vec<PathBuf> {
    vec!["/fast".into()]
}

fn record(succeeded: bool) -> Record {
    let aside = "/data.walpoint-old-20260101T000000Z";
    let json = serde_json::json!({"pgdata": "/data", "aside": aside, "moves": [], "succeeded": succeeded});
    serde_json::from_value(json).unwrap()
}

fn state(contents: In, data: Data, moved: Moved, server: RunningServer) -> TargetState {
    let unreadable = || io::Error::from(io::ErrorKind::PermissionDenied);
    let record = record(moved == Moved::Succeeded);
    let previous = |existing| Previous { record, complete: true, pending: Vec::new(), existing };
    TargetState {
        server,
        contents: match contents {
            In::Unreadable => Err(DirectoryError::NoDirectory("/data".into())),
            In::Empty => Ok(Contents::Empty),
            In::Begun => Ok(Contents::Unfinished(marker(false))),
            In::BegunRepair => Ok(Contents::Unfinished(marker(true))),
            In::Finished => Ok(Contents::Finished(marker(false))),
            In::Other => Ok(Contents::Occupied("x".into())),
        },
        present: match data {
            Data::Unreadable => Err(unreadable()),
            Data::None => Ok(None),
            Data::Found => Ok(Some(Existing::default())),
        },
        waiting: Ok(Vec::new()),
        previous: match moved {
            Moved::UnreadableRecord => Err(unreadable().into()),
            Moved::None => Ok(None),
            Moved::Unreadable => Ok(Some(previous(Err(unreadable())))),
            Moved::Emptied => Ok(Some(previous(Ok(None)))),
            Moved::Succeeded | Moved::Found => Ok(Some(previous(Ok(Some(Existing::default()))))),
        },
        asides: Ok(Vec::new()),
        kept: Ok(Vec::new()),
    }
}

fn table() -> Vec<Row> {
    let mut rows = always();
    rows.extend(without_options());
    rows.extend(with_delta());
    rows.extend(with_delta_over_another());
    rows.extend(with_replace());
    rows
}

/// In every mode.
fn always() -> Vec<Row> {
    let row = |contents, is| Row { contents, modes: MODES, data: DATA, moved: MOVED, is };
    vec![
        row(&[In::Unreadable], Err(Refusal::Unread(Unread::Contents))),
        row(&[In::Finished], Ok(vec![Step::EndFinished(Box::new(marker(false)))])),
    ]
}

fn without_options() -> Vec<Row> {
    let row = |contents, moved, is| Row { contents, modes: &[NEW], data: DATA, moved, is };
    vec![
        row(&[In::Other], MOVED, Err(Refusal::NotEmpty { example: "x".into() })),
        row(&[In::BegunRepair], MOVED, Err(Refusal::OnlyDelta { backup: "b".into() })),
        row(&[In::Empty], MOVED, Ok(vec![Step::ProveReach, Step::MeasureSpace])),
        row(&[In::Begun], &[Moved::UnreadableRecord], Err(Refusal::Unread(Unread::Record))),
        row(&[In::Begun], &[Moved::Unreadable], Err(Refusal::Unread(Unread::Previous))),
        row(
            &[In::Begun],
            &[Moved::None, Moved::Emptied, Moved::Succeeded],
            Ok(vec![Step::StartOver(claimed())]),
        ),
        row(
            &[In::Begun],
            &[Moved::Found],
            Ok(vec![Step::FindWal(Which::Previous, Whose::Own), Step::StartOver(claimed())]),
        ),
    ]
}

fn with_delta() -> Vec<Row> {
    let row = |contents, modes, data, is| Row { contents, modes, data, moved: MOVED, is };
    let follow = || Step::FollowLinks(Which::Present);
    let find = || Step::FindWal(Which::Present, Whose::All);
    let resume = || Step::Resume(claimed());
    vec![
        row(
            &[In::Empty, In::Begun, In::BegunRepair, In::Other],
            EVERY_DELTA,
            &[Data::Unreadable],
            Err(Refusal::Unread(Unread::Present)),
        ),
        row(&[In::Other], EVERY_DELTA, &[Data::None], Err(Refusal::NoDataDirectory { example: "x".into() })),
        row(
            &[In::Begun, In::BegunRepair],
            KEEPING_DELTA,
            &[Data::None],
            Ok(vec![find(), resume(), Step::Keep, Step::Prune]),
        ),
        row(
            &[In::Begun, In::BegunRepair],
            KEEPING_DELTA,
            &[Data::Found],
            Ok(vec![follow(), find(), resume(), Step::Keep, Step::Prune]),
        ),
        row(
            &[In::Begun, In::BegunRepair],
            DISCARDING_DELTA,
            &[Data::None],
            Ok(vec![find(), Step::LeaveWal, resume(), Step::Keep, Step::Prune]),
        ),
        row(
            &[In::Begun, In::BegunRepair],
            DISCARDING_DELTA,
            &[Data::Found],
            Ok(vec![follow(), find(), Step::LeaveWal, resume(), Step::Keep, Step::Prune]),
        ),
        row(
            &[In::Empty],
            KEEPING_DELTA,
            &[Data::None],
            Ok(vec![find(), Step::ProveReach, Step::MeasureSpace, Step::Keep, Step::Prune]),
        ),
        row(
            &[In::Empty],
            DISCARDING_DELTA,
            &[Data::None],
            Ok(vec![find(), Step::LeaveWal, Step::ProveReach, Step::MeasureSpace, Step::Keep, Step::Prune]),
        ),
    ]
}

/// Over a data directory that is not an interrupted restore's.
fn with_delta_over_another() -> Vec<Row> {
    let row = |modes, is| Row { contents: &[In::Other], modes, data: &[Data::Found], moved: MOVED, is };
    let follow = || Step::FollowLinks(Which::Present);
    let find = || Step::FindWal(Which::Present, Whose::All);
    vec![
        row(
            &[DELTA],
            Ok(vec![
                follow(),
                Step::ProveCluster,
                find(),
                Step::ProveArchived,
                Step::ProveReach,
                Step::Keep,
                Step::Prune,
            ]),
        ),
        row(
            &[DELTA_DISCARD],
            Ok(vec![
                follow(),
                Step::ProveCluster,
                find(),
                Step::LeaveWal,
                Step::ProveReach,
                Step::Keep,
                Step::Prune,
            ]),
        ),
        row(
            &[DELTA_OVERWRITE],
            Ok(vec![follow(), find(), Step::ProveArchived, Step::ProveReach, Step::Keep, Step::Prune]),
        ),
        row(
            &[DELTA_DISCARD_OVERWRITE],
            Ok(vec![follow(), find(), Step::LeaveWal, Step::ProveReach, Step::Keep, Step::Prune]),
        ),
    ]
}

fn with_replace() -> Vec<Row> {
    let present = |modes, data, is| Row { contents: &[In::Other], modes, data, moved: MOVED, is };
    let again = |contents, modes, moved, is| Row { contents, modes, data: DATA, moved, is };
    let follow = |which| Step::FollowLinks(which);
    let find = |which| Step::FindWal(which, Whose::Own);
    let (here, there) = (Which::Present, Which::Previous);
    let (reach, space) = (Step::ProveReach, Step::MeasureSpace);
    let finish = Step::FinishMovingAside;
    let over = || Step::StartOver(claimed());
    let gone: &[Moved] = &[Moved::None, Moved::Emptied, Moved::Succeeded];
    vec![
        present(BOTH_REPLACE, &[Data::Unreadable], Err(Refusal::Unread(Unread::Present))),
        present(BOTH_REPLACE, &[Data::None], Err(Refusal::NoDataDirectory { example: "x".into() })),
        present(
            &[REPLACE],
            &[Data::Found],
            Ok(vec![follow(here), find(here), reach.clone(), space.clone(), Step::MoveAside]),
        ),
        present(
            &[REPLACE_DISCARD],
            &[Data::Found],
            Ok(vec![follow(here), find(here), Step::LeaveWal, reach.clone(), space.clone(), Step::MoveAside]),
        ),
        again(&[In::BegunRepair], BOTH_REPLACE, MOVED, Err(Refusal::OnlyDelta { backup: "b".into() })),
        again(
            &[In::Empty, In::Begun],
            BOTH_REPLACE,
            &[Moved::UnreadableRecord],
            Err(Refusal::Unread(Unread::Record)),
        ),
        again(
            &[In::Empty, In::Begun],
            BOTH_REPLACE,
            &[Moved::Unreadable],
            Err(Refusal::Unread(Unread::Previous)),
        ),
        again(&[In::Empty], &[REPLACE], gone, Ok(vec![reach.clone(), space.clone(), finish.clone()])),
        again(
            &[In::Empty],
            &[REPLACE_DISCARD],
            gone,
            Ok(vec![Step::LeaveWal, reach.clone(), space.clone(), finish.clone()]),
        ),
        again(
            &[In::Empty],
            &[REPLACE],
            &[Moved::Found],
            Ok(vec![follow(there), find(there), reach.clone(), space.clone(), finish.clone()]),
        ),
        again(
            &[In::Empty],
            &[REPLACE_DISCARD],
            &[Moved::Found],
            Ok(vec![follow(there), find(there), Step::LeaveWal, reach, space, finish.clone()]),
        ),
        again(&[In::Begun], &[REPLACE], gone, Ok(vec![finish.clone(), over()])),
        again(&[In::Begun], &[REPLACE_DISCARD], gone, Ok(vec![Step::LeaveWal, finish.clone(), over()])),
        again(
            &[In::Begun],
            &[REPLACE],
            &[Moved::Found],
            Ok(vec![follow(there), find(there), finish.clone(), over()]),
        ),
        again(
            &[In::Begun],
            &[REPLACE_DISCARD],
            &[Moved::Found],
            Ok(vec![follow(there), find(there), Step::LeaveWal, finish, over()]),
        ),
    ]
}

/// Every combination that exists: what has no entry has no `PG_VERSION` that could be read, or not.
fn combinations() -> Vec<(In, Data, Moved, RestoreMode)> {
    let mut all = Vec::new();
    for contents in CONTENTS {
        for data in DATA.iter().filter(|data| *contents != In::Empty || **data != Data::Found) {
            for moved in MOVED {
                all.extend(MODES.iter().map(|mode| (*contents, *data, *moved, *mode)));
            }
        }
    }
    all
}

#[test]
fn every_target_state_and_mode_has_one_row_that_says_what_is_decided() {
    let table = table();
    for combination in combinations() {
        let (contents, data, moved, mode) = combination;
        let rows: Vec<&Row> = table
            .iter()
            .filter(|row| {
                row.contents.contains(&contents)
                    && row.data.contains(&data)
                    && row.moved.contains(&moved)
                    && row.modes.contains(&mode)
            })
            .collect();
        let [row] = rows.as_slice() else { panic!("{combination:?} has {} rows", rows.len()) };
        // What a crashed server left changes nothing.
        for server in [RunningServer::None, RunningServer::Crashed(LockFile::default())] {
            assert_eq!(decide(&state(contents, data, moved, server), mode), row.is, "{combination:?}");
        }
    }
}

/// What was kept, and what was moved aside.
type PutAway = (anyhow::Result<Vec<Kept>>, anyhow::Result<Vec<Record>>);

/// What earlier restores put away, of which the table has none.
fn earlier() -> Vec<PutAway> {
    let kept = serde_json::json!({
        "pgdata": "/data", "directory": "/data.walpoint-kept-20260101T000000Z", "wal": [], "waiting": [], "renamed": []
    });
    let unreadable = || anyhow::anyhow!("unreadable");
    vec![
        (Ok(vec![serde_json::from_value(kept).unwrap()]), Ok(Vec::new())),
        (Ok(Vec::new()), Ok(vec![record(false)])),
        (Err(unreadable()), Ok(Vec::new())),
        (Ok(Vec::new()), Err(unreadable())),
    ]
}

#[test]
fn what_earlier_restores_put_away_is_looked_at_whatever_is_left_of_the_directory() {
    for (contents, data, moved, mode) in combinations() {
        let without = decide(&state(contents, data, moved, RunningServer::None), mode);
        for (kept, asides) in earlier() {
            let with = TargetState { kept, asides, ..state(contents, data, moved, RunningServer::None) };
            let with = decide(&with, mode);
            let what = format!("{contents:?} {data:?} {moved:?} {mode:?}: {with:?}");
            let (Ok(mut with), Ok(without)) = (with.clone(), &without) else {
                assert_eq!(with, without, "{what}");
                continue;
            };
            let at = with.iter().position(|step| *step == Step::LookBack);
            assert_eq!(at.is_some(), contents != In::Finished, "{what}");
            if let Some(at) = at {
                with.remove(at);
                let looks = |step: &Step| matches!(step, Step::FindWal(..) | Step::ProveArchived);
                let later = with
                    .iter()
                    .position(|step| *step == Step::LeaveWal || matches!(step, Step::StartOver(_)));
                assert!(!with[at..].iter().any(looks) && later.is_none_or(|later| later >= at), "{what}");
            }
            assert_eq!(with, *without, "{what}");
        }
    }
}

#[test]
fn where_a_server_runs_or_may_run_nothing_is_done_whatever_lies_there() {
    let reason = Reason::Hidden(Hiding::Namespace);
    for (contents, data, moved, mode) in combinations() {
        for file in [None, Some(LockFile::default())] {
            let state = state(contents, data, moved, RunningServer::Running(file.clone(), reason.clone()));
            assert_eq!(decide(&state, mode), Err(Refusal::Running { file, reason: reason.clone() }));
        }
    }
}

#[test]
fn a_refusal_says_why_what_it_needs_could_not_be_read() {
    let pgdata = std::path::Path::new("/data");
    for (contents, data, moved, mode, says) in [
        (In::Unreadable, Data::None, Moved::None, NEW, "/data is not a directory"),
        (In::Other, Data::Unreadable, Moved::None, DELTA, "/data: permission denied"),
        (In::Empty, Data::None, Moved::UnreadableRecord, REPLACE, "permission denied"),
        (
            In::Empty,
            Data::None,
            Moved::Unreadable,
            REPLACE,
            "/data.walpoint-old-20260101T000000Z: permission",
        ),
    ] {
        let state = state(contents, data, moved, RunningServer::None);
        let refusal = decide(&state, mode).unwrap_err();
        let error = format!("{:#}", refusal.explain_from(pgdata, state));
        assert!(error.starts_with(says), "{error}");
    }
}

#[test]
fn an_interrupted_restore_of_another_lineage_or_cluster_is_not_gone_over() {
    let wanted = |cluster: &str, lineage: &str, repository: &str| Marker {
        cluster: cluster.into(),
        lineage: lineage.into(),
        repository: repository.into(),
        backup: "another".into(),
        ..marker(false)
    };
    let older = Marker { lineage: String::new(), ..marker(false) };
    for (earlier, wanted, is_refused) in [
        (marker(false), wanted("c", "7-1", "r"), false),
        (marker(false), wanted("c", "7-1", "s"), false),
        (marker(false), wanted("c", "7-2", "r"), true),
        (marker(false), wanted("d", "7-1", "r"), true),
        (older.clone(), wanted("c", "7-2", "r"), false),
        (older, wanted("c", "7-1", "s"), true),
    ] {
        let refused = same_restore(&Contents::Unfinished(earlier), &wanted);
        let is = if is_refused { Err(Refusal::OtherRestore { cluster: "c".into() }) } else { Ok(()) };
        assert_eq!(refused, is, "{wanted:?}");
        for contents in [Contents::Empty, Contents::Finished(marker(false)), Contents::Occupied("x".into())] {
            assert_eq!(same_restore(&contents, &wanted), Ok(()));
        }
    }
}

#[test]
fn only_the_plans_cluster_is_proven() {
    let (own, other) = (SystemId(7), SystemId(8));
    assert_eq!(cluster(Some(own), own), Ok(()));
    assert_eq!(cluster(Some(other), own), Err(Refusal::OtherCluster { found: other, wanted: own }));
    assert_eq!(cluster(None, own), Err(Refusal::UnknownCluster));
}

#[test]
fn what_waits_and_is_in_no_archive_is_refused_and_named() {
    let names = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<WalFileName>>();
    let refused = |lost: &[WalFileName], other: Option<WalFileName>| {
        let (count, first) = (lost.len(), lost[0]);
        Err(Refusal::NotArchived { repository: "r".into(), count, first, other })
    };
    let lost = names(&["000000010000000000000003.partial", "000000010000000000000004", "00000002.history"]);
    assert_eq!(archived(&[], |_| true, "r"), Ok(()));
    assert_eq!(archived(&lost, |_| false, "r"), refused(&lost, None));
    assert_eq!(archived(&lost, |name| *name == lost[2], "r"), refused(&lost, Some(lost[2])));
    assert_eq!(
        archived(&lost, |_| true, "r"),
        refused(&lost, Some(lost[1])),
        "several copies may be partial"
    );
}
