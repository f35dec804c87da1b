//! Synchronous replication: which standbys a commit waits for, and what the setting means for one of them. No IO.
//!
//! | module | owns |
//! |---|---|
//! | `grammar` | reading `synchronous_standby_names` as PostgreSQL reads it |
//! | `level` | how long a commit waits (`synchronous_commit`) |
//!
//! Source: PostgreSQL's `syncrep_gram.y`, `syncrep_scanner.l` and `syncrep.c`, the same from 13 to 19.

mod grammar;
mod level;

pub use self::grammar::SyntaxError;
pub use self::level::CommitLevel;

/// The name that every standby answers to.
const ANY_NAME: &str = "*";

/// How the standbys are chosen that a commit waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Method {
    /// `FIRST n (…)`, also the syntaxes without a keyword: the first n of the list that are connected, and all of those.
    Priority,
    /// `ANY n (…)`: any n of the list.
    Quorum,
}

/// `synchronous_standby_names`, unless it is empty.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StandbyNames {
    /// How they are chosen.
    pub method: Method,
    /// How many a commit waits for.
    pub count: u32,
    /// Their names, as they are written there, without quotes. `*` is any name, quoted or not.
    pub names: Vec<String>,
}

/// What a setting means for the standby of one name. Each name of the list, but not `*`, is taken for one standby, or for as many as are
/// connected under it: by default all standbys have one name (`walreceiver`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Confirmation {
    /// No commit waits for it.
    NotNamed,
    /// No commit is confirmed without it.
    Always,
    /// Commits wait for it while it is connected; then others take its place.
    WhileConnected,
    /// Commits wait for it only while one of those before it in the list is not connected.
    InPlaceOfOthers,
    /// Commits may be confirmed by others, connected or not.
    AmongOthers,
    /// The list has fewer names than a commit waits for, and not more standbys: no commit is confirmed.
    TooFew,
}

impl StandbyNames {
    /// Reads the setting; `None` if it is empty.
    pub fn parse(text: &str) -> Result<Option<Self>, SyntaxError> {
        grammar::parse(text)
    }

    /// Whether one entry of the list is this name itself, not `*`.
    pub fn has(&self, name: &str) -> bool {
        name != ANY_NAME && self.names.iter().any(|entry| entry.eq_ignore_ascii_case(name))
    }

    /// What the setting means for the standby of that name (`application_name`), while clients of these names receive WAL. Another one of
    /// the standby's own name is none of its own.
    pub fn confirmation(&self, name: &str, receivers: &[String]) -> Confirmation {
        let Some(at) = self.names.iter().position(|entry| matches(entry, name)) else {
            return Confirmation::NotNamed;
        };
        let (standbys, star) = (standbys(&self.names, name, receivers), self.has_star());
        if !star && standbys < self.count() {
            return Confirmation::TooFew;
        }
        let by_star = self.names.get(at).is_some_and(|entry| entry == ANY_NAME);
        let replaceable = star || standbys > self.count();
        let before = self.names.get(..at).unwrap_or_default();
        match self.method {
            _ if !replaceable => Confirmation::Always,
            Method::Quorum => Confirmation::AmongOthers,
            Method::Priority if by_star => Confirmation::AmongOthers,
            Method::Priority if self::standbys(before, name, receivers) >= self.count() => {
                Confirmation::InPlaceOfOthers
            }
            Method::Priority => Confirmation::WhileConnected,
        }
    }

    /// Whether commits that wait for what was applied (`remote_apply`) are confirmed whatever the standby of that name is: it applies
    /// nothing. By priority it is waited for as soon as it is chosen.
    pub fn applies_without(&self, name: &str, receivers: &[String]) -> bool {
        let others = standbys(&self.names, name, receivers) - usize::from(self.has(name));
        match (self.confirmation(name, receivers), self.method) {
            (Confirmation::NotNamed, _) => true,
            (_, Method::Priority) => false,
            (_, Method::Quorum) => self.has_star() || others >= self.count(),
        }
    }

    fn has_star(&self) -> bool {
        self.names.iter().any(|entry| entry == ANY_NAME)
    }

    fn count(&self) -> usize {
        usize::try_from(self.count).unwrap_or(usize::MAX)
    }
}

fn matches(entry: &str, name: &str) -> bool {
    entry == ANY_NAME || entry.eq_ignore_ascii_case(name)
}

