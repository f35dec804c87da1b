//! `evidence`: a long chain of records: how fast it is verified, and what one more record costs.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use walpoint_base::ClusterName;
use walpoint_repo::Repository;
use walpoint_repo::evidence::{Draft, Evidence, Kind, Outcome};
use walpoint_storage::store::StoreSettings;
use walpoint_tests::dir::TestDir;
use walpoint_tests::{process, user};

use super::finding::BoundFinding;
use super::ours::{OurRepository, Settings};
use super::scene::KeepingBed;
use super::server::copy;
use crate::figures::{GoodSide, number};
use crate::place::StoreKind;

/// Records of the chain, and of a small data set.
const RECORDS: [u64; 2] = [100_000, 5_000];

/// What `evidence head` asks for when the repository is open: the copy of the end, the names behind it, and the record.
const OF_HEAD: u64 = 3;

/// A record by the command, as a person adds one.
const RECORD: &str = "{bin}/archive-agent evidence record --quiet --kind other --outcome success --note 'a change of the network'";

pub(super) fn measure(scene: &mut KeepingBed<'_>) -> Result<Vec<BoundFinding>, String> {
    let wal = scene.data.wal.clone();
    let repository = OurRepository::make(scene, StoreKind::Local, Settings::default(), &wal, None)?;
    let records = RECORDS[usize::from(scene.is_quick())];
    fill(&repository.directory()?, records)?;
    let mut times = Vec::new();
    for round in 0..=scene.rounds {
        let seen = repository.agent(scene, "evidence verify", "verify", round)?;
        let printed = repository.printed()?;
        let read = printed["repositories"][0]["record_count"].as_u64();
        if read != Some(records) {
            return Err(format!("{read:?} of {records} records were read: {printed}"));
        }
        if round > 0 {
            times.push(seen.report.seconds);
        }
    }
    repository.remove(scene);
    Ok(vec![
        BoundFinding::within("time to verify", "s", GoodSide::AtMost, 10.0, &times)
            .noting(format!("{} records in a directory that is in the page cache", number(records as f64))),
        requests(scene, &wal)?,
    ])
}

/// What a record costs more than a command that only opens the repository and reads the end of the chain.
fn requests(scene: &mut KeepingBed<'_>, wal: &Path) -> Result<BoundFinding, String> {
    let repository = OurRepository::make(scene, StoreKind::S3, Settings::default(), wal, None)?;
    // The first record of a chain has no end to read.
    repository.shell(scene, RECORD, "first record", 0)?;
    let mut all = Vec::new();
    for round in 1..=scene.few_rounds() {
        let opened = repository.agent(scene, "evidence head", "head", round)?;
        let seen = repository.shell(scene, RECORD, "record", round)?;
        eprintln!("{}: round {round}: {:?}, head {:?}", scene.row, seen.requests, opened.requests);
        all.push(of_record(&seen.requests, &opened.requests)?);
    }
    repository.remove(scene);
    let note = format!(
        "counted by SeaweedFS in a chain of 1 to {} records, without those that open the repository (those of `evidence head`, but for \
         the {OF_HEAD} about the chain); those that look for the cluster in the repository are counted",
        scene.few_rounds()
    );
    Ok(BoundFinding::within("requests for a record", "", GoodSide::AtMost, 3.0, &all).noting(note))
}

/// The requests of a record without those that open the repository. No command opens it and does nothing else: a head is the nearest.
fn of_record(record: &BTreeMap<String, u64>, head: &BTreeMap<String, u64>) -> Result<f64, String> {
    let all = total(record, ["GET", "PUT"])?;
    let of_head = total(head, ["GET", "LIST"])?;
    match of_head.checked_sub(OF_HEAD).filter(|opening| *opening > 0) {
        Some(opening) => Ok(all as f64 - opening as f64),
        None => {
            Err(format!("`evidence head` made {of_head} requests, and opening the repository takes some"))
        }
    }
}

/// All requests. A counter that is absent has not counted nothing: these kinds were sent.
fn total(requests: &BTreeMap<String, u64>, sent: [&str; 2]) -> Result<u64, String> {
    match sent.iter().find(|kind| !requests.contains_key(**kind)) {
        Some(absent) => Err(format!("SeaweedFS counted no {absent}: {requests:?}")),
        None => Ok(requests.values().sum()),
    }
}

/// Adds records to the chain of the cluster `main`, in memory, where nothing is flushed: 100,000 records are not measured.
fn fill(directory: &Path, records: u64) -> Result<(), String> {
    let memory = TestDir::new();
    let there = memory.join("repository");
    copy(directory, &there);
    let mut own = Command::new("chown");
    if user::is_root() {
        process::run(own.args(["-R", "root:root"]).arg(&there), Duration::from_secs(60)).expect_success();
    }
    let settings: StoreSettings =
        toml::from_str(&format!("url = \"file://{}\"", there.display())).map_err(|e| e.to_string())?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(|e| e.to_string())?;
    runtime
        .block_on(async {
            let repository = Repository::open("main", &settings).await?;
            let cluster: ClusterName = "main".parse().expect("a name");
            let evidence = Evidence::of(&repository, &cluster);
            for n in 0..records {
                let draft =
                    Draft::new(Kind::Other, Outcome::Success, "dba".to_owned(), "walpoint-bench".to_owned());
                evidence.append(&draft.with_note(&format!("change {n} of the network"))).await?;
            }
            Ok(())
        })
        .map_err(|e: walpoint_storage::error::RepoError| e.to_string())?;
    user::give_tree(&there);
    std::fs::remove_dir_all(directory).map_err(|e| e.to_string())?;
    copy(&there, directory);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_absent_counter_is_no_result() {
        let requests = |counts: &[(&str, u64)]| {
            counts.iter().map(|(kind, count)| ((*kind).to_owned(), *count)).collect::<BTreeMap<_, _>>()
        };
        let head = requests(&[("GET", 3), ("LIST", 1)]);
        assert_eq!(of_record(&requests(&[("GET", 2), ("PUT", 2)]), &head), Ok(3.0));
        assert!(of_record(&requests(&[("GET", 2)]), &head).is_err());
        assert!(of_record(&requests(&[]), &requests(&[])).is_err());
        // Nothing is left for the opening.
        assert!(
            of_record(&requests(&[("GET", 2), ("PUT", 2)]), &requests(&[("GET", 2), ("LIST", 1)])).is_err()
        );
    }
}
