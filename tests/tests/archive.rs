//! A1–A6, A10: what is archived, refused and kept apart, by `archive-push`, the daemon and `archive-agent push`.

mod archive_bed;

use std::sync::Arc;
use std::time::{Duration, Instant};

use archive_bed::{Bed, damage, register};
use walpoint_base::Lsn;
use walpoint_tests::agent::Agent;
use walpoint_tests::cluster::{Cluster, Shutdown};
use walpoint_tests::store::Store;
use walpoint_tests::waldata::{self, Lost};
use walpoint_tests::{process, user, wait};

/// What a test does to the bytes of a segment.
type Change<'a> = &'a dyn Fn(&mut Vec<u8>);

const SOON: Duration = Duration::from_secs(60);

/// Two servers that grew apart from one copy: same system identifier, same timeline, different WAL under the same names.
fn split_brain(bed: &Bed) -> Cluster {
    let copy = bed.cluster.base_backup(&["-X", "stream", "-c", "fast"]);
    let text = std::fs::read_to_string(copy.join("postgresql.conf")).unwrap();
    std::fs::write(copy.join("postgresql.conf"), text + "\narchive_mode = off\n").unwrap();
    Cluster::start_restored(bed.cluster.dir(), bed.cluster.major(), copy)
}

/// A1
#[test]
fn the_same_segment_again_is_success_and_another_content_is_refused() {
    for store in Store::all_good() {
        let mut bed = Bed::new(Cluster::builder().segment_size_mb(1), store);
        bed.cluster.start();
        let mut twin = split_brain(&bed);
        let _daemon = bed.agent.daemon();
        bed.cluster.psql("create table t as select 1");
        let name = bed.cluster.switch_wal();
        bed.cluster.wait_done(&name);
        let saved = bed.copy(&name, "saved");
        let before = bed.store.back_door().list("clusters");
        let stored = bed.archive().get(&name).unwrap();
        assert_eq!(stored, std::fs::read(&saved).unwrap());

        bed.agent.push(format!("pg_wal/{name}")).expect_success();
        bed.direct(&saved).expect_success();

        twin.psql("create table other as select 2");
        while twin.switch_wal() < name {}
        // Nothing is taken from a server that runs.
        twin.crash();
        let other = twin.wal_dir().join(&name);
        let refused = bed.direct(&other).expect_status(1).stderr;
        assert!(refused.contains("already stored with different content"), "{refused}");
        assert!(refused.contains("stored: ") && refused.contains("offered: "), "both hashes: {refused}");
        assert_eq!(bed.archive().get(&name).unwrap(), stored);
        assert_eq!(bed.store.back_door().list("clusters"), before);
    }
}

/// A2
#[test]
fn two_hosts_at_the_same_moment_both_succeed_if_equal_and_one_wins_if_not() {
    for store in Store::all_good() {
        let mut bed = Bed::new(Cluster::builder().segment_size_mb(1), store);
        bed.cluster.set("archive_command", "false");
        bed.cluster.start();
        let twin = split_brain(&bed);
        bed.cluster.fill_wal_mb(9);
        twin.psql("create table other as select 2");
        twin.fill_wal_mb(9);
        let theirs = |name: &String| twin.wal_dir().join(name).exists() && *name < twin.current_segment();
        let names: Vec<String> = bed.ready().into_iter().filter(theirs).collect();
        assert!(names.len() >= 6, "{names:?}");
        for (round, name) in names.iter().enumerate() {
            let ours = bed.cluster.wal_dir().join(name);
            let other = if round % 2 == 0 { ours.clone() } else { twin.wal_dir().join(name) };
            let (a, b) = std::thread::scope(|scope| {
                let other = scope.spawn(|| bed.direct(&other));
                (bed.direct(&ours), other.join().unwrap())
            });
            let stored = bed.archive().get(name).unwrap();
            let (ours, other) = (std::fs::read(&ours).unwrap(), std::fs::read(&other).unwrap());
            if ours == other {
                assert!(a.success() && b.success(), "{a:?}\n{b:?}");
            } else {
                assert_eq!(
                    (a.status, b.status),
                    if stored == ours { (0, 1) } else { (1, 0) },
                    "{a:?}\n{b:?}"
                );
            }
            assert!(stored == ours || stored == other);
        }
    }
}

