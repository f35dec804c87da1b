//! Segments that were archived though damaged (`push --accept-damaged`), in more than one repository.

use std::fs;
use std::path::{Path, PathBuf};

use walpoint_tests::process::Output;
use walpoint_tests::store::Store;
use walpoint_tests::waldata::{self, WalData};

use crate::archive::Archive;
use crate::target::Target;

/// Three repositories with the first two segments of the second timeline, and the third one, whose copies differ.
struct Bed {
    wal: WalData,
    stores: [Store; 3],
    names: Vec<String>,
}

const STORES: [&str; 3] = ["a", "b", "c"];

impl Bed {
    /// `copies`: of the third segment, in each store. `None`: a sound one; else what is wrong with it.
    fn new(copies: [Option<u8>; 3], first_in: usize) -> Bed {
        let (wal, stores) = (waldata::promotion(17), [Store::local(), Store::local(), Store::local()]);
        let paths: Vec<PathBuf> =
            wal.segments().into_iter().filter(|path| name(path).starts_with("00000002")).collect();
        let names: Vec<String> = paths.iter().map(|path| name(path)).collect();
        let of = [(STORES[0], &stores[0]), (STORES[1], &stores[1]), (STORES[2], &stores[2])];
        let archive = Archive::create(wal.pg_wal.parent().unwrap(), &of);
        for (at, copy) in copies.into_iter().enumerate() {
            archive.put_into(at, &wal.archive, |name| {
                name.ends_with(".history")
                    || at >= first_in && (names[0].as_str()..=&names[1]).contains(&name)
            });
            match copy {
                None => archive.put_into(at, &wal.archive, |name| name == names[2]),
                Some(_) => archive.put_flagged(at, &paths[2], damaged(&wal, &names[2], copy)),
            }
        }
        drop(archive);
        Bed { wal, stores, names }
    }

    fn content(&self, copy: Option<u8>) -> Vec<u8> {
        damaged(&self.wal, &self.names[2], copy)
    }

    fn target(&self, line: &str) -> Target {
        Target::like(self.wal.pg_wal.parent().unwrap()).configure(|agent| {
            let agent = agent.cluster_line("fetch_damaged = true").cluster_line(line);
            STORES.iter().zip(&self.stores).fold(agent, |agent, (name, store)| agent.repository(name, store))
        })
    }

    /// What recovery gets of the third segment, by a prefetcher and without.
    fn recover(&self, line: &str) -> [(Output, Option<Vec<u8>>); 2] {
        let fetches: [fn(&Target, &str) -> Output; 2] = [Target::fetch, Target::fetch_directly];
        fetches.map(|fetch| {
            let target = self.target(line);
            for name in &self.names[..2] {
                assert_eq!(fetch(&target, name).status, 0, "{name}");
            }
            let output = fetch(&target, &self.names[2]);
            (output, target.file())
        })
    }

    #[track_caller]
    fn assert_given(&self, copy: Option<u8>) {
        for (output, file) in self.recover("") {
            assert_eq!(output.status, 0, "{output:#?}");
            assert!(file == Some(self.content(copy)), "another copy was given: {output:#?}");
        }
    }
}

fn name(path: &Path) -> String {
    path.file_name().unwrap().to_str().unwrap().to_owned()
}

fn damaged(wal: &WalData, name: &str, copy: Option<u8>) -> Vec<u8> {
    let mut content = fs::read(wal.archive.join(name)).unwrap();
    if let Some(damage) = copy {
        content[0x3000..0x3010].fill(damage);
    }
    content
}

/// F3, with `fetch_damaged`: a sound copy in any repository is taken before a damaged one.
#[test]
fn a_sound_copy_is_taken_before_a_damaged_one() {
    Bed::new([Some(1), None, Some(1)], 0).assert_given(None);
    Bed::new([Some(1), Some(1), None], 0).assert_given(None);
}

/// F3: of damaged ones, what most repositories have; then what that one has which recovery has its WAL from.
#[test]
fn of_damaged_copies_the_one_is_taken_that_most_repositories_have() {
    Bed::new([Some(1), Some(2), Some(2)], 0).assert_given(Some(2));
    Bed::new([Some(1), Some(2), Some(3)], 0).assert_given(Some(1));
    Bed::new([Some(1), Some(2), Some(3)], 1).assert_given(Some(2));
}

/// F1, F3: a repository that does not answer may have a sound copy; only one that is gone for good has not.
#[test]
fn a_damaged_copy_is_not_taken_while_a_repository_is_silent() {
    let bed = Bed::new([Some(1), Some(1), None], 0);
    let root = bed.stores[2].root().unwrap();
    fs::rename(root, root.with_extension("aside")).unwrap();
    for (output, file) in bed.recover("") {
        assert_eq!((output.status, file), (255, None), "{}", output.stderr);
        assert!(output.stderr.contains("archived although damaged"), "{output:#?}");
    }
    for (output, file) in bed.recover("lost_repositories = [\"c\"]") {
        assert_eq!(output.status, 0, "{output:#?}");
        assert!(
            file == Some(bed.content(Some(1))) && output.stderr.contains("although damaged"),
            "{output:#?}"
        );
    }
}

/// F1, F3: nor while `--repo` leaves out one that may have a sound copy.
#[test]
fn a_damaged_copy_is_not_taken_while_a_repository_is_left_out() {
    let bed = Bed::new([Some(1), Some(1), None], 0);
    for (line, status) in [("", 255), ("lost_repositories = [\"c\"]", 0)] {
        let target = bed.target(line).options(&["--repo", "a", "--repo", "b"]);
        for name in &bed.names[..2] {
            assert_eq!(target.fetch(name).status, 0, "{name}");
        }
        let output = target.fetch(&bed.names[2]);
        assert_eq!(output.status, status, "{output:#?}");
        let says = "repository c: --repo leaves it out";
        assert_eq!(output.stderr.contains(says), status == 255, "{output:#?}");
    }
}
