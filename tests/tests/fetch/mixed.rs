//! Two repositories that hold two servers' WAL of one timeline: recovery gets that of one.

use std::sync::Arc;
use std::time::{Duration, Instant};

use walpoint_tests::cluster::Cluster;
use walpoint_tests::process::{self, Output};
use walpoint_tests::store::Store;
use walpoint_tests::{user, wait};

use crate::archive::Archive;
use crate::target::{self, Target};

/// Production and a copy that goes its own way on the same timeline, further than production.
struct Two {
    production: Cluster,
    copy: Cluster,
    /// Of production, what both have first.
    ours: Vec<String>,
    /// Of the copy, behind production's last one.
    theirs: Vec<String>,
}

fn segments(cluster: &Cluster, count: usize, rows: usize) -> Vec<String> {
    cluster.psql("create table if not exists t (n int)");
    let one = |_| {
        cluster.psql(&format!("insert into t select generate_series(1, {rows})"));
        cluster.switch_wal()
    };
    (0..count).map(one).collect()
}

impl Two {
    fn start() -> Two {
        let builder = Cluster::builder().segment_size_mb(1).conf("wal_keep_size", "64MB");
        let mut production = builder.init();
        production.start();
        let mut ours = segments(&production, 3, 100);
        let place = production.base_backup(&["-X", "stream"]);
        let mut copy = Cluster::adopt(Arc::clone(production.dir()), production.major(), place, None);
        copy.start();
        ours.extend(segments(&production, 3, 100));
        let last = ours.last().unwrap().clone();
        let mut theirs = segments(&copy, 6, 150);
        theirs.retain(|name| *name > last);
        assert!(!theirs.is_empty());
        Two { production, copy, ours, theirs }
    }

    /// The first repository has production's WAL, the second one that of both before they parted and then the copy's.
    fn archive<'a>(&self, near: &'a Store, far: &'a Store) -> Archive<'a> {
        let archive = Archive::create(self.production.pgdata(), &[("near", near), ("far", far)]);
        let stored = |name: &str| self.ours.iter().any(|ours| ours == name);
        archive.put_into(0, &self.production.wal_dir(), stored);
        let common = |name: &str| self.ours[..3].iter().any(|ours| ours == name);
        archive.put_into(1, &self.production.wal_dir(), common);
        let kept = |name: &str| name > self.ours[2].as_str() && *name <= *self.theirs[0];
        archive.put_into(1, &self.copy.wal_dir(), kept);
        archive
    }

    fn target(&self, near: &Store, far: &Store) -> Target {
        Target::like(self.production.pgdata())
            .configure(|agent| agent.repository("near", near).repository("far", far))
    }
}

#[track_caller]
fn names_both(output: &Output, status: i32) {
    assert_eq!(output.status, status, "{output:#?}");
    for said in ["repository far", "repository near", "another server's WAL"] {
        assert!(output.stderr.contains(said), "{said}: {output:#?}");
    }
}

/// What the first repository does not have is not taken from another server's, by a prefetcher or without, in archive recovery or on a
/// standby.
#[test]
fn another_servers_wal_in_another_repository_does_not_stand_in() {
    let two = Two::start();
    let (near, far) = (Store::local(), Store::local());
    let archive = two.archive(&near, &far);
    let next = &two.theirs[0];
    let file = |name: &str| std::fs::read(two.production.wal_dir().join(name)).ok();
    let fetches: [fn(&Target, &str) -> Output; 2] = [Target::fetch, Target::fetch_directly];
    for fetch in fetches {
        let target = two.target(&near, &far);
        for name in &two.ours {
            assert_eq!(fetch(&target, name).status, 0, "{name}");
            assert_eq!(target.file(), file(name), "{name}");
        }
        names_both(&fetch(&target, next), 255);
        let standby = two.target(&near, &far).standby();
        for name in &two.ours {
            assert_eq!(fetch(&standby, name).status, 0, "{name}");
        }
        names_both(&fetch(&standby, next), 1);
        assert_eq!(standby.file(), None);
    }
    // Waiting changes nothing where every repository has answered.
    for fetch in fetches {
        let target = Target::patient(two.production.pgdata());
        let target = target.configure(|agent| agent.repository("near", &near).repository("far", &far));
        two.ours.iter().for_each(|name| assert_eq!(fetch(&target, name).status, 0, "{name}"));
        let began = Instant::now();
        names_both(&fetch(&target, next), 255);
        assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    }
    // A repository that lags behind is helped out by the one that has more of the same server.
    let door = far.back_door();
    let last_common = archive.key(&two.ours[2]);
    let theirs =
        door.list("clusters/main").into_iter().filter(|key| key.contains("/wal/") && *key > last_common);
    theirs.for_each(|key| door.delete(&key));
    for name in &two.ours[3..] {
        let key = archive.key(name);
        door.put(&key, near.back_door().get(&key).unwrap());
    }
    user::give_tree(far.root().unwrap());
    near.back_door().delete(&archive.key(&two.ours[5]));
    for fetch in fetches {
        let target = two.target(&near, &far);
        for name in &two.ours {
            assert_eq!(fetch(&target, name).status, 0, "{name}");
            assert_eq!(target.file(), file(name), "{name}");
        }
    }
}

