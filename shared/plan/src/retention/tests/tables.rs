//! K1: what each rule keeps, and what is said about it.

use std::collections::BTreeSet;

use jiff::Span;
use walpoint_base::{BackupId, Lsn};

use super::super::{
    Damage, DeletionRequest, Policy, Protection, RetainedLineage, RetentionFacts, Rule, decide, protections,
};
use super::world::*;

fn days(n: i64) -> Option<Span> {
    Some(Span::new().days(n))
}

/// One backup a day, from the 1st to the 20th of November, numbered by the day.
fn daily() -> RetentionFacts {
    facts((1..=20).map(|day| backup(&format!("2026-11-{day:02}T03:00:00Z"), 1, day)).collect())
}

fn keep(facts: &RetentionFacts, policy: &Policy, now: &str) -> String {
    kept(&decide(facts, policy, at(now)))
}

const NOW: &str = "2026-11-20T12:00:00Z";

#[test]
fn rules_by_number_and_date() {
    let rule = |rule: Rule| Policy { rule, ..Policy::default() };
    for (policy, expected) in [
        (rule(Rule { count: Some(3), ..Rule::default() }), "18+ 19+ 20+"),
        (rule(Rule { count: Some(1), ..Rule::default() }), "20+"),
        (rule(Rule { age: days(2), ..Rule::default() }), "19+ 20+"),
        (rule(Rule { daily: 3, ..Rule::default() }), "18 19 20+"),
        // 2026-11-20 is a Friday; weeks end on the 15th and the 8th.
        (rule(Rule { weekly: 3, ..Rule::default() }), "8 15 20+"),
        (rule(Rule { daily: 2, weekly: 2, monthly: 12, yearly: 7, ..Rule::default() }), "15 19 20+"),
        (Policy { window: days(3), ..Policy::default() }, "17+ 18+ 19+ 20+"),
        (Policy { minimum: 3, ..rule(Rule { count: Some(1), ..Rule::default() }) }, "18+ 19+ 20+"),
        (
            Policy { window: days(1), ..rule(Rule { count: Some(4), weekly: 2, ..Rule::default() }) },
            "15 17 18 19+ 20+",
        ),
    ] {
        assert_eq!(keep(&daily(), &policy, NOW), expected, "{policy:?}");
    }
}

#[test]
fn without_a_policy_nothing_goes() {
    let decisions = decide(&daily(), &Policy::default(), at(NOW));
    assert_eq!(decisions.iter().filter(|d| d.stays()).count(), 20);
    assert_eq!(decisions[0].because(), "no retention is configured");
    // A rule for a label is none for others.
    let labels = [("pre-deploy".to_owned(), Rule { count: Some(1), ..Rule::default() })].into();
    let decisions = decide(&daily(), &Policy { labels, ..Policy::default() }, at(NOW));
    assert_eq!(decisions.iter().filter(|d| d.stays()).count(), 20);
    assert_eq!(decisions[0].because(), "no rule keeps it");
}

#[test]
fn the_last_backup_never_goes() {
    let policy = Policy {
        rule: Rule { age: days(1), ..Rule::default() },
        max_age: days(30),
        window: days(1),
        ..Policy::default()
    };
    let decisions = decide(&daily(), &policy, at("2028-01-01T00:00:00Z"));
    assert_eq!(kept(&decisions), "20+");
    assert!(decisions[19].exceeds_max_age, "and it is told that it is too old");
    assert_eq!(decisions[19].because(), "the last backup is never dropped (minimum = 1)");
    assert_eq!(decisions[0].because(), "it is older than 30d (max_age)");
}

