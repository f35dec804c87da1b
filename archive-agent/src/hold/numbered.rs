//! Which hold a number belongs to: each repository has its own numbers, and people read them from one list.

use anyhow::anyhow;
use jiff::Timestamp;
use walpoint_base::Diagnostic;
use walpoint_repo::holds::{Hold, Placement};
use walpoint_runtime::exit::Failure;

use super::HoldDocument;

/// The hold that a number belongs to, which is the same one wherever there is one of that number. One that was removed counts too: a
/// removal that is repeated must not reach another hold.
pub(super) fn placement(
    number: u64,
    known: &[(&str, &[Hold])],
    now: Timestamp,
) -> Result<Placement, Failure> {
    let of_number = |holds: &[Hold]| holds.iter().find(|hold| hold.number == number).cloned();
    let found: Vec<(&str, Hold)> =
        known.iter().filter_map(|(name, holds)| Some((*name, of_number(holds)?))).collect();
    let Some((_, first)) = found.first() else {
        let names: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
        return Err(anyhow!(
            "repository {} has no hold {number}\nHINT: \"archive-agent hold list\" shows the holds.",
            names.join(", ")
        )
        .into());
    };
    if found.iter().all(|(_, hold)| hold.placed == first.placed) {
        return Ok(first.placed.clone());
    }
    let different = format!("hold {number} is a different hold in several repositories");
    let each = found.iter().fold(Diagnostic::new(different), |all, (name, hold)| {
        let (placed, hold) = (hold.placed.at, HoldDocument::of(hold, now).description());
        all.detail(format!("In repository {name} it was placed at {placed:.0}: {hold}."))
    });
    Err(Failure::usage(each.hint(
        "Add --repo with the name of the repository whose hold you mean. Copies of it in other repositories have other numbers: \
         remove each with --repo, too.",
    )))
}

#[cfg(test)]
mod tests {
    use walpoint_repo::holds::HeldOn;
    use walpoint_runtime::exit;

    use super::*;

    /// K1: a number that belongs to different holds in two repositories removes neither, also when one of them is removed by now.
    #[test]
    fn a_number_of_two_holds_is_refused() {
        let now: Timestamp = "2026-11-21T12:00:00Z".parse().unwrap();
        let hold = |number, reason: &str| {
            let on = HeldOn::Label("audit".to_owned());
            let placed =
                Placement { on, reason: reason.to_owned(), who: "dba".to_owned(), at: now, until: None };
            Hold { number, placed, removed: None }
        };
        let main = [hold(1, "ticket 1"), hold(2, "ticket 2")];
        let far = [hold(1, "ticket 2"), hold(3, "ticket 3")];
        let of = |number| placement(number, &[("main", &main), ("far", &far)], now);
        assert_eq!(of(2).unwrap().reason, "ticket 2", "far has it under another number");
        assert_eq!(of(3).unwrap().reason, "ticket 3");
        assert!(of(4).unwrap_err().to_string().starts_with("repository main, far has no hold 4\nHINT: "));
        let refused = of(1).unwrap_err();
        assert_eq!(refused.status, exit::USAGE);
        let refused = refused.to_string();
        for says in [
            "DETAIL: In repository main it was placed at 2026-11-21T12:00:00Z: label \"audit\", until it is removed, by dba: ticket 1.",
            "DETAIL: In repository far it was placed at 2026-11-21T12:00:00Z: label \"audit\", until it is removed, by dba: ticket 2.",
            "HINT: Add --repo ",
        ] {
            assert!(refused.contains(says), "{refused}");
        }
        let gone = [Hold { removed: Some(("dba".to_owned(), now)), ..hold(1, "ticket 1") }];
        assert!(placement(1, &[("main", &gone), ("far", &far)], now).is_err());
        assert_eq!(placement(1, &[("main", &gone)], now).unwrap().reason, "ticket 1");
    }
}
