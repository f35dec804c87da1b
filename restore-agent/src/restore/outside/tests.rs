//! The tables of [`decide`] and [`location`]: every combination of what can lie in a directory outside the data directory and what is done
//! with that, and every combination of what can lie where replay creates a tablespace. No filesystem is asked.

use super::super::directory::{DirectoryError, InUse};
use super::super::identity::fixtures::position;
use super::super::outside_state::UsedDirectory;
use super::super::outside_state::{DataState, DirectoryState};
use super::super::running::{Hiding, Reason};
use super::*;

const PENDING: &[&str] = &["/fast"];

/// What is in the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum In {
    Nothing,
    Files,
    /// It is a file itself.
    File,
    Unreadable,
}

/// Whether a link of the data directory leads there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Linked {
    No,
    /// No server could use it unseen.
    Seen,
    /// A server could.
    Hidden,
    /// Whether one could was not found out.
    Unseen,
}

/// What is done with the data directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Data {
    Written,
    Repaired,
    Moved,
    /// An interrupted run moved it, and the directory had to follow.
    MovingThis,
    MovingOthers,
}

const ALL_IN: &[In] = &[In::Nothing, In::Files, In::File, In::Unreadable];
const IN_THE_WAY: &[In] = &[In::Files, In::File, In::Unreadable];
const LINKED: &[Linked] = &[Linked::No, Linked::Seen, Linked::Hidden, Linked::Unseen];
const DATA: &[Data] = &[Data::Written, Data::Repaired, Data::Moved, Data::MovingThis, Data::MovingOthers];
const BOTH: &[bool] = &[false, true];
const NO: &[bool] = &[false];
const YES: &[bool] = &[true];

/// One combination.
#[derive(Debug, Clone, Copy)]
struct Case {
    lies: In,
    claimed: bool,
    linked: Linked,
    /// Whether it is where what lay outside goes unless told otherwise.
    extra: bool,
    /// Whether root must not fill it.
    barred: bool,
    /// Whether another server uses it.
    used: bool,
    /// Whether it cannot be moved.
    fixed: bool,
    data: Data,
}

/// What is decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Is {
    Fill,
    Reclaim,
    Repair,
    MoveAside,
    MoveExtraAside,
    FinishMovingAside,
    Barred,
    Used,
    InUse,
    Hidden,
    Unseen,
    Fixed,
}

/// Of these combinations, what is decided.
struct Row {
    lies: &'static [In],
    claimed: &'static [bool],
    linked: &'static [Linked],
    extra: &'static [bool],
    barred: &'static [bool],
    used: &'static [bool],
    fixed: &'static [bool],
    data: &'static [Data],
    is: Is,
}

/// What holds of most rows: something lies there that no restore claimed, and nothing speaks against it.
const COMMON: Row = Row {
    lies: IN_THE_WAY,
    claimed: NO,
    linked: LINKED,
    extra: BOTH,
    barred: NO,
    used: NO,
    fixed: BOTH,
    data: DATA,
    is: Is::InUse,
};