#[test]
fn max_age_is_a_ceiling_that_only_holds_break() {
    let mut facts = daily();
    facts.holds = vec![hold(7, &facts.backups[1], Some("2027-01-01T00:00:00Z"))];
    let policy = Policy {
        rule: Rule { daily: 30, ..Rule::default() },
        max_age: Some(Span::new().days(5)),
        ..Policy::default()
    };
    let decisions = decide(&facts, &policy, at(NOW));
    assert_eq!(kept(&decisions), "2 16 17 18 19 20+");
    assert!(decisions[1].exceeds_max_age);
    assert_eq!(decisions[1].because(), "hold 7 by dba keeps it until 2027-01-01T00:00:00Z: audit");
    // The hold runs out.
    assert!(!keep(&facts, &policy, "2027-01-01T00:00:00Z").contains("2 "));
}

#[test]
fn labels_have_rules_of_their_own() {
    let mut facts = daily();
    for day in [2, 4, 19] {
        facts.backups[day - 1].label = "pre-deploy".to_owned();
    }
    facts.backups[2].label = "other".to_owned();
    let own = Rule { count: Some(2), ..Rule::default() };
    let policy = Policy {
        rule: Rule { count: Some(2), ..Rule::default() },
        labels: [("pre-deploy".to_owned(), own)].into(),
        ..Policy::default()
    };
    let decisions = decide(&facts, &policy, at(NOW));
    assert_eq!(kept(&decisions), "4 18+ 19 20+", "labelled ones do not count for the general rule");
    assert_eq!(decisions[3].because(), "label \"pre-deploy\": it is one of the newest 2 (count = 2)");
    let mut held = facts.clone();
    held.holds = vec![hold(1, &facts.backups[0], None)];
    held.holds[0].backup = None;
    held.holds[0].label = Some("other".to_owned());
    assert_eq!(keep(&held, &policy, NOW), "3 4 18+ 19 20+");
}

#[test]
fn a_labelled_backup_stays_where_the_window_has_no_other() {
    let mut facts = daily();
    facts.backups.truncate(3);
    facts.backups[0].label = "first".to_owned();
    facts.backups[1].label = "first".to_owned();
    let own = Rule { age: Some(Span::new().hours(1)), ..Rule::default() };
    let labels: std::collections::BTreeMap<_, _> = [("first".to_owned(), own)].into();
    let policy = Policy { window: days(7), labels, ..Policy::default() };
    assert_eq!(keep(&facts, &policy, "2026-11-05T00:00:00Z"), "1+ 2+ 3+", "they make the window longer");
    assert_eq!(keep(&facts, &policy, "2026-11-09T12:00:00Z"), "2+ 3+", "one begins it");
    assert_eq!(keep(&facts, &policy, "2026-11-11T00:00:00Z"), "3+", "nobody needs it any more");
}

/// K3: each branch that was in use in the window has a backup to begin with, others have not.
#[test]
fn windows_lie_on_every_branch_that_was_in_use() {
    let mut facts = daily();
    // On the 15th the cluster was restored to the 12th: what came after on timeline 1 is an abandoned branch.
    fork(&mut facts.lives[0], 2, 1, 13, "2026-11-15T12:00:00Z");
    for day in [16, 17, 18, 19, 20] {
        facts.backups[day - 1] = backup(&format!("2026-11-{day}T03:00:00Z"), 2, day as u64);
    }
    let keep = |window: i64| {
        let policy = Policy { window: days(window), ..Policy::default() };
        let decisions = decide(&facts, &policy, at(NOW));
        (kept(&decisions), decisions)
    };
    // The abandoned branch was left before the window: it needs nothing.
    assert_eq!(keep(3).0, "17+ 18+ 19+ 20+");
    // A window that reaches behind the restore wants both: 12 begins it on the branch in use, 15 on the one left.
    let (stay, decisions) = keep(5);
    assert_eq!(stay, "12+ 15+ 16+ 17+ 18+ 19+ 20+");
    assert!(decisions[14].because().contains("begins with it on timeline 1"), "{}", decisions[14].because());
    // As long as nothing newer begins, an idle timeline is in use, however old its WAL is.
    facts.lives[0].timelines.values_mut().for_each(|life| life.written = Some(at("2026-11-16T00:00:00Z")));
    let policy = Policy { window: days(3), ..Policy::default() };
    assert_eq!(kept(&decide(&facts, &policy, at("2026-12-24T00:00:00Z"))), "20+");
}

