//! What makes a copy of a restored server, which does nothing in the place of the original: settings, and what to know of them.

use super::RestoreArgs;
use crate::settings;

/// What a copy must not do in the original's place: write into its archive, and take the rows that the publishers of its subscriptions
/// keep for it.
pub(super) const SETTINGS: [(&str, &str); 2] =
    [("archive_mode", "off"), ("max_logical_replication_workers", "0")];

/// What to know of archiving and subscriptions, which are off unless archiving is to be resumed.
pub(super) fn note(args: &RestoreArgs) -> Option<&'static str> {
    match (args.resume_archiving, args.standby) {
        (true, _) => None,
        (false, true) => Some(
            "archive_mode is off and max_logical_replication_workers is 0, also after a promotion: the server then archives \
             nothing, and its subscriptions do not run\nHINT: If the standby is to take over from its primary, restore it with \
             --standby --resume-archiving, or set archive_mode = on, run \"alter system reset \
             max_logical_replication_workers\", and restart it before it is promoted.",
        ),
        (false, false) => Some(
            "archive_mode is off, so that the copy cannot write into the archive it came from, and \
             max_logical_replication_workers is 0: its subscriptions do not run, so that they cannot take the rows that \
             publishers keep for the original\nHINT: If the copy replaces the original for good, restore with \
             --resume-archiving. To run its subscriptions after all, run \"alter system reset \
             max_logical_replication_workers\" on it and restart it.",
        ),
    }
}

/// Whether a server with this configuration archives, as far as that says so.
pub(super) fn archives(configuration: &str) -> bool {
    !settings::is_off(configuration, "archive_mode")
}

/// What to know of a server that takes the original's place with settings that make a copy: the backup is of a server that was restored
/// as one.
pub(super) fn left(configuration: &str) -> Vec<&'static str> {
    let subscribes = settings::value(configuration, "max_logical_replication_workers") != Some("0");
    let archiving = "archive_mode is off in the configuration of the backup: despite --resume-archiving, this server archives \
        nothing\nHINT: Before you start it, append archive_mode = on to postgresql.auto.conf.";
    let subscriptions = "max_logical_replication_workers is 0 in the configuration of the backup: subscriptions do not run\nHINT: \
        If the server that was backed up had once been restored as a copy, run \"alter system reset \
        max_logical_replication_workers\" and restart PostgreSQL.";
    let notes = [(archives(configuration), archiving), (subscribes, subscriptions)];
    notes.into_iter().filter(|(is_on, _)| !is_on).map(|(_, note)| note).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_made_a_copy_of_the_server_that_was_backed_up_is_noted_where_it_takes_over() {
        let copy = "archive_mode = on\nmax_logical_replication_workers = 8\narchive_mode = 'off'\n\
                    max_logical_replication_workers = '0'\n";
        let notes = left(copy);
        let [archiving, subscriptions] = notes[..] else { panic!("{notes:?}") };
        assert!(archiving.contains("archive_mode is off") && archiving.contains("HINT: "), "{archiving}");
        assert!(
            subscriptions.contains("alter system reset max_logical_replication_workers"),
            "{subscriptions}"
        );
        let again = format!("{copy}archive_mode = on\n");
        assert_eq!(left(&again), [subscriptions]);
        for configuration in ["", "archive_mode = always\nmax_logical_replication_workers = 10\n"] {
            assert!(left(configuration).is_empty(), "{configuration}");
        }
    }
}