fn table() -> Vec<Row> {
    const MOVING: &[Data] = &[Data::MovingThis, Data::MovingOthers];
    vec![
        // Whatever lies there.
        Row { lies: ALL_IN, barred: YES, used: BOTH, is: Is::Barred, ..COMMON },
        Row { lies: ALL_IN, used: YES, is: Is::Used, ..COMMON },
        Row { lies: ALL_IN, claimed: YES, barred: BOTH, used: YES, is: Is::Used, ..COMMON },
        // An unfinished restore into the same data directory claimed it.
        Row { lies: ALL_IN, claimed: YES, barred: BOTH, is: Is::Reclaim, ..COMMON },
        Row { lies: &[In::Nothing], is: Is::Fill, ..COMMON },
        // A link leads there.
        Row { linked: &[Linked::Hidden], is: Is::Hidden, ..COMMON },
        Row { linked: &[Linked::Unseen], is: Is::Unseen, ..COMMON },
        Row { linked: &[Linked::Seen], data: &[Data::Written], is: Is::InUse, ..COMMON },
        Row { linked: &[Linked::Seen], data: &[Data::Repaired], is: Is::Repair, ..COMMON },
        Row { linked: &[Linked::Seen], data: &[Data::Moved], fixed: NO, is: Is::MoveAside, ..COMMON },
        Row { linked: &[Linked::Seen], data: &[Data::Moved], fixed: YES, is: Is::Fixed, ..COMMON },
        Row { linked: &[Linked::Seen], data: &[Data::MovingThis], is: Is::FinishMovingAside, ..COMMON },
        Row { linked: &[Linked::Seen], data: &[Data::MovingOthers], is: Is::InUse, ..COMMON },
        // None does.
        Row { linked: &[Linked::No], extra: NO, is: Is::InUse, ..COMMON },
        Row {
            linked: &[Linked::No],
            extra: YES,
            data: &[Data::Written, Data::Repaired],
            is: Is::InUse,
            ..COMMON
        },
        Row {
            linked: &[Linked::No],
            extra: YES,
            fixed: NO,
            data: &[Data::Moved],
            is: Is::MoveExtraAside,
            ..COMMON
        },
        Row { linked: &[Linked::No], extra: YES, fixed: YES, data: &[Data::Moved], is: Is::Fixed, ..COMMON },
        Row { linked: &[Linked::No], extra: YES, data: &MOVING[..1], is: Is::FinishMovingAside, ..COMMON },
        Row { linked: &[Linked::No], extra: YES, data: &MOVING[1..], is: Is::InUse, ..COMMON },
    ]
}

/// Every combination that can be found: a link is looked for only where something is in the way that no restore claimed.
fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for bits in 0..1 << 5 {
        let bit = |n: u32| bits & 1 << n != 0;
        let (claimed, extra, barred, used, fixed) = (bit(0), bit(1), bit(2), bit(3), bit(4));
        for lies in ALL_IN {
            let is_linkable = *lies != In::Nothing && !claimed;
            for linked in LINKED.iter().filter(|linked| is_linkable || **linked == Linked::No) {
                let case =
                    |data| Case { lies: *lies, claimed, linked: *linked, extra, barred, used, fixed, data };
                cases.extend(DATA.iter().copied().map(case));
            }
        }
    }
    cases
}

fn in_use(lies: In) -> Option<InUse> {
    match lies {
        In::Nothing => None,
        In::Files => Some(InUse::NotEmpty),
        In::File => Some(InUse::NoDirectory),
        In::Unreadable => Some(InUse::Unread("permission denied".into())),
    }
}

fn reason() -> Reason {
    Reason::Hidden(Hiding::Namespace)
}

fn own_link(link: &str, linked: Linked) -> Option<OwnLink> {
    let hidden = match linked {
        Linked::No => return None,
        Linked::Seen => Ok(None),
        Linked::Hidden => Ok(Some(reason())),
        Linked::Unseen => Err("permission denied".into()),
    };
    Some(OwnLink { link: link.into(), hidden })
}

/// A directory in which nothing is.
fn free(path: &str, inodes: &[u64]) -> FoundDirectory {
    FoundDirectory {
        place: Place { position: position(path, inodes), around: None },
        barred: None,
        claimed: false,
        in_use: None,
        link: None,
        is_default_extra: false,
        immovable: None,
    }
}

fn outside(others: Vec<FoundDirectory>) -> OutsideState {
    let state = |found: FoundDirectory| DirectoryState { name: path(&found).to_owned(), found: Ok(found) };
    OutsideState {
        data: DataState {
            place: Place { position: position("/data", &[1, 2]), around: None },
            barred: None,
            immovable: None,
        },
        others: others.into_iter().map(state).collect(),
        repositories: Vec::new(),
        used: None,
    }
}

impl Case {
    fn state(&self) -> OutsideState {
        let directory = FoundDirectory {
            barred: self.barred.then(|| "why".to_owned()),
            claimed: self.claimed,
            in_use: in_use(self.lies),
            link: own_link("pg_tblspc/7", self.linked),
            is_default_extra: self.extra,
            immovable: self.fixed.then_some(Immovable::MountPoint),
            ..free("/fast", &[1, 3])
        };
        let used = UsedDirectory { directory: "/fast".into(), data: "/other".into(), runs: true };
        OutsideState { used: self.used.then_some(used), ..outside(vec![directory]) }
    }