/// K3: a copy of the server that was promoted archives beside it from the 13th on. Which one is in production is not known: neither
/// makes the other's backups expire.
#[test]
fn backups_on_timelines_written_beside_each_other_count_for_themselves() {
    let mut facts = daily();
    fork(&mut facts.lives[0], 2, 1, 13, "2026-11-13T12:00:00Z");
    for day in [15, 17, 19, 20] {
        facts.backups[day - 1] = backup(&format!("2026-11-{day}T03:00:00Z"), 2, day as u64);
    }
    for life in facts.lives[0].timelines.values_mut() {
        life.written = Some(at("2026-11-18T04:00:00Z"));
    }
    let failover = facts.clone();
    facts.lives[0].beside.insert(tli(1));
    let rule = |rule: Rule| Policy { rule, ..Policy::default() };
    for (policy, beside, after) in [
        (rule(Rule { count: Some(1), ..Rule::default() }), "18+ 20+", "20+"),
        (rule(Rule { count: Some(2), ..Rule::default() }), "16+ 18+ 19+ 20+", "19+ 20+"),
        (rule(Rule { daily: 2, ..Rule::default() }), "16 18+ 19 20+", "19 20+"),
        (rule(Rule { monthly: 1, ..Rule::default() }), "18+ 20+", "20+"),
        (rule(Rule { age: days(1), ..Rule::default() }), "18+ 20+", "20+"),
        (Policy { window: days(1), ..Policy::default() }, "18+ 19+ 20+", "19+ 20+"),
    ] {
        assert_eq!(keep(&facts, &policy, NOW), beside, "{policy:?}");
        assert_eq!(keep(&failover, &policy, NOW), after, "{policy:?}");
    }
    let decisions = decide(&facts, &rule(Rule { count: Some(1), ..Rule::default() }), at(NOW));
    assert_eq!(
        decisions[17].because(),
        "timeline 1, which was written beside a newer one: it is the newest one (count = 1); the last backup is never dropped \
         (minimum = 1)"
    );

    let leading: BTreeSet<BackupId> =
        (1..=16).filter(|day| *day != 15).map(|day: usize| facts.backups[day - 1].id).collect();
    let last = facts.backups[17].id;
    assert_eq!(protections(&facts, last, &leading, at(NOW)), [Protection::Path(lineage(1), tli(1))]);
    assert_eq!(protections(&facts, last, &[].into(), at(NOW)), []);
    assert_eq!(protections(&failover, last, &leading, at(NOW)), []);
}

/// K1: a clock that was set forward or back in between makes no backup the newest that is not, and drops none that is.
#[test]
fn the_newest_lies_furthest_in_the_wal_whatever_a_clock_said() {
    let ahead = |day: usize, said: &str| {
        let mut facts = daily();
        facts.backups[day - 1] = backup(said, 1, day as u64);
        facts
    };
    let count = |n: u32| Policy { rule: Rule { count: Some(n), ..Rule::default() }, ..Policy::default() };
    for said in ["2026-11-25T03:00:00Z", "2036-11-25T03:00:00Z"] {
        let facts = ahead(18, said);
        assert_eq!(keep(&facts, &count(1), NOW), "20+");
        assert_eq!(keep(&facts, &count(3), NOW), "18+ 19+ 20+");
        let age = Policy { rule: Rule { age: days(1), ..Rule::default() }, ..Policy::default() };
        assert_eq!(keep(&facts, &age, NOW), "20+", "its age is that of the one after it");
        assert_eq!(keep(&facts, &Policy { window: days(1), ..Policy::default() }, NOW), "19+ 20+");
        assert_eq!(
            decide(&facts, &count(1), at(NOW))[17].backup.ended,
            at(said),
            "what it says of itself is told as it is"
        );
    }
    // The newest one by a clock that was behind, by years.
    let facts = ahead(20, "2006-01-01T00:00:00Z");
    assert_eq!(keep(&facts, &count(1), NOW), "20+");
    assert_eq!(keep(&facts, &count(2), NOW), "19+ 20+");
    let facts = ahead(10, "2006-01-01T00:00:00Z");
    assert_eq!(keep(&facts, &Policy { window: days(12), ..Policy::default() }, NOW).split(' ').count(), 13);
}