/// A3
#[test]
fn what_is_not_this_clusters_sound_wal_is_refused_with_the_reason() {
    let mut bed = Bed::local(Cluster::builder().segment_size_mb(1));
    bed.cluster.set("archive_command", "false");
    bed.cluster.start();
    bed.cluster.fill_wal_mb(3);
    let names = bed.ready();
    let [first, second, ..] = &names[..] else { panic!("{names:?}") };
    let foreign = Cluster::builder().segment_size_mb(1).archive_command("false").start();
    foreign.fill_wal_mb(3);
    let dir = bed.cluster.dir().mkdir("odd");
    let make = |name: &str, change: Change<'_>| {
        let mut bytes = std::fs::read(bed.cluster.wal_dir().join(first)).unwrap();
        change(&mut bytes);
        let path = dir.join(name);
        std::fs::write(&path, bytes).unwrap();
        user::give(&path);
        path
    };
    let theirs = std::fs::read(foreign.wal_dir().join(first)).unwrap();
    let other_timeline = format!("00000002{}", &first[8..]);
    let cases: [(&str, Change<'_>, &str); 8] = [
        (first, &|b| b.clone_from(&theirs), "system identifier"),
        (first, &|b| b.truncate(700_000), "cut short"),
        (first, &Vec::clear, "0 bytes"),
        (first, &|b| b[500_000] ^= 1, "damaged at"),
        (first, &|b| b.fill(0), "all its bytes are zero"),
        (first, &|b| b[..64].copy_from_slice(&[b'x'; 64]), "not a WAL segment"),
        (second, &|_| {}, "holds the WAL of another segment"),
        ("00000002.history", &|b| *b = b"1 elsewhere".to_vec(), "does not match its name"),
    ];
    for (name, change, says) in cases {
        let path = make(name, change);
        let told = bed.direct(&path).expect_status(1).stderr;
        assert!(told.contains(says) && told.contains(name), "{name}, expected {says:?}: {told}");
    }
    // With the history at hand, a page of a timeline that had ended there is refused.
    let history = make("00000002.history", &|b| *b = b"1\t0/300000\tno recovery target specified\n".to_vec());
    let path = make(&other_timeline, &|_| {});
    let told = bed.direct(&path).expect_status(1).stderr;
    assert!(told.contains("page of timeline 1"), "{told}");
    std::fs::remove_file(history).unwrap();
    assert!(
        bed.store.back_door().list("clusters").iter().all(|key| !key.contains("/wal/")),
        "nothing was stored"
    );

    let path = make(first, &|b| b[500_000] ^= 1);
    bed.agent.run(&["push", "--accept-damaged", path.to_str().unwrap()]).expect_success();
    assert_eq!(bed.archive().get(first).unwrap(), std::fs::read(&path).unwrap());
}

/// A3, A4: everything that PostgreSQL archives around a promotion and a lost contrecord is accepted, and comes back.
#[test]
fn odd_but_valid_wal_and_the_other_files_are_accepted_and_come_back() {
    let promotion = waldata::promotion(17);
    let overwritten = waldata::overwritten_contrecord(16, Lost::InACrash);
    let after = waldata::overwritten_contrecord(15, Lost::InAPromotion);
    let mixed = waldata::mixed(18, 1);
    for data in [promotion, overwritten, after, mixed] {
        let store = Store::local();
        let pgdata = data.pg_wal.parent().unwrap().to_owned();
        register(&store, &pgdata, data.major);
        let dir = Arc::new(walpoint_tests::dir::TestDir::new());
        let agent = Agent::at(&dir, &pgdata, "").repository("main", &store);
        let archive = archive_bed::Archive::of(&store, &pgdata);
        let mut files: Vec<_> =
            std::fs::read_dir(&data.archive).unwrap().map(|e| e.unwrap().path()).collect();
        files.sort();
        for path in &files {
            let pushed = agent.run(&["push", path.to_str().unwrap()]);
            assert!(pushed.success(), "PostgreSQL {}: {pushed:?}", data.major);
        }
        for path in &files {
            let name = path.file_name().unwrap().to_str().unwrap();
            assert_eq!(archive.get(name).as_deref(), Some(&*std::fs::read(path).unwrap()), "{name}");
            if let Some(whole) = name.strip_suffix(".partial") {
                assert!(files.iter().any(|f| f.ends_with(whole)) || archive.get(whole).is_none(), "{whole}");
            }
            if name.ends_with(".history") {
                let changed = dir.write(name, [&*std::fs::read(path).unwrap(), b"# more\n"].concat());
                let told = agent.run(&["push", changed.to_str().unwrap()]).expect_status(1).stderr;
                assert!(told.contains("different content"), "{told}");
            }
        }
    }
}

