//! F1 and F3: the exit status for every cause, from the thin client with a prefetcher and from `restore-agent fetch`.
//!
//! PostgreSQL takes 1 for the end of WAL, so 1 must be nothing but proven absence.

use std::path::Path;
use std::sync::OnceLock;

use walpoint_tests::agent::Agent;
use walpoint_tests::process::Output;
use walpoint_tests::proxy::{Fault, Proxy};
use walpoint_tests::seaweed::Credentials;
use walpoint_tests::store::Store;
use walpoint_tests::waldata::{self, WalData};

use crate::archive::Archive;
use crate::target::{Target, shell};

/// WAL of two timelines: the first was left in the middle of a segment.
fn wal() -> &'static WalData {
    static WAL: OnceLock<WalData> = OnceLock::new();
    WAL.get_or_init(|| waldata::promotion(17))
}

fn pgdata() -> &'static Path {
    wal().pg_wal.parent().unwrap()
}

/// Names of whole segments of a timeline, in order.
fn segments(timeline: u32) -> Vec<String> {
    let prefix = format!("{timeline:08X}");
    let names = wal().segments().into_iter().map(|p| p.file_name().unwrap().to_str().unwrap().to_owned());
    names.filter(|name| name.starts_with(&prefix)).collect()
}

/// The segment after the last one of a timeline.
fn after_the_end(timeline: u32) -> String {
    let last = segments(timeline).pop().unwrap();
    let number = u32::from_str_radix(&last[16..], 16).unwrap() + 1;
    format!("{}{number:08X}", &last[..16])
}

/// The segment in which the first timeline was left: there is only a `.partial` of it.
fn left_in() -> String {
    let mut names =
        std::fs::read_dir(&wal().archive).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let partial = names.find(|name| name.ends_with(".partial")).expect("a .partial");
    partial.trim_end_matches(".partial").to_owned()
}

/// Both programs give this status; what they print.
#[track_caller]
fn both(target: &Target, name: &str, status: i32) -> Vec<Output> {
    let outputs = [target.fetch(name), target.fetch_directly(name)];
    for (program, output) in ["restore-fetch", "restore-agent fetch"].iter().zip(&outputs) {
        assert_eq!(output.status, status, "{program} {name}: {output:#?}");
        assert!(status == 0 || target.file().is_none(), "{program} left a file");
        assert!(status == 0 || !output.stderr.is_empty(), "{program} says nothing");
    }
    outputs.into()
}