    fn decide(&self) -> Result<DirectoryStep, OutsideRefusal> {
        let (this, none) = (PENDING.iter().map(PathBuf::from).collect::<Vec<_>>(), Vec::new());
        let data = match self.data {
            Data::Written => OfData::Written,
            Data::Repaired => OfData::Repaired,
            Data::Moved => OfData::Moved,
            Data::MovingThis => OfData::Moving { pending: &this },
            Data::MovingOthers => OfData::Moving { pending: &none },
        };
        let decided = decide(&self.state(), data)?;
        let [OutsideDirectory { path, step }] = decided.as_slice() else { panic!("{decided:?}") };
        assert_eq!(path, Path::new("/fast"));
        Ok(step.clone())
    }

    /// What this decision is of this directory.
    fn expected(&self, is: Is) -> Result<DirectoryStep, OutsideRefusal> {
        let (directory, link) = (PathBuf::from("/fast"), PathBuf::from("pg_tblspc/7"));
        match is {
            Is::Fill => Ok(DirectoryStep::Fill),
            Is::Reclaim => Ok(DirectoryStep::Reclaim),
            Is::Repair => Ok(DirectoryStep::Repair { link }),
            Is::MoveAside => Ok(DirectoryStep::MoveAside { link: Some(link) }),
            Is::MoveExtraAside => Ok(DirectoryStep::MoveAside { link: None }),
            Is::FinishMovingAside => Ok(DirectoryStep::FinishMovingAside),
            Is::Barred => Err(OutsideRefusal::Barred { why: "why".into() }),
            Is::Used => {
                Err(OutsideRefusal::Used(UsedDirectory { directory, data: "/other".into(), runs: true }))
            }
            Is::InUse => Err(OutsideRefusal::InUse { directory, in_use: in_use(self.lies).unwrap() }),
            Is::Hidden => Err(OutsideRefusal::Hidden { directory, reason: reason() }),
            Is::Unseen => Err(OutsideRefusal::Unseen { directory, error: "permission denied".into() }),
            Is::Fixed => Err(OutsideRefusal::Fixed { directory, immovable: Immovable::MountPoint }),
        }
    }
}

#[test]
fn every_state_of_a_directory_outside_has_one_row_that_says_what_is_decided() {
    let table = table();
    for case in cases() {
        let rows: Vec<&Row> = table
            .iter()
            .filter(|row| {
                row.lies.contains(&case.lies)
                    && row.claimed.contains(&case.claimed)
                    && row.linked.contains(&case.linked)
                    && row.extra.contains(&case.extra)
                    && row.barred.contains(&case.barred)
                    && row.used.contains(&case.used)
                    && row.fixed.contains(&case.fixed)
                    && row.data.contains(&case.data)
            })
            .collect();
        let [row] = rows.as_slice() else { panic!("{case:?} has {} rows", rows.len()) };
        assert_eq!(case.decide(), case.expected(row.is), "{case:?}");
    }
}

#[test]
fn the_way_of_the_data_directory_decides_about_the_others() {
    let waits = [PathBuf::from("/fast")];
    for (steps, is) in [
        (vec![Step::ProveReach, Step::MeasureSpace], OfData::Written),
        (vec![Step::StartOver(Vec::new())], OfData::Written),
        (vec![Step::Resume(Vec::new()), Step::Keep, Step::Prune], OfData::Repaired),
        (vec![Step::ProveReach, Step::MoveAside], OfData::Moved),
        (vec![Step::FinishMovingAside, Step::StartOver(Vec::new())], OfData::Moving { pending: &waits }),
    ] {
        assert_eq!(OfData::by(&steps, &waits), is, "{steps:?}");
    }
}

/// A directory of the data directory's own that something else speaks against.
fn own(path: &str, inodes: &[u64], link: &str, linked: Linked) -> FoundDirectory {
    FoundDirectory { in_use: Some(InUse::NotEmpty), link: own_link(link, linked), ..free(path, inodes) }
}