/// A segment whose records end before `end`, in a file that was another segment before: it keeps that one's later pages.
fn recycled(content: &[u8], end: usize, before: &[u8]) -> Vec<u8> {
    let page = end.next_multiple_of(8192);
    assert!(page < content.len());
    [&content[..page], &before[page..]].concat()
}

/// Servers whose recycled files held something else hand over the same incomplete segment, and the same `.partial`; one that
/// was promoted earlier hands over less. Recovery never reads what is left over, and nobody stops over it.
#[test]
fn what_is_left_over_in_a_recycled_file_makes_no_conflict() {
    let mut bed = Bed::local(Cluster::builder().segment_size_mb(1));
    bed.cluster.set("archive_command", "false");
    bed.cluster.start();
    bed.cluster.psql("create table t (n int)");
    let fill = || {
        // Full up to near its end.
        let name = bed.cluster.current_segment();
        while bed.cluster.current_segment() == name {
            bed.cluster.psql("insert into t select generate_series(1, 1000)");
        }
        std::fs::read(bed.cluster.wal_dir().join(&name)).unwrap()
    };
    let (one, other) = (fill(), fill());
    bed.cluster.switch_wal();
    bed.cluster.psql("insert into t values (1)");
    let name = bed.cluster.current_segment();
    let read = || {
        let end: Lsn = bed.cluster.psql("select pg_current_wal_flush_lsn()").parse().unwrap();
        (
            std::fs::read(bed.cluster.wal_dir().join(&name)).unwrap(),
            usize::try_from(end.0).unwrap() % (1 << 20),
        )
    };
    let (early, early_end) = read();
    bed.cluster.psql("insert into t select generate_series(1, 1000)");
    let (late, late_end) = read();
    assert_eq!(bed.cluster.current_segment(), name);
    assert!(early_end < late_end && one[late_end..] != other[late_end..]);
    let new = vec![0; 1 << 20];
    let contents = [
        recycled(&early, early_end, &new),
        recycled(&early, early_end, &one),
        recycled(&late, late_end, &new),
        recycled(&late, late_end, &one),
        recycled(&late, late_end, &other),
    ];
    for (suffix, kept) in [("", ".ended/"), (".partial", ".partial/")] {
        for (server, content) in contents.iter().enumerate() {
            let directory = format!("server{server}{suffix}");
            bed.cluster.dir().mkdir(&directory);
            let path = bed.cluster.dir().write(format!("{directory}/{name}{suffix}"), content);
            bed.direct(&path).expect_success();
        }
        let keys = bed.store.back_door().list("clusters");
        let found = keys.iter().filter(|key| key.contains(&format!("{name}{kept}"))).count();
        assert_eq!(found, 2, "as many as have different records: {keys:?}");
    }
    assert_eq!(bed.archive().get(&name), None, "none is served as whole");
    let most = bed.archive().get(&format!("{name}.partial")).unwrap();
    let filled = most.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    assert!(filled > early_end, "the one that holds most is read");
    assert!(most[..filled] == late[..filled]);

    bed.cluster.switch_wal();
    bed.direct(&bed.cluster.wal_dir().join(&name)).expect_success();
    assert!(bed.archive().get(&name).is_some(), "the whole one is accepted after them");
}

/// A3: a full name with less inside is kept apart, and the whole one is accepted after it.
#[test]
fn an_incomplete_segment_is_kept_aside_until_the_whole_one_comes() {
    let mut bed = Bed::local(Cluster::builder().segment_size_mb(1));
    bed.cluster.set("archive_command", "false");
    bed.cluster.start();
    bed.cluster.psql("create table t as select generate_series(1, 100)");
    let name = bed.cluster.current_segment();
    let early = bed.copy(&name, "early");
    bed.direct(&early).expect_success();
    let keys = || bed.store.back_door().list("clusters");
    assert!(keys().iter().any(|key| key.contains(&format!("{name}.ended/"))), "{:?}", keys());
    assert_eq!(bed.archive().get(&name), None, "it must not be served as whole");
    bed.cluster.psql("insert into t select generate_series(1, 100)");
    bed.cluster.switch_wal();
    let whole = bed.cluster.wal_dir().join(&name);
    bed.direct(&whole).expect_success();
    bed.direct(&early).expect_success();
    assert_eq!(bed.archive().get(&name).unwrap(), std::fs::read(whole).unwrap());
}

