//! `events`: how fast archived WAL is read and decoded for what happened.

use serde_json::Value;

use super::finding::BoundFinding;
use super::ours::{OurRepository, Settings};
use super::scene::KeepingBed;
use crate::data::SEGMENT;
use crate::figures::{GoodSide, number};
use crate::place::StoreKind;

/// All WAL that there is; what is listed is little.
const EVENTS: &str = "{bin}/restore-agent events --quiet --json --largest 20 --from '2000-01-01 00:00:00Z' > {work}/printed.json";

pub(super) fn measure(scene: &mut KeepingBed<'_>) -> Result<Vec<BoundFinding>, String> {
    let wal = scene.data.wal.clone();
    let repository = OurRepository::make(scene, StoreKind::Local, Settings::default(), &wal, None)?;
    let segments = scene.data.segments();
    let archived = segments.len() as u64;
    let bytes = archived as f64 * SEGMENT as f64;
    repository.archive(scene, segments, "archive", 0)?;
    let (mut rates, mut memory) = (Vec::new(), Vec::new());
    for round in 0..=scene.rounds {
        let seen = repository.shell(scene, EVENTS, "events", round)?;
        let printed = repository.printed()?;
        let ended = |event: &&Value| matches!(event["kind"].as_str(), Some("commit" | "abort"));
        let listed = printed["events"].as_array().map_or(0, |events| events.iter().filter(ended).count());
        if listed != 20 || printed["gap_count"] != 0 {
            return Err(format!(
                "events listed {listed} transactions of 20, and {} gaps",
                printed["gap_count"]
            ));
        }
        require_all(&printed, archived)?;
        if round > 0 {
            rates.push(bytes / 1e9 / seen.report.cpu);
        }
        memory.push(seen.peak("restore-agent")? as f64 / f64::from(1 << 20));
    }
    repository.remove(scene);
    let note = format!("{} MB of WAL from a directory that is in the page cache", number(bytes / 1e6));
    Ok(vec![
        BoundFinding::within("WAL for each second of one core", "GB/s", GoodSide::AtLeast, 0.6, &rates)
            .noting(note.clone()),
        BoundFinding::within("resident memory", "MiB", GoodSide::AtMost, 64.0, &memory).noting(note),
    ])
}

/// Fails unless so many segments were decoded: the rate is of all WAL. pgbench alone ends more transactions than that.
fn require_all(printed: &Value, segments: u64) -> Result<(), String> {
    let count = |name: &str| printed[name].as_u64().ok_or_else(|| format!("events printed no {name}"));
    let (read, ended) = (count("read_segment_count")?, count("committed_count")? + count("aborted_count")?);
    if read < segments || ended < segments {
        return Err(format!("events read {read} segments of {segments}, with {ended} transactions"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_read_is_no_result() {
        let printed = |read: u64, committed: u64| {
            serde_json::json!({
                "read_segment_count": read,
                "committed_count": committed,
                "aborted_count": 1,
            })
        };
        assert!(require_all(&printed(32, 100_000), 32).is_ok());
        assert!(require_all(&printed(31, 100_000), 32).is_err());
        assert!(require_all(&printed(32, 5), 32).is_err());
        assert!(require_all(&serde_json::json!({"read_segment_count": 32}), 32).is_err());
    }
}