/// K1: a backup that a clock stamped which was behind begins no window before the moment at which it was made: the one before it, and
/// the WAL in between, stay. The store knows.
#[test]
fn a_clock_that_was_behind_takes_nothing_out_of_a_window() {
    let late = |said: &str, stored: &str| {
        let mut facts = daily();
        facts.backups.truncate(2);
        facts.backups.push(backup(said, 1, 3));
        facts.backups[2].complete_by = at(stored);
        facts.backups.push(backup("2026-11-20T03:00:00Z", 1, 20));
        facts
    };
    let window = Policy { window: days(7), ..Policy::default() };
    // Before the one that came before it, and behind it.
    for said in ["2026-10-01T03:00:00Z", "2026-11-08T03:00:00Z"] {
        let facts = late(said, "2026-11-18T03:00:00Z");
        assert_eq!(keep(&facts, &window, NOW), "2+ 3+ 20+", "{said}");
        assert_eq!(keep(&facts, &window, "2026-11-25T02:00:00Z"), "2+ 3+ 20+", "{said}");
        assert_eq!(keep(&facts, &window, "2026-11-25T04:00:00Z"), "3+ 20+", "{said}");
        let age = Policy { rule: Rule { age: days(7), ..Rule::default() }, ..Policy::default() };
        assert_eq!(keep(&facts, &age, NOW), "3+ 20+", "{said}");
    }
    // Right clocks.
    assert_eq!(keep(&late("2026-11-08T03:00:00Z", "2026-11-08T03:00:00Z"), &window, NOW), "3+ 20+");
}

/// K1: the same where the repository is a directory of that host, so that its times are of the same clock: that they go back along the
/// WAL shows it, or a commit that the backup holds.
#[test]
fn a_stores_clock_that_was_behind_takes_nothing_out_of_a_window() {
    let late = |said: &str, commit: Option<&str>| {
        let mut facts = daily();
        facts.backups.truncate(8);
        facts.backups.push(backup(said, 1, 9));
        facts.backups[8].latest_commit = commit.map(at);
        facts.backups.push(backup("2026-11-20T03:00:00Z", 1, 20));
        facts
    };
    let window = Policy { window: days(7), ..Policy::default() };
    // Before the one that came before it, and behind it.
    assert_eq!(keep(&late("2026-11-02T03:00:00Z", None), &window, NOW), "8+ 9+ 20+");
    assert_eq!(keep(&late("2026-11-10T03:00:00Z", Some("2026-11-16T03:00:00Z")), &window, NOW), "8+ 9+ 20+");
    assert_eq!(
        keep(&late("2026-11-10T03:00:00Z", Some("2026-11-16T03:00:00Z")), &window, "2026-11-23T04:00:00Z"),
        "9+ 20+"
    );
    // Right clocks.
    assert_eq!(keep(&late("2026-11-10T03:00:00Z", Some("2026-11-10T02:00:00Z")), &window, NOW), "9+ 20+");
}

/// K1: a backup that was stamped by a clock that was ahead makes those behind it no younger when that time has come.
#[test]
fn a_clock_that_was_ahead_makes_no_one_day_of_many() {
    let daily_rule = Policy { rule: Rule { daily: 7, ..Rule::default() }, ..Policy::default() };
    let mut facts = daily();
    let right = keep(&facts, &daily_rule, NOW);
    let stored = facts.backups[14].complete_by;
    facts.backups[14] = backup("2026-11-20T02:00:00Z", 1, 15);
    facts.backups[14].complete_by = stored;
    assert_eq!(keep(&facts, &daily_rule, NOW), right);
    assert_eq!(keep(&facts, &Policy { window: days(3), ..Policy::default() }, NOW), "17+ 18+ 19+ 20+");
}