/// A5
#[test]
fn the_usual_mistakes_in_archive_command_get_a_hint() {
    let mut bed = Bed::local(Cluster::builder().segment_size_mb(1));
    bed.cluster.set("archive_command", "false");
    bed.cluster.start();
    let name = bed.cluster.switch_wal();
    let told = bed.agent.push(&name).expect_status(1).stderr;
    assert!(told.contains("%p (the path), not %f (the name)"), "{told}");
    let mut elsewhere = bed.agent.push_command(format!("pg_wal/{name}"));
    let told = process::run(elsewhere.current_dir("/"), SOON).expect_status(1).stderr;
    assert!(
        told.contains("must not change the working directory") && told.contains("working directory is /"),
        "{told}"
    );
    let told = bed.agent.push("pg_wal/0000000100000000000000FE").expect_status(1).stderr;
    assert!(
        told.contains("has no such file in pg_wal")
            && !told.contains("must not change the working directory"),
        "{told}"
    );
    let told = bed.agent.push("pg_wal/archive_status").expect_status(1).stderr;
    assert!(told.contains("not a WAL file name"), "{told}");
    process::run(&mut bed.agent.command("archive-push", [&name]), SOON).expect_status(2);
    // The configuration that is read when there is no daemon.
    let mut wrong = bed.agent.command("archive-push", ["--socket", "nobody", "--config", "nothing"]);
    let told = process::run(wrong.arg(bed.cluster.wal_dir().join(&name)), SOON).expect_status(2).stderr;
    assert!(told.contains("without the daemon") && told.contains("nothing"), "{told}");
    // Absolute and relative paths both work, without a daemon and with one.
    bed.agent.push(format!("pg_wal/{name}")).expect_success();
    let _daemon = bed.agent.daemon();
    bed.agent.push(bed.cluster.wal_dir().join(&name)).expect_success();
    bed.agent.push(format!("pg_wal/{name}")).expect_success();
}

/// A6
#[test]
fn a_backlog_is_uploaded_ahead_and_a_failed_look_ahead_is_told_when_its_turn_comes() {
    let mut bed = Bed::local(Cluster::builder().segment_size_mb(1));
    bed.cluster.set("archive_command", "false");
    bed.agent.cluster_lines.push("look_ahead = 64".to_owned());
    bed.cluster.start();
    bed.cluster.fill_wal_mb(40);
    let ready = bed.ready();
    let bad = bed.cluster.wal_dir().join(&ready[20]);
    let good_bytes = std::fs::read(&bad).unwrap();
    damage(&bad);
    let daemon = bed.agent.daemon();
    let archive = bed.archive();
    // The daemon begins with a question.
    bed.agent.push(format!("pg_wal/{}", ready[0])).expect_success();
    let last = ready[ready.len().min(64) - 1].clone();
    wait::until_true(SOON, "the backlog is stored before PostgreSQL asks", || archive.get(&last).is_some());
    assert_eq!(archive.get(&ready[20]), None);

    let pushed = bed.agent.push(format!("pg_wal/{}", ready[20])).expect_status(1);
    assert!(pushed.stderr.contains("damaged at"), "{}", pushed.stderr);
    std::fs::write(&bad, good_bytes).unwrap();
    bed.agent.push(format!("pg_wal/{}", ready[20])).expect_success();

    let mut took: Vec<Duration> = ready
        .iter()
        .take(60)
        .map(|name| {
            let mut command = bed.agent.push_command(format!("pg_wal/{name}"));
            let begun = Instant::now();
            assert!(command.status().unwrap().success(), "{name}");
            begun.elapsed()
        })
        .collect();
    took.sort();
    let (p50, worst) = (took[took.len() / 2], took[took.len() - 1]);
    println!("archive-push of a stored segment: p50 {p50:?}, worst {worst:?} of {}", took.len());
    assert!(p50 < Duration::from_millis(50), "p50 {p50:?}");

    let indexed =
        || bed.store.back_door().list("clusters").iter().any(|key| key.contains("/index/00000001/1/"));
    wait::until_true(SOON, "what is stored is indexed", indexed);

    // And PostgreSQL drains what is left.
    bed.cluster.set("archive_command", bed.agent.archive_command());
    bed.cluster.reload();
    bed.cluster.wait_done(ready.last().unwrap());
    assert_eq!(daemon.stop(), 0);
}