/// A local archive with all of the WAL, or what `wanted` takes of it.
fn with_local(wanted: impl Fn(&str) -> bool, test: impl FnOnce(&Target, &Archive<'_>, &Store)) {
    let store = Store::local();
    let archive = Archive::create(pgdata(), &[("main", &store)]);
    archive.put_all(&wal().archive, wanted);
    let target = Target::like(pgdata()).configure(|agent| agent.repository("main", &store));
    test(&target, &archive, &store);
}

/// F1: what is there is given whole, under every kind of name.
#[test]
fn what_is_in_the_archive_is_given_as_it_was_archived() {
    with_local(
        |_| true,
        |target, _, _| {
            let names = std::fs::read_dir(&wal().archive)
                .unwrap()
                .map(|e| e.unwrap().file_name().into_string().unwrap());
            for name in names {
                let expected = std::fs::read(wal().archive.join(&name)).unwrap();
                for output in [target.fetch(&name), target.fetch_directly(&name)] {
                    assert_eq!((output.status, output.stderr.as_str()), (0, ""), "{name}");
                    assert!(
                        target.file().is_some_and(|content| content == expected),
                        "{name} is not what was archived"
                    );
                }
            }
        },
    );
}

/// F1: the end of WAL is 1, and so is a timeline that does not exist.
#[test]
fn proven_absence_is_one_and_one_line() {
    with_local(
        |_| true,
        |target, _, _| {
            for name in [after_the_end(2), "00000003.history".into(), left_in()] {
                for output in both(target, &name, 1) {
                    assert_eq!(output.stderr.lines().count(), 1, "{}", output.stderr);
                    assert!(output.stderr.contains("is not in the archive"), "{}", output.stderr);
                }
            }
        },
    );
}

/// F1: something shows that the file existed.
#[test]
fn a_gap_is_no_end() {
    let (first, second) = (segments(1), segments(2));
    // A later segment on the timeline.
    with_local(
        |name| name != second[1],
        |target, _, _| {
            let outputs = both(target, &second[1], 255);
            assert!(
                outputs.iter().all(|o| o.stderr.contains("gap") && o.stderr.contains(&second[2])),
                "{outputs:#?}"
            );
        },
    );
    // The child timeline was forked later, although the parent's WAL ends here.
    let gone = &first[first.len() - 2..];
    with_local(
        |name| !gone.iter().any(|g| name.starts_with(g.as_str())) && !name.ends_with(".partial"),
        |target, _, _| {
            for output in both(target, &gone[0], 255) {
                assert!(output.stderr.contains("timeline 2 left timeline 1"), "{}", output.stderr);
            }
        },
    );
    // The timeline was left in this segment, and the child's own copy is missing too.
    with_local(
        |name| name.starts_with("00000001") || name.ends_with(".history"),
        |target, _, _| {
            both(target, &left_in(), 255);
        },
    );
    // A timeline with WAL and without its history.
    with_local(
        |name| name != "00000002.history",
        |target, _, _| {
            for output in both(target, "00000002.history", 255) {
                assert!(output.stderr.contains("although its history is missing"), "{}", output.stderr);
            }
        },
    );
}

/// F1: a directory that is not mounted, or not the one it was.
#[test]
fn a_repository_that_is_not_there_proves_nothing() {
    let end = after_the_end(2);
    with_local(
        |_| true,
        |target, _, store| {
            let root = store.root().unwrap();
            let aside = root.with_extension("aside");
            both(target, &end, 1);
            std::fs::rename(root, &aside).unwrap();
            both(target, &end, 255);
            std::fs::create_dir(root).unwrap();
            for output in both(target, &end, 255) {
                assert!(output.stderr.contains("mounted"), "{}", output.stderr);
            }
            std::fs::remove_dir(root).unwrap();
            std::fs::rename(&aside, root).unwrap();
            both(target, &end, 1);
            for key in ["walpoint.json", "lineage"] {
                let key = if key == "lineage" { target_lineage(store) } else { key.to_owned() };
                let door = store.back_door();
                let bytes = door.get(&key).unwrap();
                door.delete(&key);
                both(target, &end, 255);
                door.put(&key, bytes);
            }
        },
    );
}

fn target_lineage(store: &Store) -> String {
    store.back_door().list("clusters/main/lineages").pop().unwrap()
}

/// F1: another cluster's archive says nothing about this one's WAL.
#[test]
fn another_clusters_archive_is_refused() {
    let other = walpoint_tests::cluster::Cluster::builder().segment_size_mb(1).init();
    let store = Store::local();
    Archive::create(other.pgdata(), &[("main", &store)]);
    let target = Target::like(pgdata()).configure(|agent| agent.repository("main", &store));
    for output in both(&target, &after_the_end(2), 255) {
        assert!(output.stderr.contains("system identifier"), "{}", output.stderr);
    }
}

/// F1, F3: every damage is found, and the object is named.
#[test]
fn a_damaged_object_is_named_and_never_served() {
    let names = segments(2);
    let (name, other) = (&names[1], &names[2]);
    with_local(
        |_| true,
        |target, archive, store| {
            let (key, door) = (archive.key(name), store.back_door());
            let bytes = door.get(&key).unwrap();
            let damages: [(&str, Vec<u8>); 5] = [
                ("truncated", bytes[..bytes.len() / 2].to_vec()),
                ("empty", Vec::new()),
                ("bit in the header", flipped(&bytes, 20)),
                ("bit in the content", flipped(&bytes, bytes.len() / 2)),
                ("another segment's object", door.get(&archive.key(other)).unwrap().to_vec()),
            ];
            for (damage, damaged) in damages {
                door.put(&key, damaged);
                for output in both(target, name, 255) {
                    assert!(output.stderr.contains(&key), "{damage}: {}", output.stderr);
                }
            }
            door.put(&key, bytes);
            both(target, name, 0);
        },
    );
}

fn flipped(bytes: &[u8], at: usize) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[at] ^= 1;
    bytes
}