#[test]
fn what_speaks_against_any_directory_comes_before_what_is_in_the_way_in_another_one() {
    let foreign = || own("/a", &[1, 3], "", Linked::No);
    let hidden = || own("/b", &[1, 4], "pg_wal", Linked::Hidden);
    let barred = || FoundDirectory { barred: Some("why".into()), ..free("/c", &[1, 5]) };
    let within = || free("/data/new", &[1, 2]);
    let used = || Some(UsedDirectory { directory: "/d".into(), data: "/other".into(), runs: true });
    let with = |others: Vec<FoundDirectory>, used| OutsideState { used, ..outside(others) };
    let unread = |mut state: OutsideState| {
        let error = DirectoryError::NoDirectory("/e".into());
        state.others.push(DirectoryState { name: "/e".into(), found: Err(error) });
        state
    };
    let decided = |state: OutsideState| decide(&state, OfData::Moved).unwrap_err();
    let all = || vec![foreign(), hidden(), barred(), within()];
    let refusal = decided(unread(with(all(), used())));
    assert_eq!(refusal, OutsideRefusal::Unread { name: "/e".into() });
    let error = refusal.explain_from(unread(outside(Vec::new())));
    assert!(format!("{error:#}").starts_with("/e: /e is not a directory"), "{error:#}");
    assert!(matches!(decided(with(all(), used())), OutsideRefusal::WithinEachOther { .. }));
    let apart = || vec![foreign(), hidden(), barred()];
    assert!(matches!(decided(with(apart(), used())), OutsideRefusal::Barred { .. }));
    let reached = || vec![hidden(), foreign()];
    assert!(matches!(decided(with(reached(), used())), OutsideRefusal::Used(_)));
    assert!(matches!(decided(outside(reached())), OutsideRefusal::InUse { .. }));
    assert!(matches!(decided(outside(vec![hidden()])), OutsideRefusal::Hidden { .. }));
    let copied = || used().map(|used| UsedDirectory { runs: false, ..used });
    assert!(matches!(decided(with(vec![hidden()], copied())), OutsideRefusal::Hidden { .. }));
    assert!(matches!(
        decided(with(vec![own("/b", &[1, 4], "pg_wal", Linked::Seen)], copied())),
        OutsideRefusal::Used(UsedDirectory { runs: false, .. })
    ));
}

#[test]
fn directories_are_decided_about_in_the_order_of_the_layout() {
    let state = outside(vec![
        own("/fast", &[1, 3], "pg_tblspc/7", Linked::Seen),
        free("/new", &[1]),
        own("/wal", &[1, 4], "pg_wal", Linked::Seen),
    ]);
    let decided = decide(&state, OfData::Moved).unwrap();
    let link = |link: &str| DirectoryStep::MoveAside { link: Some(link.into()) };
    let directory = |path: &str, step| OutsideDirectory { path: path.into(), step };
    let expected = [
        directory("/fast", link("pg_tblspc/7")),
        directory("/new", DirectoryStep::Fill),
        directory("/wal", link("pg_wal")),
    ];
    assert_eq!(decided, expected);
    let found: Vec<&Path> = positions(&state).map(Position::path).collect();
    assert_eq!(found, ["/fast", "/new", "/wal", "/data"].map(Path::new));
}

#[test]
fn a_data_directory_that_cannot_be_moved_aside_or_must_not_be_filled_is_refused() {
    let mut state = outside(Vec::new());
    state.data.immovable = Some(Immovable::MountPoint);
    state.data.barred = Some("why".into());
    let fixed = OutsideRefusal::Fixed { directory: "/data".into(), immovable: Immovable::MountPoint };
    assert_eq!(decide(&state, OfData::Moved), Err(fixed));
    for data in [OfData::Written, OfData::Repaired, OfData::Moving { pending: &[] }] {
        assert_eq!(decide(&state, data), Ok(Vec::new()));
    }
    let barred = OutsideRefusal::Barred { why: "why".into() };
    assert_eq!(require_data(&state.data, true), Err(barred));
    assert_eq!(require_data(&state.data, false), Ok(()));
}