/// K3: after pg_upgrade the old lineage's last moments stay as long as they lie in the window.
#[test]
fn an_upgrade_leaves_the_old_lineage_its_window() {
    let mut facts = daily();
    facts.lives[0].superseded = Some(at("2026-11-18T12:00:00Z"));
    facts.lives.push(RetainedLineage { lineage: lineage(2), succeeds: Some(lineage(1)), ..life() });
    for day in [19, 20] {
        facts.backups[day - 1].lineage = lineage(2);
    }
    let keep =
        |window: i64, now: &str| keep(&facts, &Policy { window: days(window), ..Policy::default() }, now);
    assert_eq!(keep(3, NOW), "17+ 18+ 19+ 20+");
    assert_eq!(keep(1, NOW), "19+ 20+", "the upgrade is older than the window");
    assert_eq!(keep(3, "2026-11-21T13:00:00Z"), "19+ 20+");
}

#[test]
fn months_and_years_are_told_by_name() {
    let years = [(2023, "12-31"), (2024, "06-01"), (2024, "12-31"), (2026, "11-01"), (2026, "11-02")];
    let backups =
        years.iter().zip(1..).map(|((year, day), n)| backup(&format!("{year}-{day}T00:00:00Z"), 1, n));
    let facts = facts(backups.collect());
    let policy = Policy { rule: Rule { monthly: 2, yearly: 3, ..Rule::default() }, ..Policy::default() };
    let decisions = decide(&facts, &policy, at(NOW));
    assert_eq!(kept(&decisions), "1 3 5+");
    assert_eq!(decisions[0].because(), "it is the last one of year 2023 (yearly = 3)");
    assert_eq!(
        decisions[2].because(),
        "it is the last one of month 2024-12 (monthly = 2); it is the last one of year 2024 (yearly = 3)"
    );
    assert_eq!(decisions[1].because(), "no rule keeps it");
}

/// K1: a copy that was given a lineage of its own pushes nothing of production out, whatever the rule; an upgrade does.
#[test]
fn backups_of_a_lineage_that_was_split_off_count_for_themselves() {
    let rule = |rule: Rule| Policy { rule, ..Policy::default() };
    let beside = |succeeds| {
        let mut facts = daily();
        facts.lives.push(RetainedLineage { lineage: lineage(2), succeeds, ..life() });
        // From the 16th on only the second one makes backups, two of them on the last day.
        facts.backups[15..].iter_mut().for_each(|backup| backup.lineage = lineage(2));
        facts
    };
    let (copy, upgrade) = (beside(None), beside(Some(lineage(1))));
    for (policy, apart, together) in [
        (rule(Rule { count: Some(2), ..Rule::default() }), "14+ 15+ 19+ 20+", "19+ 20+"),
        (rule(Rule { daily: 2, ..Rule::default() }), "14 15+ 19 20+", "19 20+"),
        (rule(Rule { weekly: 1, ..Rule::default() }), "15+ 20+", "20+"),
        (rule(Rule { monthly: 1, ..Rule::default() }), "15+ 20+", "20+"),
        (rule(Rule { yearly: 1, ..Rule::default() }), "15+ 20+", "20+"),
        (
            Policy { minimum: 3, ..rule(Rule { age: days(1), ..Rule::default() }) },
            "13+ 14+ 15+ 18+ 19+ 20+",
            "18+ 19+ 20+",
        ),
        (Policy { window: days(1), ..Policy::default() }, "15+ 19+ 20+", "15+ 19+ 20+"),
    ] {
        assert_eq!(keep(&copy, &policy, NOW), apart, "{policy:?}");
        assert_eq!(keep(&upgrade, &policy, NOW), together, "{policy:?}");
    }
    let labels = [("pre-deploy".to_owned(), Rule { count: Some(1), ..Rule::default() })].into();
    let mut labelled = copy;
    labelled.backups.iter_mut().for_each(|backup| backup.label = "pre-deploy".to_owned());
    let policy = Policy { labels, ..Policy::default() };
    assert_eq!(keep(&labelled, &policy, NOW), "15+ 20+");
}

