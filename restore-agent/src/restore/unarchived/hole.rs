//! Damage in the middle of WAL that no archive has: recovery would end in a segment although the server that wrote it went on.
//!
//! A server syncs a segment before it writes to the next one. So records in a later segment of the same directory show that what is
//! missing in the earlier one was there, and that transactions behind it were committed. Of all reasons for which WAL is not replayed
//! this is the one that is refused: what is proven to continue the archive was written by the archive's server, and a person can
//! still have the segment elsewhere. Another server's WAL, what `pg_resetwal` wrote and the torn end of a crash lose nothing that this
//! cluster had; what is not asked for, the person left out; what nothing proves may be anybody's.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use walpoint_base::{SegmentFacts, SegmentName, SystemId};

use super::content::inspect;

/// See the module.
#[derive(Debug)]
pub(in crate::restore) struct Hole {
    name: SegmentName,
    path: PathBuf,
    /// What is wrong with it.
    why: String,
    /// The first later segment that has records.
    next: SegmentName,
}

impl Hole {
    /// Looks behind a segment that is proven to continue the archive and is not whole.
    pub(super) async fn behind(
        facts: &SegmentFacts,
        damage: Option<&String>,
        path: &Path,
        candidates: &BTreeMap<SegmentName, Vec<PathBuf>>,
    ) -> anyhow::Result<Option<Self>> {
        let name = facts.name;
        let later = candidates.iter().filter(|(other, _)| other.timeline == name.timeline && **other > name);
        for (other, paths) in later {
            let beside = paths.iter().find(|other| other.parent() == path.parent());
            let Some(beside) = beside.cloned() else { continue };
            if has_records(*other, beside, facts.system_id).await? {
                let why = damage.cloned().unwrap_or_else(|| format!("its records end at {}", facts.end));
                return Ok(Some(Self { name, path: path.to_owned(), why, next: *other }));
            }
        }
        Ok(None)
    }

    /// Why the directory is neither repaired nor replaced. `read`: names of the repositories that were read.
    pub(in crate::restore) fn refusal(&self, pgdata: &Path, read: &str) -> anyhow::Error {
        let Self { name, path, why, next } = self;
        anyhow::anyhow!(
            "{}: recovery would end in {}, which is damaged, although the same server went on to write \"{next}\": nothing was \
             changed\nDETAIL: {why}. No repository that was read ({read}) has \"{name}\".\nHINT: If there is another copy of \
             \"{name}\", as in the pg_wal of a standby, archive that with \"archive-agent push\" and run the same command again. \
             With --discard-unarchived-wal (--delta or --replace) recovery ends there, and the files are kept.",
            pgdata.display(),
            path.display()
        )
    }
}

/// Whether a segment has records of that cluster.
async fn has_records(name: SegmentName, path: PathBuf, system_id: SystemId) -> anyhow::Result<bool> {
    let inspected = tokio::task::spawn_blocking(move || inspect(name, &path, None)).await??;
    Ok(inspected.is_ok_and(|(facts, _)| facts.system_id == system_id && facts.records > 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_refusal_names_both_segments_and_the_ways_on() {
        let name: SegmentName = "000000010000000000000003".parse().unwrap();
        let path = Path::new("/data/pg_wal").join(name.to_string());
        let next = "000000010000000000000004".parse().unwrap();
        let hole = Hole { name, path, why: "wrong check".into(), next };
        let text = hole.refusal(Path::new("/data"), "\"near\"").to_string();
        assert!(
            text.starts_with("/data: recovery would end in /data/pg_wal/000000010000000000000003"),
            "{text}"
        );
        assert!(
            text.contains(&next.to_string()) && text.contains("\nDETAIL: wrong check. No repository"),
            "{text}"
        );
        assert!(text.contains("\nHINT: ") && text.contains("--discard-unarchived-wal"), "{text}");
    }
}