fn version() -> VersionDirectory {
    VersionDirectory {
        path: "/fast/PG_17_1".into(),
        in_use: Some(InUse::NotEmpty),
        immovable: Some(Immovable::MountPoint),
    }
}

#[test]
fn every_state_of_a_place_where_replay_creates_a_tablespace_is_decided_about() {
    let place = Path::new("/fast");
    let versions = [version()];
    let found = |link: Option<OwnLink>, other: Option<&str>| Lies::Versions {
        versions: versions.to_vec(),
        link,
        other: other.map(PathBuf::from),
    };
    let tablespace = |linked| own_link("pg_tblspc/7", linked);
    let refuse = |other: Option<&'static str>| {
        Ok(LocationStep::Refuse { versions: &versions, other: other.map(Path::new) })
    };
    let put_away = || Ok(LocationStep::PutAway(&versions));
    let nothing = || Ok(LocationStep::Nothing);
    let unseen = || OutsideRefusal::Unseen { directory: place.into(), error: "permission denied".into() };
    let hidden = || OutsideRefusal::Hidden { directory: place.into(), reason: reason() };
    let unread = || OutsideRefusal::UnreadLocation { location: place.into(), error: "broken".into() };
    // What lies there; what is decided if the restore does not write there itself, and if it does.
    for (lies, alone, restored) in [
        (Err("broken".to_owned()), Err(unread()), Err(unread())),
        (Ok(Lies::Missing), Ok(LocationStep::WarnOfMissing), nothing()),
        (Ok(Lies::Free), nothing(), nothing()),
        (Ok(found(None, None)), refuse(None), refuse(None)),
        (Ok(found(None, Some("/other"))), refuse(Some("/other")), refuse(Some("/other"))),
        // No cluster has a tablespace in its `pg_wal`.
        (Ok(found(own_link("pg_wal", Linked::Seen), None)), refuse(None), refuse(None)),
        (Ok(found(own_link("pg_wal", Linked::Hidden), None)), refuse(None), refuse(None)),
        (Ok(found(tablespace(Linked::Seen), None)), put_away(), nothing()),
        (Ok(found(tablespace(Linked::Hidden), None)), Err(hidden()), Err(hidden())),
        (Ok(found(tablespace(Linked::Unseen), None)), Err(unseen()), Err(unseen())),
        // The data directory may be a copy of the server's.
        (Ok(found(tablespace(Linked::Seen), Some("/other"))), refuse(Some("/other")), refuse(Some("/other"))),
        (
            Ok(found(tablespace(Linked::Hidden), Some("/other"))),
            refuse(Some("/other")),
            refuse(Some("/other")),
        ),
    ] {
        for (is_restored, is) in [(false, alone), (true, restored)] {
            let state = LocationState { restored: is_restored, lies: lies.clone() };
            assert_eq!(location(place, &state), is, "{state:?}");
        }
    }
}

#[test]
fn what_replay_would_overwrite_goes_aside_with_the_data_directory() {
    let fixed = OutsideRefusal::Fixed { directory: version().path, immovable: Immovable::MountPoint };
    let in_use = OutsideRefusal::InUse { directory: version().path, in_use: InUse::NotEmpty };
    let (this, others) = ([version().path], [PathBuf::from("/fast")]);
    let empty = VersionDirectory { in_use: None, ..version() };
    let movable = VersionDirectory { immovable: None, ..version() };
    for (version, data, is) in [
        (&version(), OfData::Written, Ok(())),
        (&version(), OfData::Repaired, Ok(())),
        (&version(), OfData::Moved, Err(fixed)),
        (&movable, OfData::Moved, Ok(())),
        (&version(), OfData::Moving { pending: &this }, Ok(())),
        (&version(), OfData::Moving { pending: &others }, Err(in_use)),
        (&empty, OfData::Moving { pending: &others }, Ok(())),
    ] {
        assert_eq!(require_moves(std::slice::from_ref(version), data), is, "{data:?}");
    }
}