/// K1, promise 11: what is known to be damaged never takes the place of something sound.
#[test]
fn a_damaged_backup_takes_the_place_of_no_sound_one() {
    let rule = |rule: Rule| Policy { rule, ..Policy::default() };
    let damaged = |days: &[usize], damage: Damage| {
        let mut facts = daily();
        days.iter().for_each(|day| facts.backups[day - 1].damage = damage);
        facts
    };
    let (pages, packs) = (Damage { pages: 1, ..Damage::default() }, Damage { packs: 1, ..Damage::default() });
    for damage in [pages, packs] {
        let last_three = damaged(&[18, 19, 20], damage);
        for (policy, expected) in [
            (rule(Rule { count: Some(2), ..Rule::default() }), "16+ 17+ 19+ 20+"),
            (rule(Rule { age: days(2), ..Rule::default() }), "17+ 19+ 20+"),
            (rule(Rule { daily: 1, ..Rule::default() }), "17+ 20+"),
            (rule(Rule { weekly: 1, ..Rule::default() }), "17+ 20+"),
            (Policy { minimum: 2, ..rule(Rule { count: Some(1), ..Rule::default() }) }, "16+ 17+ 19+ 20+"),
            (Policy { window: days(1), ..Policy::default() }, "17+ 19+ 20+"),
            (Policy { max_age: days(1), ..Policy::default() }, "17+ 20+"),
        ] {
            assert_eq!(keep(&last_three, &policy, NOW), expected, "{policy:?}");
        }
    }
    // Where nothing is sound the newest is the best there is.
    let all: Vec<usize> = (1..=20).collect();
    let count = rule(Rule { count: Some(2), ..Rule::default() });
    assert_eq!(keep(&damaged(&all, pages), &count, NOW), "19+ 20+");
    // Sound ones make up for older damaged ones.
    assert_eq!(keep(&damaged(&[17, 18], pages), &count, NOW), "19+ 20+");
    assert_eq!(
        [Damage::default(), pages, packs, Damage { pages: 2, packs: 3, segments: 4, ..Damage::default() }]
            .map(|damage| damage.to_string()),
        [
            "no damage",
            "1 damaged pages",
            "1 damaged or missing packs",
            "2 damaged pages and 3 damaged or missing packs and 4 damaged or missing WAL segments"
        ]
    );
}

/// K1: pages that were damaged in the cluster may count by policy; packs that were damaged in the repository never do.
#[test]
fn damaged_pages_count_by_policy() {
    let mut facts = daily();
    facts.backups[19].damage.pages = 3;
    facts.backups[18].damage.packs = 1;
    let policy = Policy { rule: Rule { count: Some(1), ..Rule::default() }, ..Policy::default() };
    assert_eq!(keep(&facts, &policy, NOW), "18+ 20+");
    let policy = Policy { accept_damaged_pages: true, ..policy };
    assert_eq!(keep(&facts, &policy, NOW), "20+");
    let decisions = decide(&facts, &policy, at(NOW));
    assert_eq!(
        decisions[19].backup.damage,
        Damage { pages: 3, ..Damage::default() },
        "it is said all the same"
    );
}