/// A process that did not give anything itself compares with what the one before it gave last, though the repository that has it is
/// silent: with what was noted, or, where that process was killed, with what the server has in `pg_wal`. What both repositories have
/// from before the two servers parted proves nothing.
#[test]
fn what_an_earlier_process_gave_last_counts_though_its_repository_is_silent() {
    let two = Two::start();
    let (near, far) = (Store::local(), Store::local());
    let _archive = two.archive(&near, &far);
    let next = &two.theirs[0];
    let end = |target: &Target, signal| {
        let served = target::prefetchers(&target.agent);
        served.iter().for_each(|pid| process::kill_pid(*pid, signal));
        wait::until_true(wait::SOON, "no prefetcher is left", || {
            target::prefetchers(&target.agent).is_empty()
        });
    };
    let (root, away) = (near.root().unwrap().to_owned(), near.root().unwrap().with_extension("away"));
    let in_wal = |target: &Target, name: &str| target.pgdata.join("pg_wal").join(name);
    let origin = |target: &Target| in_wal(target, walpoint_base::RECOVERY_ORIGIN);
    for way in ["each by a process of its own", "a prefetcher that ends", "a prefetcher that is killed"] {
        let target = two.target(&near, &far);
        let fetch = if way.starts_with("each") { Target::fetch_directly } else { Target::fetch };
        assert_eq!(fetch(&target, &two.ours[0]).status, 0, "{way}");
        let early = std::fs::read(origin(&target)).unwrap();
        for name in &two.ours[1..] {
            assert_eq!(fetch(&target, name).status, 0, "{way}: {name}");
        }
        match way {
            "a prefetcher that ends" => end(&target, rustix::process::Signal::TERM),
            "a prefetcher that is killed" => {
                end(&target, rustix::process::Signal::KILL);
                std::fs::write(origin(&target), &early).unwrap();
                let last = two.ours.last().unwrap();
                std::fs::copy(two.production.wal_dir().join(last), in_wal(&target, last)).unwrap();
                user::give_tree(&target.pgdata);
            }
            _ => {}
        }
        std::fs::rename(&root, &away).unwrap();
        let output = fetch(&target, next);
        assert_eq!(output.status, 255, "{way}: {output:#?}");
        assert!(output.stderr.contains("another server's WAL"), "{way}: {output:#?}");
        assert_eq!(target.file(), None, "{way}");
        end(&target, rustix::process::Signal::KILL);
        std::fs::rename(&away, &root).unwrap();
    }
}

/// How a target asks for a segment.
type Fetch = fn(&Target, &str) -> Output;