/// For how many standbys these names stand, but for `*`: each for one, or for as many as are connected under it, unless it is `own`. A
/// name that comes a second time stands for nothing.
fn standbys(names: &[String], own: &str, receivers: &[String]) -> usize {
    let names = names.iter().filter(|name| *name != ANY_NAME);
    let different: std::collections::BTreeSet<String> = names.map(|name| name.to_ascii_lowercase()).collect();
    let connected = |name: &String| match name.eq_ignore_ascii_case(own) {
        true => 1,
        false => receivers.iter().filter(|one| one.eq_ignore_ascii_case(name)).count().max(1),
    };
    different.iter().map(connected).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> StandbyNames {
        StandbyNames::parse(text).unwrap().unwrap()
    }

    #[test]
    fn a_setting_says_whether_a_commit_waits_for_one_standby() {
        use Confirmation::*;
        for (text, expected) in [
            ("walpoint", Always),
            ("\"WalPoint\"", Always),
            ("FIRST 1 (walpoint)", Always),
            ("ANY 1 (walpoint)", Always),
            ("ANY 2 (walpoint, replica1)", Always),
            ("FIRST 2 (replica1, walpoint)", Always),
            ("2 (replica1, walpoint)", Always),
            ("FIRST 1 (walpoint, Walpoint)", Always),
            ("FIRST 1 (walpoint, replica1)", WhileConnected),
            ("walpoint, replica1", WhileConnected),
            ("FIRST 2 (replica1, walpoint, replica2)", WhileConnected),
            ("FIRST 1 (walpoint, *)", WhileConnected),
            ("replica1, walpoint", InPlaceOfOthers),
            ("FIRST 2 (a, b, walpoint)", InPlaceOfOthers),
            ("FIRST 1 (a, *)", AmongOthers),
            ("ANY 1 (walpoint, replica1)", AmongOthers),
            ("ANY 2 (walpoint, *)", AmongOthers),
            ("*", AmongOthers),
            ("FIRST 2 (*)", AmongOthers),
            ("FIRST 2 (walpoint)", TooFew),
            ("ANY 3 (walpoint, replica1)", TooFew),
            ("FIRST 2 (walpoint, WALPOINT)", TooFew),
            ("replica1, replica2", NotNamed),
            ("walpoint2", NotNamed),
        ] {
            assert_eq!(read(text).confirmation("walpoint", &[]), expected, "{text}");
        }
    }

    #[test]
    fn several_standbys_under_one_name_are_several() {
        use Confirmation::*;
        let receivers = ["walreceiver", "Walreceiver", "walpoint", "walpoint"].map(str::to_owned);
        for (text, alone, expected) in [
            ("FIRST 2 (walreceiver, walpoint)", Always, InPlaceOfOthers),
            ("FIRST 2 (walpoint, walreceiver)", Always, WhileConnected),
            ("ANY 2 (walpoint, walreceiver)", Always, AmongOthers),
            ("ANY 3 (walpoint, walreceiver)", TooFew, Always),
            ("ANY 4 (walpoint, walreceiver)", TooFew, TooFew),
            ("FIRST 2 (walpoint)", TooFew, TooFew),
            ("ANY 1 (walpoint)", Always, Always),
        ] {
            assert_eq!(read(text).confirmation("walpoint", &[]), alone, "{text}");
            assert_eq!(read(text).confirmation("walpoint", &receivers), expected, "{text}");
        }
        assert!(!read("ANY 2 (walpoint, walreceiver)").applies_without("walpoint", &[]));
        assert!(read("ANY 2 (walpoint, walreceiver)").applies_without("walpoint", &receivers));
    }

    #[test]
    fn what_waits_for_what_is_applied_waits_for_ever_where_this_standby_counts() {
        for (text, expected) in [
            ("walpoint", false),
            ("FIRST 1 (walpoint, replica1)", false),
            ("FIRST 1 (replica1, walpoint)", false),
            ("*", false),
            ("ANY 1 (walpoint)", false),
            ("ANY 2 (walpoint, replica1)", false),
            ("ANY 1 (walpoint, replica1)", true),
            ("ANY 2 (walpoint, a, b)", true),
            ("ANY 1 (*)", true),
            ("replica1", true),
        ] {
            assert_eq!(read(text).applies_without("walpoint", &[]), expected, "{text}");
        }
    }
}
