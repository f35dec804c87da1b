//! What a probe of a store found, in words: what of it forbids writing there, and what to do about it.

use std::time::Duration;

use walpoint_runtime::human;
use walpoint_storage::store::settings::ConditionalWrites;
use walpoint_storage::store::{Probe, ProbeFinding, StoreSettings};

use crate::check::report::CheckReport;

/// `expire` refuses to work when the clocks differ by more.
const CLOCK_LIMIT_SECONDS: i64 = 300;
/// A difference that is worth a word.
const CLOCK_WARNING_SECONDS: i64 = 60;

/// Puts into words what a probe found; whether the store may be written to.
pub(crate) fn judge(
    report: &mut CheckReport,
    what: &str,
    store: &str,
    settings: &StoreSettings,
    probe: &Probe,
) -> bool {
    let before = report.lines().len();
    let mut behaves = true;
    for (name, finding) in probe.findings() {
        let ProbeFinding::Bad(found) = finding else { continue };
        let what = format!("{what}: {name}");
        let look_first = settings.conditional_writes == ConditionalWrites::LookFirst;
        match name {
            "never replaces" if look_first => report.warning(
                what,
                found,
                "Never let two hosts archive the same cluster: conditional_writes = \"look-first\" accepts this.",
            ),
            "never replaces" => {
                behaves = false;
                report.failed(
                    what,
                    found,
                    "Use another store, or, knowing the risk, set conditional_writes = \"look-first\".",
                );
            }
            "absence" => report.failed(
                what,
                found,
                "Let the credentials list the bucket (s3:ListBucket): otherwise recovery cannot distinguish the end of WAL \
                 from a failure, and stops.",
            ),
            "deleting" => report.warning(
                what,
                found,
                "Allow the credentials that run expire to delete objects: otherwise what has expired stays.",
            ),
            _ => {
                behaves = false;
                report.failed(what, found, "Use another store: this one does not store objects reliably.");
            }
        }
    }
    clock(report, what, probe);
    if report.lines().len() == before {
        report.ok(what, format!("{store}: creates, reads, lists and deletes, and never replaces"));
    }
    behaves
}

fn clock(report: &mut CheckReport, what: &str, probe: &Probe) {
    let Some(ahead) = probe.clock_ahead else { return };
    let seconds = ahead.as_secs();
    let what = format!("{what}: clock");
    let off = human::span(Duration::from_secs(seconds.unsigned_abs()));
    let found = format!("the store's clock is {off} {}", if seconds > 0 { "ahead" } else { "behind" });
    match seconds.abs() {
        CLOCK_LIMIT_SECONDS.. => {
            report.failed(
                what,
                found,
                "Set the clocks (NTP): expire refuses to delete anything until they agree.",
            );
        }
        CLOCK_WARNING_SECONDS.. => report.warning(what, found, "Set the clocks (NTP)."),
        _ => {}
    }
}