/// A standby of a copy has no production's WAL, though the archive has nothing else under these names: what its own `pg_wal` shows counts
/// for the first segment that it asks for, for one behind those that came by streaming since, and for one that it holds itself. So it is
/// with a prefetcher and without, and with archive recovery.
#[test]
fn the_servers_own_wal_counts_before_anything_was_given_and_after_it_streamed() {
    let two = Two::start();
    let near = Store::local();
    let archive = Archive::create(two.production.pgdata(), &[("near", &near)]);
    archive.put_all(&two.production.wal_dir(), |name| two.ours.iter().any(|ours| ours == name));
    let new = || Target::like(two.production.pgdata()).configure(|agent| agent.repository("near", &near));
    let put = |target: &Target, from: &Cluster, name: &str, to: &str| {
        // That file alone: a prefetcher makes and renames others beside it.
        let file = target.pgdata.join("pg_wal").join(to);
        std::fs::copy(from.wal_dir().join(name), &file).unwrap();
        user::give(&file);
    };
    let [.., third, fourth, fifth] = &two.ours[..] else { panic!("{:?}", two.ours) };
    let refused = |output: Output, status: i32, how: &str| {
        assert_eq!(output.status, status, "{how}: {output:#?}");
        for said in ["another server's WAL than", "copy walpoint.lineage"] {
            assert!(output.stderr.contains(said), "{how}: {said}: {output:#?}");
        }
    };
    let fetches: [(&str, Fetch); 2] = [("prefetcher", Target::fetch), ("directly", Target::fetch_directly)];
    for (how, fetch) in fetches {
        let target = new().standby();
        put(&target, &two.copy, third, third);
        put(&target, &two.copy, fourth, fourth);
        refused(fetch(&target, fifth), 1, how);
        assert_eq!(target.file(), None, "{how}");
        let target = new();
        put(&target, &two.copy, fourth, fourth);
        refused(fetch(&target, fifth), 255, how);

        // It was given what both have, and streamed since, while production's went on being fetched ahead.
        let target = new().standby();
        assert_eq!(fetch(&target, &two.ours[2]).status, 0, "{how}");
        if how == "prefetcher" {
            wait::until_true(wait::SOON, "it is fetched ahead", || target.ready().contains(fifth));
        }
        put(&target, &two.copy, third, third);
        put(&target, &two.copy, fourth, fourth);
        refused(fetch(&target, fifth), 1, how);
        assert_eq!(target.file(), None, "{how}");
        // After a restart it asks for what it holds already.
        refused(fetch(&target, third), 1, how);

        // Production's own standby: with a file that is to be used again, one that is unfinished, and one of which the stream broke
        // behind the switch.
        let target = new().standby();
        put(&target, &two.production, third, third);
        put(&target, &two.production, &two.ours[0], fifth);
        let switched = std::fs::read(two.production.wal_dir().join(fourth)).unwrap();
        let name = fourth.parse().unwrap();
        let facts = walpoint_pg::wal::inspect(name, &switched).unwrap();
        assert!(facts.switched, "{facts:?}");
        let end = usize::try_from(facts.end.0 % (1 << 20)).unwrap();
        for (end, what) in [(end, "switched"), (end / 2 / 8192 * 8192, "unfinished")] {
            let mut content = switched.clone();
            content[end..].fill(0);
            std::fs::write(target.pgdata.join("pg_wal").join(fourth), content).unwrap();
            user::give_tree(&target.pgdata);
            let output = fetch(&target, fifth);
            assert_eq!(output.status, 0, "{how} {what}: {output:#?}");
        }
        assert_eq!(fetch(&target, third).status, 0, "{how}: after a restart");
        assert_eq!(fetch(&target, fourth).status, 0, "{how}");
    }
}

/// A standby that was streamed a part of a segment, and is restarted, asks the archive for it: where that has another server's, what was
/// streamed shows it, up to its last complete record. A beginning that both have shows nothing.
#[test]
fn a_segment_that_was_streamed_in_part_is_not_replaced_by_another_servers() {
    let two = Two::start();
    let near = Store::local();
    let archive = Archive::create(two.production.pgdata(), &[("near", &near)]);
    archive.put_all(&two.production.wal_dir(), |name| two.ours.iter().any(|ours| ours == name));
    let third = &two.ours[3];
    let of = |cluster: &Cluster| std::fs::read(cluster.wal_dir().join(third)).unwrap();
    let (ours, theirs) = (of(&two.production), of(&two.copy));
    let apart = ours.iter().zip(&theirs).position(|(ours, theirs)| ours != theirs).expect("a difference");
    let ends = |content: &[u8]| {
        let facts = walpoint_pg::wal::inspect(third.parse().unwrap(), content).unwrap();
        usize::try_from(facts.end.0 % (1 << 20)).unwrap()
    };
    let whole = ends(&theirs);
    assert!(apart < whole / 2, "{apart} {whole}");
    let fetches: [(&str, Fetch); 2] = [("prefetcher", Target::fetch), ("directly", Target::fetch_directly)];
    for (how, fetch) in fetches {
        for (content, until, refused) in [
            (&theirs, whole / 2 / 8192 * 8192, true),
            (&ours, whole / 2 / 8192 * 8192, false),
            (&theirs, apart, false),
        ] {
            let mut streamed = content.clone();
            streamed[until..].fill(0);
            let what = format!("{how}: up to {until}, complete up to {}", ends(&streamed));
            for (target, status) in [(Target::standby as fn(Target) -> Target, 1), (|target| target, 255)] {
                let target = target(
                    Target::like(two.production.pgdata()).configure(|agent| agent.repository("near", &near)),
                );
                std::fs::write(target.pgdata.join("pg_wal").join(third), &streamed).unwrap();
                user::give_tree(&target.pgdata);
                let output = fetch(&target, third);
                assert_eq!(output.status, if refused { status } else { 0 }, "{what}: {output:#?}");
                assert_eq!(
                    output.stderr.contains("another server's WAL than"),
                    refused,
                    "{what}: {output:#?}"
                );
            }
        }
    }
}
