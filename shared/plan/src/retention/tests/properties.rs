//! What always holds, whatever the policy.

use std::collections::BTreeSet;

use jiff::{SignedDuration, Span, Timestamp};
use proptest::prelude::*;
use walpoint_base::BackupId;

use super::super::{Candidate, Policy, RetentionFacts, RetentionVerdict, Rule, decide, since};
use super::world::*;

/// Hours since the beginning of the world.
fn hour(n: i64) -> Timestamp {
    at("2026-01-01T00:00:00Z") + SignedDuration::from_hours(n)
}

fn span() -> impl Strategy<Value = Option<Span>> {
    prop::option::of((1i64..600).prop_map(|hours| Span::new().hours(hours)))
}

fn rule() -> impl Strategy<Value = Rule> {
    let few = || prop_oneof![2 => Just(0u32), 1 => 1u32..4];
    (prop::option::of(1u32..5), span(), few(), few(), few(), few()).prop_map(
        |(count, age, daily, weekly, monthly, yearly)| Rule { count, age, daily, weekly, monthly, yearly },
    )
}

fn policy() -> impl Strategy<Value = Policy> {
    (rule(), prop::option::of(rule()), span(), 1u32..4, prop::option::weighted(0.2, 1i64..900)).prop_map(
        |(rule, label, window, minimum, max_age)| Policy {
            rule,
            labels: label.map(|rule| ("own".to_owned(), rule)).into_iter().collect(),
            window,
            minimum,
            max_age: max_age.map(|hours| Span::new().hours(hours)),
            accept_damaged_pages: false,
        },
    )
}

/// A cluster that forks at two moments; positions grow by one MiB an hour on every timeline.
fn world() -> impl Strategy<Value = RetentionFacts> {
    let made = (1i64..900, 0u8..3, any::<bool>());
    let forks = (prop::option::of((1i64..450, 1i64..100)), prop::option::of((450i64..900, 1i64..300)));
    (
        prop::collection::vec(made, 1..14),
        forks,
        prop::collection::vec((0usize..14, prop::option::of(0i64..1200)), 0..2),
    )
        .prop_map(|(made, (first, second), holds)| {
            let mut life = life();
            // (timeline, from, until): when it was in use, and where it left its parent.
            let mut used = vec![(1u32, 0i64, i64::MAX)];
            for (when, back) in [first, second].into_iter().flatten() {
                let (parent, from, _) = *used.last().unwrap();
                let at = (when - back).max(from + 1);
                fork(&mut life, parent + 1, parent, u64::try_from(at).unwrap(), &hour(when).to_string());
                used.last_mut().unwrap().2 = when;
                used.push((parent + 1, at, i64::MAX));
            }
            for (timeline, _, until) in &used {
                let written = (*until != i64::MAX).then(|| hour(*until));
                life.timelines.get_mut(&tli(*timeline)).unwrap().written = written;
            }
            let began = |n: usize| if n == 0 { 0 } else { used[n - 1].2 };
            let backups = made.iter().zip(0u32..).filter_map(|((hour_of, _, own), n)| {
                let at = (0..used.len()).rev().find(|n| *hour_of > began(*n))?;
                let (timeline, from, _) = used[at];
                let position = from + (hour_of - began(at));
                let mut made =
                    backup(&hour(*hour_of).to_string(), timeline, u64::try_from(position).unwrap());
                made.id = BackupId::new(hour(*hour_of), tli(timeline), made.id.start(), n);
                Some(if *own { labelled(made, "own") } else { made })
            });
            let mut facts = RetentionFacts {
                backups: backups.collect(),
                lives: vec![life],
                holds: Vec::new(),
                ..RetentionFacts::default()
            };
            for (number, (which, until)) in (1u64..).zip(holds) {
                if let Some(on) = facts.backups.get(which) {
                    let mut hold = hold(number, on, None);
                    hold.until = until.map(hour);
                    facts.holds.push(hold);
                }
            }
            facts
        })
}

fn staying(facts: &RetentionFacts, policy: &Policy, now: Timestamp) -> BTreeSet<BackupId> {
    decide(facts, policy, now).iter().filter(|d| d.stays()).map(|d| d.backup.id).collect()
}

proptest! {
    #[test]
    fn the_newest_and_what_is_held_stay(facts in world(), policy in policy(), now in 900i64..2000) {
        let now = hour(now);
        let decisions = decide(&facts, &policy, now);
        prop_assert_eq!(decisions.len(), facts.backups.iter().map(|b| b.id).collect::<BTreeSet<_>>().len());
        let minimum = usize::try_from(policy.minimum).unwrap();
        prop_assert!(decisions.iter().rev().take(minimum).all(|d| d.stays()));
        for decision in &decisions {
            prop_assert!(!decision.reasons.is_empty() && !decision.because().is_empty());
            let held = facts.holds.iter().any(|hold| hold.keeps(&decision.backup, now));
            prop_assert!(decision.stays() || !held);
        }
        prop_assert!(decisions.iter().any(|d| d.verdict == RetentionVerdict::Onward));
    }

    #[test]
    fn order_does_not_matter_and_deciding_again_changes_nothing(
        facts in world(), policy in policy(), now in 900i64..2000,
    ) {
        let now = hour(now);
        let first = staying(&facts, &policy, now);
        let mut other = facts.clone();
        other.backups.reverse();
        prop_assert_eq!(&staying(&other, &policy, now), &first);
        other.backups.retain(|backup| first.contains(&backup.id));
        prop_assert_eq!(&staying(&other, &policy, now), &first);
    }

    #[test]
    fn what_was_dropped_is_never_wanted_again(
        facts in world(), policy in policy(), now in 900i64..2000, later in 0i64..500,
    ) {
        let (now, then) = (hour(now), hour(now + later));
        let before = staying(&facts, &policy, now);
        let after = staying(&facts, &policy, then);
        prop_assert!(after.is_subset(&before), "{after:?} {before:?}");
        // Neither is it once it is gone.
        let mut rest = facts.clone();
        rest.backups.retain(|backup| before.contains(&backup.id));
        prop_assert_eq!(staying(&rest, &policy, then), after);
    }

    /// The promise of the window, by brute force: every moment in it that any backup reaches is reached by one that stays
    /// and leads onward, on every timeline that was in use at that moment.
    #[test]
    fn every_moment_of_the_window_can_be_recovered(
        facts in world(), mut policy in policy(), now in 900i64..2000, window in 1i64..900,
    ) {
        policy.window = Some(Span::new().hours(window));
        policy.max_age = None;
        let decisions = decide(&facts, &policy, hour(now));
        let begin = since(hour(now), Span::new().hours(window));
        for life in &facts.lives {
            for timeline in life.graph.ids() {
                let used = life.timelines[&timeline];
                for n in 0..=window {
                    let moment = begin + SignedDuration::from_hours(n);
                    if used.superseded.is_some_and(|end| moment > end) {
                        continue;
                    }
                    let reaches = |backup: &Candidate| backup.ended <= moment && life.leads_from(backup, timeline);
                    if !facts.backups.iter().any(reaches) {
                        continue;
                    }
                    let kept = decisions.iter().any(|d| d.verdict == RetentionVerdict::Onward && reaches(&d.backup));
                    prop_assert!(kept, "timeline {timeline} at {moment}: {decisions:#?}");
                }
            }
        }
    }
}