/// F3: with two repositories the good copy is served, and the bad one is told of.
#[test]
fn another_repository_stands_in_for_a_damaged_object() {
    let (near, far) = (Store::local(), Store::local());
    let archive = Archive::create(pgdata(), &[("near", &near), ("far", &far)]);
    archive.put_all(&wal().archive, |_| true);
    let target = || Target::like(pgdata()).configure(|a| a.repository("near", &near).repository("far", &far));
    let name = segments(2).remove(1);
    let (key, door) = (archive.key(&name), near.back_door());
    door.truncate(&key, 1000);
    // Each begins a recovery: one that was given it from the second repository goes on there.
    let fetches: [fn(&Target, &str) -> Output; 2] = [Target::fetch, Target::fetch_directly];
    for fetch in fetches {
        let target = target();
        let output = fetch(&target, &name).expect_success();
        assert!(
            output.stderr.contains(&key) && output.stderr.contains("repository far"),
            "{}",
            output.stderr
        );
        assert_eq!(target.file(), std::fs::read(wal().archive.join(&name)).ok());
    }
    door.delete(&key);
    both(&target(), &name, 0);
}

/// F1: every repository that acknowledges has to say that a file is missing.
#[test]
fn one_repository_of_two_proves_nothing() {
    let (near, far) = (Store::local(), Store::local());
    let archive = Archive::create(pgdata(), &[("near", &near), ("far", &far)]);
    archive.put_all(&wal().archive, |_| true);
    let end = after_the_end(2);
    let target = Target::like(pgdata()).configure(|a| a.repository("near", &near).repository("far", &far));
    both(&target, &end, 1);
    let (root, aside) = (far.root().unwrap(), far.root().unwrap().with_extension("aside"));
    std::fs::rename(root, &aside).unwrap();
    both(&target, &end, 255);
    std::fs::rename(&aside, root).unwrap();
    // A reader that knows only one of them.
    let target = Target::like(pgdata()).configure(|agent| agent.repository("near", &near));
    for output in both(&target, &end, 255) {
        assert!(output.stderr.contains("far must confirm that too"), "{}", output.stderr);
        assert!(output.stderr.contains("lost_repositories"), "{}", output.stderr);
    }
    both(&target, &segments(2)[0], 0);
}

/// F1: `--repo` chooses what is read, and not who acknowledges. Here the repository that is read does not know of the other one, which
/// was added to the configuration later and alone acknowledges by now.
#[test]
fn a_repository_that_repo_leaves_out_has_to_say_so_too() {
    let (near, far) = (Store::local(), Store::local());
    Archive::create(pgdata(), &[("near", &near)]).put_all(&wal().archive, |_| true);
    let (last, end) = (segments(2).pop().unwrap(), after_the_end(2));
    let near_of = |line: &str| {
        let two = |a: Agent| a.repository("near", &near).repository("far", &far).cluster_line(line);
        Target::like(pgdata()).configure(two).options(&["--repo", "near"])
    };
    for line in ["ack = [\"far\"]", "ack = [\"near\", \"far\"]", ""] {
        let target = || near_of(line);
        both(&target(), &last, 0);
        for output in both(&target(), &end, 255) {
            assert!(output.stderr.contains("far must confirm that too"), "{line}: {}", output.stderr);
            assert!(output.stderr.contains("Add \"--repo far\" to restore_command"), "{}", output.stderr);
        }
        let lost = target().configure(|agent| agent.cluster_line("lost_repositories = [\"far\"]"));
        both(&lost, &end, 1);
    }
    both(&near_of("ack = [\"near\"]"), &end, 1);
}