/// K1, K3: a backup that alone leads to the newest timeline is not deleted by name, however many lie on the branch that was left.
#[test]
fn the_only_backup_of_the_branch_in_use_is_protected() {
    let mut facts = facts(vec![
        backup("2026-11-10T03:00:00Z", 1, 10),
        backup("2026-11-11T03:00:00Z", 1, 11),
        backup("2026-11-15T03:00:00Z", 1, 15),
    ]);
    fork(&mut facts.lives[0], 2, 1, 13, "2026-11-15T12:00:00Z");
    let written = |life: &mut RetainedLineage, of: &[u32]| {
        for (id, life) in &mut life.timelines {
            life.written = of.contains(&id.get()).then(|| at("2026-11-16T00:00:00Z"));
        }
    };
    let (first, second, left) = (facts.backups[0].id, facts.backups[1].id, facts.backups[2].id);
    let against = |facts: &RetentionFacts, id, gone: &[BackupId]| {
        protections(facts, id, &gone.iter().copied().collect(), at(NOW))
    };
    written(&mut facts.lives[0], &[1]);
    assert_eq!(against(&facts, second, &[first]), [], "timeline 2 has no WAL and no history");
    let branch = tli(2);
    let began = |life: &mut RetainedLineage, is| life.timelines.get_mut(&branch).unwrap().began = is;
    began(&mut facts.lives[0], true);
    let alone = [Protection::Path(lineage(1), branch)];
    assert_eq!(against(&facts, second, &[first]), alone, "a server was promoted");
    began(&mut facts.lives[0], false);
    written(&mut facts.lives[0], &[1, 2]);
    assert_eq!(against(&facts, second, &[]), [], "the first one leads there as well");
    assert_eq!(against(&facts, left, &[first]), []);
    let alone = [Protection::Path(lineage(1), tli(2))];
    assert_eq!(against(&facts, second, &[first]), alone);
    facts.backups[0].damage.packs = 1;
    assert_eq!(against(&facts, second, &[]), alone, "a damaged one does not count");
    assert_eq!(against(&facts, first, &[]), []);
    assert_eq!(against(&facts, first, &[second]), alone, "a damaged one is better than none");
    facts.backups[0].damage.packs = 0;

    let ask = |backup: BackupId, even_if_last: bool| {
        let despite_holds = [].into();
        DeletionRequest { backup, who: "dba".to_owned(), at: at(NOW), despite_holds, even_if_last }
    };
    facts.requests = vec![ask(first, false), ask(second, false)];
    assert_eq!(keep(&facts, &Policy::default(), NOW), "11+ 15+", "the second request is not granted");
    facts.requests[1].even_if_last = true;
    assert_eq!(keep(&facts, &Policy::default(), NOW), "15+");
    facts.lives[0].superseded = Some(at(NOW));
    assert_eq!(against(&facts, second, &[first]), [], "the cluster went on in another lineage");
}

/// K1, K3: timeline 2 left timeline 1 behind WAL that is missing: a backup before that stands in for none behind it.
#[test]
fn a_backup_before_a_gap_stands_in_for_none_behind_it() {
    let [first, mut second] = [backup("2026-11-10T10:00:00Z", 1, 10), backup("2026-11-12T10:00:00Z", 2, 30)];
    second.damage.pages = 1;
    // The branch that was left has newer backups, a damaged one among them.
    let mut left = [backup("2026-11-19T10:00:00Z", 1, 40), backup("2026-11-20T10:00:00Z", 1, 50)];
    left[1].damage.pages = 1;
    let ids = [first.id, second.id];
    let mut facts = facts([vec![first, second], left.to_vec()].concat());
    fork(&mut facts.lives[0], 2, 1, 20, "2026-11-11T10:00:00Z");
    facts.lives[0].timelines.values_mut().for_each(|life| life.written = Some(at(NOW)));
    let one = Policy { rule: Rule { count: Some(1), ..Rule::default() }, ..Policy::default() };
    assert_eq!(keep(&facts, &one, NOW), "10+ 40+ 50+", "the sound one leads to timeline 2");
    facts.lives[0].gaps.insert((tli(1), Lsn(15 << 20)));
    assert_eq!(keep(&facts, &one, NOW), "10+ 30+ 40+ 50+");

    facts.backups[1].damage.pages = 0;
    let alone = [Protection::Path(lineage(1), tli(2))];
    assert_eq!(protections(&facts, ids[1], &[].into(), at(NOW)), alone);
    assert_eq!(protections(&facts, ids[0], &[].into(), at(NOW)), []);
    facts.lives[0].gaps = [(tli(1), Lsn(25 << 20))].into();
    assert_eq!(protections(&facts, ids[1], &[].into(), at(NOW)), [], "it is not on the way");
}
