//! Repositories that hang: a directory whose file server is gone answers no call, with neither a file nor an error. A named pipe
//! in place of the descriptor does the same to every process that opens it.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use walpoint_tests::process::Output;
use walpoint_tests::store::Store;
use walpoint_tests::waldata::{self, WalData};

use crate::archive::Archive;
use crate::target::{Target, kill_prefetchers};

/// A repository's descriptor that hangs until this is dropped.
struct Hanging(PathBuf);

impl Hanging {
    fn descriptor_of(store: &Store) -> Hanging {
        let path = store.root().unwrap().join("walpoint.json");
        std::fs::rename(&path, path.with_extension("kept")).unwrap();
        assert!(Command::new("mkfifo").args(["-m", "666"]).arg(&path).status().unwrap().success());
        Hanging(path)
    }
}

impl Drop for Hanging {
    fn drop(&mut self) {
        std::fs::rename(self.0.with_extension("kept"), &self.0).ok();
    }
}

fn segments(wal: &WalData) -> Vec<String> {
    wal.segments().iter().map(|path| path.file_name().unwrap().to_str().unwrap().to_owned()).collect()
}

#[track_caller]
fn within(limit: Duration, output: Output, status: i32) {
    assert!(output.status == status && output.took < limit, "took {:?}: {output:#?}", output.took);
}

/// Promise 4, 10: what another repository holds comes within seconds, and absence is proven by none that hangs.
#[test]
fn a_repository_that_hangs_holds_up_nothing_that_another_one_has() {
    let wal = waldata::promotion(17);
    let (near, far) = (Store::local(), Store::local());
    let pgdata = wal.pg_wal.parent().unwrap();
    let archive = Archive::create(pgdata, &[("near", &near), ("far", &far)]);
    archive.put_all(&wal.archive, |_| true);
    let hanging = Hanging::descriptor_of(&near);
    let names = segments(&wal);
    let repositories =
        |target: Target| target.configure(|agent| agent.repository("near", &near).repository("far", &far));
    let target = repositories(Target::like(pgdata));
    let seconds = Duration::from_secs(4);
    for name in &names[..3] {
        within(seconds, target.fetch_directly(name), 0);
        assert_eq!(target.file(), std::fs::read(wal.archive.join(name)).ok(), "{name}");
        within(seconds, target.fetch(name), 0);
        assert_eq!(target.file(), std::fs::read(wal.archive.join(name)).ok(), "{name}");
    }
    // The end of the archive is proven by both.
    let missing = "0000000900000000000000AA";
    for output in [target.fetch_directly(missing), target.fetch(missing)] {
        assert!(output.status == 255 && output.stderr.contains("has not answered"), "{output:#?}");
    }
    // A standby does not wait for the one that hangs.
    let standby = repositories(Target::like(pgdata).standby());
    for name in &names[..2] {
        within(Duration::from_millis(2400), standby.fetch_directly(name), 0);
        assert_eq!(standby.file(), std::fs::read(wal.archive.join(name)).ok(), "{name}");
    }
    drop(hanging);
    kill_prefetchers(&target.agent);
}