/// F1: a repository that burned down must not keep every recovery from ending, once a person has said that it did. What is
/// left has the last word, and says "unknown" of what is there and cannot be read.
#[test]
fn a_repository_that_is_gone_for_good_is_not_waited_for() {
    let (near, far) = (Store::local(), Store::local());
    let archive = Archive::create(pgdata(), &[("near", &near), ("far", &far)]);
    archive.put_all(&wal().archive, |_| true);
    let (last, end) = (segments(2).pop().unwrap(), after_the_end(2));
    let without = |agent: Agent| agent.cluster_line("lost_repositories = [\"far\"]");
    let target = Target::like(pgdata()).configure(|a| without(a.repository("near", &near)));
    both(&target, &end, 1);
    both(&target, &last, 0);
    near.back_door().delete(&archive.key(&last));
    // What it held in the course of this recovery it cannot deny, and another recovery knows of nothing.
    both(&target, &last, 255);
    let target = Target::like(pgdata()).configure(|a| without(a.repository("near", &near)));
    both(&target, &last, 1);
    far.back_door().truncate(&archive.key(&last), 1000);
    let target =
        Target::like(pgdata()).configure(|a| without(a.repository("near", &near).repository("far", &far)));
    for output in both(&target, &last, 255) {
        assert!(output.stderr.contains(&archive.key(&last)), "{}", output.stderr);
    }
}

/// F1: credentials, buckets, networks.
#[test]
fn an_unreachable_bucket_is_no_end() {
    let mut store = Store::s3();
    let archive = Archive::create(pgdata(), &[("main", &store)]);
    let names = segments(2);
    archive.put_all(&wal().archive, |name| name.ends_with(".history") || name == names[0]);
    drop(archive);
    let proxy = Proxy::to(store.port().unwrap());
    let quick = |agent: Agent| {
        agent.repository_line("main", "retries = 0").repository_line("main", "read_timeout = \"1s\"")
    };
    {
        let target = Target::like(pgdata()).configure(|a| quick(a.repository_via("main", &store, &proxy)));
        both(&target, &names[0], 0);
        both(&target, &names[1], 1);
        for fault in
            [Fault::Refuse, Fault::Blackhole, Fault::ResetAnswerAfter(0), Fault::TruncateAnswerAfter(300)]
        {
            proxy.set(fault);
            for name in [&names[0], &names[1]] {
                let output = target.fetch_directly(name);
                assert_eq!(output.status, 255, "{fault:?}: {output:#?}");
            }
            assert_eq!(target.fetch(&names[1]).status, 255, "{fault:?}");
            proxy.heal();
        }
        both(&target, &names[1], 1);
    }
    store.set_credentials(Credentials::unknown());
    both(&Target::like(pgdata()).configure(|a| quick(a.repository("main", &store))), &names[1], 255);
    store.set_credentials(Credentials::full());
    let target = Target::like(pgdata()).configure(|a| quick(a.repository("main", &store)));
    let text = std::fs::read_to_string(target.agent.write()).unwrap();
    let gone = target.agent.place().join("gone.toml");
    std::fs::write(&gone, text.replace(store.bucket().unwrap(), "no-such-bucket")).unwrap();
    walpoint_tests::user::give(&gone);
    let program = walpoint_tests::testbed::under_test("restore-agent");
    let line = format!("{} --config {} fetch {} pg_wal/x", program.display(), gone.display(), names[1]);
    let output = shell(&target, &line);
    assert_eq!(output.status, 255, "{output:#?}");
}