/// A6, measured: how fast a backlog goes once PostgreSQL archives again.
#[test]
#[ignore = "a measurement, to be run alone"]
fn a_backlog_of_a_gigabyte_drains() {
    for (store, size, count) in [(Store::local(), 16, 64), (Store::s3(), 16, 64), (Store::local(), 1, 300)] {
        let mut bed = Bed::new(Cluster::builder().segment_size_mb(size), store);
        bed.cluster.set("archive_command", "false");
        bed.cluster.start();
        bed.cluster.fill_wal_mb(size * count);
        let last = bed.cluster.switch_wal();
        let waiting = bed.ready().len();
        let daemon = bed.agent.daemon();
        let begun = Instant::now();
        bed.cluster.set("archive_command", bed.agent.archive_command());
        bed.cluster.reload();
        bed.cluster.switch_wal();
        bed.cluster.wait_done(&last);
        let took = begun.elapsed();
        println!(
            "{waiting} segments of {size} MB to {}: {took:?}, {:?} each, memory {:?}",
            bed.store.url(),
            took / u32::try_from(waiting).unwrap(),
            daemon.memory()
        );
        daemon.kill();
        let idle = bed.agent.daemon();
        println!("idle: memory {:?}", idle.memory());
    }
}

/// A10
#[test]
fn every_segment_size_and_version_archives_under_load() {
    for (major, size, fill) in [(13, 1, 20), (14, 4, 40), (16, 16, 120), (18, 64, 200), (19, 1, 20)] {
        let mut bed = Bed::local(Cluster::builder().major(major).segment_size_mb(size));
        let daemon = bed.agent.daemon();
        bed.cluster.start();
        bed.cluster.fill_wal_mb(fill);
        bed.cluster.psql("select pg_create_restore_point('noon')");
        let last = bed.cluster.switch_wal();
        bed.cluster.wait_done(&last);
        let points = bed.store.back_door().list("clusters");
        assert!(points.iter().any(|key| key.contains("/points/6e6f6f6e/")), "restore point noon: {points:?}");
        let archive = bed.archive();
        let done: Vec<String> = bed.cluster.segments().into_iter().filter(|name| *name <= last).collect();
        assert!(!done.is_empty());
        for name in done {
            let ours = std::fs::read(bed.cluster.wal_dir().join(&name)).unwrap();
            assert!(archive.get(&name).is_some_and(|stored| stored == ours), "PostgreSQL {major}, {name}");
        }
        assert_eq!(bed.cluster.archive_failures().0, 0, "{}", bed.cluster.log());
        println!("PostgreSQL {major}, {size} MB segments: memory (now, highest) {:?}", daemon.memory());
        bed.cluster.stop(Shutdown::Fast);
        assert_eq!(daemon.stop(), 0);
    }
}

/// A10: the largest segments.
#[test]
#[ignore = "gigabytes in memory: make soak"]
fn a_segment_of_a_gigabyte_is_archived() {
    let mut bed = Bed::local(Cluster::builder().segment_size_mb(1024));
    let daemon = bed.agent.daemon();
    bed.cluster.start();
    bed.cluster.fill_wal_mb(600);
    let name = bed.cluster.switch_wal();
    let begun = Instant::now();
    bed.cluster.wait_done(&name);
    println!("a segment of 1 GB: {:?}, memory {:?}", begun.elapsed(), daemon.memory());
    assert!(bed.archive().get(&name).unwrap() == std::fs::read(bed.cluster.wal_dir().join(&name)).unwrap());
    assert_eq!(bed.cluster.archive_failures().0, 0, "{}", bed.cluster.log());
}

