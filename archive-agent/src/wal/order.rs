//! The order in which PostgreSQL archives: history files first, then the oldest name.
//!
//! Source: `ready_file_comparator` in `src/backend/postmaster/pgarch.c`.

use std::collections::BTreeSet;

use walpoint_base::WalFileName;

/// The first names of a directory, in PostgreSQL's order, and how many there are in all.
///
/// Invariant: never holds more than `limit` names, however many are added.
#[derive(Debug)]
pub(crate) struct FirstInOrder {
    first: BTreeSet<Turn>,
    after: Option<Turn>,
    limit: usize,
    count: usize,
}

/// A name that sorts as PostgreSQL takes it: whether it is no history file, then its text.
pub(crate) type Turn = (bool, String);

impl FirstInOrder {
    /// Keeps at most `limit` names, and only such as come after `after`.
    pub(crate) fn new(limit: usize, after: Option<WalFileName>) -> Self {
        Self { first: BTreeSet::new(), after: after.map(turn), limit, count: 0 }
    }

    /// Adds a name.
    pub(crate) fn add(&mut self, name: WalFileName) {
        let turn = turn(name);
        if self.after.as_ref().is_some_and(|after| turn <= *after) {
            return;
        }
        self.count += 1;
        self.first.insert(turn);
        if self.first.len() > self.limit {
            self.first.pop_last();
        }
    }

    /// How many names were added.
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// The first names in order.
    pub(crate) fn into_names(self) -> impl Iterator<Item = WalFileName> {
        self.first.into_iter().filter_map(|(_, name)| name.parse().ok())
    }
}

/// When PostgreSQL takes a file.
pub(crate) fn turn(name: WalFileName) -> Turn {
    (!matches!(name, WalFileName::History(_)), name.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn history_first_then_the_oldest_and_never_more_than_asked_for() {
        let names = [
            "000000020000000000000005",
            "000000010000000000000006",
            "000000010000000000000005.00000028.backup",
            "00000002.history",
            "000000010000000000000005",
            "000000010000000000000007.partial",
        ];
        let mut first = FirstInOrder::new(5, None);
        names.iter().for_each(|name| first.add(name.parse().unwrap()));
        assert_eq!(first.count(), 6);
        let order: Vec<String> = first.into_names().map(|name| name.to_string()).collect();
        assert_eq!(order, [names[3], names[4], names[2], names[1], names[5]]);

        let mut rest = FirstInOrder::new(5, Some(names[1].parse().unwrap()));
        names.iter().for_each(|name| rest.add(name.parse().unwrap()));
        let order: Vec<String> = rest.into_names().map(|name| name.to_string()).collect();
        assert_eq!(order, [names[5], names[0]]);
    }
}