/// F1: usage and configuration errors, through a shell as PostgreSQL runs them.
#[test]
fn mistakes_are_never_an_end() {
    with_local(
        |_| true,
        |target, _, _| {
            let (fetch, agent) = (program("restore-fetch"), program("restore-agent"));
            let config = target.agent.write().display().to_string();
            let typo = target.agent.place().join("typo.toml").display().to_string();
            let text = std::fs::read_to_string(&config).unwrap();
            std::fs::write(&typo, text.replace("fetch_timeout", "fetch_timout")).unwrap();
            let socket = target.agent.fetch_socket().display().to_string();
            let lonely = target.agent.place().join("lonely").display().to_string();
            let segment = segments(2).remove(0);
            let end = after_the_end(2);
            for (line, says) in [
                (fetch.clone(), "--socket is missing"),
                (format!("{fetch} --socket {socket} {segment}"), "both NAME"),
                (format!("{fetch} --socket {socket} pg_wal/x {segment}"), "WAL file name"),
                (format!("{fetch} --socket {socket} --sokcet x {segment} pg_wal/x"), "invalid option"),
                (format!("{fetch} --socket {socket} {segment} pg_wal/x --help"), "invalid option"),
                (format!("{fetch} --socket {lonely} --config {typo} {end} pg_wal/x"), "fetch_timout"),
                (format!("{fetch} --socket {lonely} --config /nowhere.toml {end} pg_wal/x"), "/nowhere.toml"),
                (format!("{agent} --config {typo} fetch {end} pg_wal/x"), "fetch_timout"),
                (format!("{agent} --config {config} --cluster nobody fetch {end} pg_wal/x"), "nobody"),
                (format!("{agent} --config {config} fetch"), "required"),
                (format!("{agent} --config {config} fetch {end}"), "required"),
                (format!("{agent} --config {config} fetch --hlep {end} pg_wal/x"), "--hlep"),
                (format!("{agent} --config {config} fech {end} pg_wal/x"), "fech"),
                (format!("{agent} --config {config} {end} pg_wal/x"), "unrecognized"),
                (format!("{agent} --config {config} fetch pg_wal/x {end}"), "WAL file name"),
                (format!("{agent} --config {config} fetch {segment} nowhere/x"), "nowhere"),
            ] {
                let output = shell(target, &line);
                assert_eq!(output.status, 255, "{line}: {output:#?}");
                assert!(output.stderr.contains(says), "{line}: {}", output.stderr);
            }
            assert_eq!(shell(target, &format!("{fetch} --help")).status, 0);
            assert_eq!(shell(target, &format!("{agent} fetch --help")).status, 0);
        },
    );
}

fn program(name: &str) -> String {
    walpoint_tests::testbed::under_test(name).display().to_string()
}

/// F1: a bug is no end either. The allocator gives up at all sorts of places, as on a machine without memory.
#[test]
fn a_crash_of_the_program_is_no_end() {
    with_local(
        |_| true,
        |target, _, _| {
            let (agent, config, name) =
                (program("restore-agent"), target.agent.write(), segments(2).remove(0));
            let mut crashed = 0;
            for limit in (8_000..60_000).step_by(2_000) {
                let line =
                    format!("ulimit -v {limit}; {agent} --config {} fetch {name} pg_wal/x", config.display());
                let output = shell(target, &line);
                let there = std::fs::read(target.pgdata.join("pg_wal/x")).ok();
                assert!(output.status == 0 && there.is_some() || output.status > 125, "{limit}: {output:#?}");
                crashed += u32::from(output.status != 0);
            }
            assert!(crashed > 3, "{crashed}");
        },
    );
}

/// F1: a file that PostgreSQL's user could not read is no file.
#[test]
fn root_does_not_fetch_into_another_users_data_directory() {
    walpoint_tests::needs_root!();
    with_local(
        |_| true,
        |target, _, _| {
            let config = target.agent.write();
            let mut command = std::process::Command::new(program("restore-agent"));
            command.arg("--config").arg(config).args(["fetch", &segments(2)[0], "pg_wal/x"]);
            let output =
                walpoint_tests::process::run(command.current_dir(&target.pgdata), walpoint_tests::wait::SOON);
            assert_eq!(output.status, 255, "{output:#?}");
            assert!(output.stderr.contains("runs as uid 0"), "{}", output.stderr);
        },
    );
}