/// A1, A3: two standbys with `archive_mode = always` beside their primary, all into one repository, and a promotion.
#[test]
fn standbys_that_archive_too_agree_with_their_primary() {
    let mut bed = Bed::local(Cluster::builder().major(15).segment_size_mb(1));
    bed.cluster.set("archive_mode", "always");
    let daemon = bed.agent.daemon();
    bed.cluster.start();
    let standbys: Vec<(Cluster, Agent)> = (0..2)
        .map(|_| {
            let mut standby = bed.cluster.standby();
            let agent = Agent::with(&standby, &bed.store);
            agent.write();
            standby.set("archive_command", agent.archive_command());
            standby.start();
            (standby, agent)
        })
        .collect();
    let _daemons: Vec<_> = standbys.iter().map(|(_, agent)| agent.daemon()).collect();
    let mut last = String::new();
    for _ in 0..8 {
        bed.cluster
            .psql("create table if not exists t (n int); insert into t select generate_series(1, 5000)");
        last = bed.cluster.switch_wal();
    }
    for cluster in std::iter::once(&bed.cluster).chain(standbys.iter().map(|(standby, _)| standby)) {
        cluster.wait_done(&last);
        assert_eq!(cluster.archive_failures().0, 0, "{}", cluster.log());
    }
    let archive = bed.archive();
    let saved = std::fs::read(bed.cluster.wal_dir().join(&last)).unwrap();
    assert_eq!(archive.get(&last).unwrap(), saved);

    // The primary dies; one standby takes over, the other follows it over the fork.
    let (new, old) = (&standbys[0].0, &standbys[1].0);
    bed.cluster.psql("insert into t values (0)");
    let open = bed.cluster.current_segment();
    new.wait_replayed(&bed.cluster);
    old.wait_replayed(&bed.cluster);
    bed.cluster.crash();
    new.promote();
    old.set("primary_conninfo", new.conninfo());
    old.reload();
    new.psql("insert into t values (1)");
    let first_of_two = new.switch_wal();
    assert!(first_of_two.starts_with("00000002"), "{first_of_two}");
    new.wait_done(&first_of_two);
    old.wait_done(&first_of_two);
    assert!(archive.get("00000002.history").is_some());
    assert!(archive.get(&format!("{open}.partial")).is_some());
    assert_eq!(archive.get(&open), None, "the fork's segment ends early: never served as whole");
    assert_eq!(daemon.stop(), 0);
}

/// A13: a standby is promoted whose primary died with WAL that it had not archived. PostgreSQL takes that for archived.
#[test]
fn a_promoted_standby_backfills_what_its_primary_never_archived() {
    let mut bed = Bed::local(Cluster::builder().segment_size_mb(1));
    bed.cluster.start();
    let mut standby = bed.cluster.standby();
    let agent = Agent::with(&standby, &bed.store);
    agent.write();
    standby.set("archive_command", agent.archive_command());
    standby.start();
    standby.wait_for("select count(*) from pg_stat_wal_receiver where status = 'streaming'", "1");
    // Of the segments that came with the copy PostgreSQL does not say that it received them.
    let copied = bed.cluster.switch_wal();
    bed.cluster.wait_done(&copied);

    bed.cluster.set("archive_command", "false");
    bed.cluster.reload();
    bed.cluster.psql("create table t (n int)");
    let lost: Vec<String> = (0..6)
        .map(|_| {
            bed.cluster.psql("insert into t select generate_series(1, 2000)");
            bed.cluster.switch_wal()
        })
        .collect();
    bed.cluster.psql("insert into t values (0)");
    let fork = bed.cluster.current_segment();
    standby.wait_replayed(&bed.cluster);
    bed.cluster.crash();
    let archive = bed.archive();
    let daemon = agent.daemon();
    // Nothing is done for a primary that may still be alive.
    std::thread::sleep(Duration::from_secs(3));
    assert!(lost.iter().all(|name| archive.get(name).is_none()));

    // Before the first checkpoint of the new timeline, which removes what is archived as far as PostgreSQL knows.
    standby.promote();
    wait::until_true(Duration::from_secs(60), "the gap is closed", || {
        lost.iter().all(|name| archive.get(name).is_some())
    });
    assert!(daemon.log().contains("the server before the promotion had not done so"), "{}", daemon.log());
    let next = standby.switch_wal();
    standby.wait_done(&next);
    assert!(next.starts_with("00000002") && archive.get("00000002.history").is_some());
    assert!(archive.get(&format!("{fork}.partial")).is_some());
    assert_eq!(archive.get(&fork), None, "the fork's segment ends early: never served as whole");
    assert_eq!(daemon.stop(), 0);
}
