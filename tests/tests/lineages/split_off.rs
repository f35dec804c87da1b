//! A lineage that was split off beside its parent: what is restored of each, and who reads which.

use std::path::PathBuf;
use std::time::Duration;

use walpoint_tests::agent::Agent;
use walpoint_tests::archived::Archived;
use walpoint_tests::cluster::{Cluster, Shutdown};
use walpoint_tests::rows::Ledger;
use walpoint_tests::store::Store;
use walpoint_tests::{faults, process, user, wait};

use super::{SOON, Two, archived, json, rows, segment};
use crate::archive_bed::Bed;

/// What was split off begins with a backup of its parent, whose WAL leads to the fork; where both have the target, a person
/// chooses; and nothing that one of them needs expires.
#[test]
fn a_lineage_that_was_split_off_is_restored_from_its_parents_backup_and_never_by_itself() {
    let two = Two::start();
    let status = two.copy_agent.run(&["status"]).expect_success().stdout;
    assert!(status.contains(&format!("split off from lineage {} at ", two.lineage(1))), "{status}");
    assert!(
        status.contains("NO BACKUP of its own: ") && status.contains("HINT: Take a backup now"),
        "{status}"
    );

    for target in [&[][..], &["--target-time", &two.moment]] {
        let refused =
            json(&two.production_agent.restore(&[&["plan", "--json"], target].concat()).expect_status(1));
        assert_eq!(refused["reason"], "ambiguous-lineage", "{refused:#}");
        let message = refused["message"].as_str().unwrap();
        assert!(message.contains(&two.lineage(1)) && message.contains(&two.lineage(2)), "{message}");
    }
    // What lies before the fork is the same in both: nothing to choose.
    let common = json(
        &two.production_agent.restore(&["plan", "--json", "--target-lsn", &two.common]).expect_success(),
    );
    assert_eq!(common["lineage"], two.lineage(1), "{common:#}");

    let plan = json(
        &two.production_agent.restore(&["plan", "--json", "--lineage", &two.lineage(2)]).expect_success(),
    );
    assert_eq!(
        (&plan["lineage"], &plan["backup"]["id"]),
        (&two.lineage(2).into(), &two.backup.clone().into())
    );
    let (place, copy) = two.restored("again-copy", &["--lineage", &two.lineage(2)]);
    copy.wait_promoted();
    assert_eq!(rows(&copy), "both 300, copy 200");
    let binding = std::fs::read_to_string(place.join("walpoint.lineage")).unwrap();
    assert!(binding.trim().ends_with(&two.lineage(2)), "{binding}");
    let (place, production) = two.restored("again-production", &["--lineage", &two.lineage(1)]);
    production.wait_promoted();
    assert_eq!(rows(&production), "both 300, production 200");
    let binding = std::fs::read_to_string(place.join("walpoint.lineage")).unwrap();
    assert!(binding.trim().ends_with(&two.lineage(1)), "{binding}");

    // Production's backups do not push the copy's only one out.
    let mut keep = Agent::with(&two.production, &two.bed.store);
    keep.tables = "\n[cluster.main.retention]\ngrace = \"0s\"\ncount = 1\n".to_owned();
    two.production_agent.run(&["backup"]).expect_success();
    two.production_agent.run(&["backup"]).expect_success();
    let expired = keep.run(&["expire"]).expect_success().stdout;
    assert!(
        expired.contains(&format!("lineage {}, which was split off after it", two.lineage(2))),
        "{expired}"
    );
    two.production_agent.restore(&["plan", "--lineage", &two.lineage(2)]).expect_success();
    two.production_agent.run(&["verify"]).expect_success();

    // A backup of its own ends that.
    two.copy_agent.run(&["backup"]).expect_success();
    let status = two.copy_agent.run(&["status"]).expect_success().stdout;
    assert!(!status.contains("NO BACKUP"), "{status}");
    keep.run(&["expire"]).expect_success();
    let gone = two.production_agent.restore(&["plan", "--backup", &two.backup]).expect_status(1);
    assert!(gone.stdout.contains("no backup"), "{}", gone.stdout);
    two.production_agent.restore(&["plan", "--lineage", &two.lineage(2)]).expect_success();
    two.production_agent.run(&["verify"]).expect_success();
    assert!(two.copy.timeline() >= 1);
}

/// A standby of the copy reads the copy's WAL and not production's, and a server fetches what lies before the fork.
#[test]
fn restore_fetch_reads_the_lineage_that_the_data_directory_is_bound_to() {
    let two = Two::start();
    let segment = segment(&two.copy, "copy");
    archived(&two.copy, &segment);
    let fetched = |agent: &Agent, name: &str| {
        // As PostgreSQL asks: into its own pg_wal.
        agent.fetch(name, "pg_wal/RECOVERYXLOG")
    };
    let got = fetched(&two.copy_agent, &segment);
    assert!(got.success(), "{got:?}");
    let read = std::fs::read(two.copy.wal_dir().join("RECOVERYXLOG")).unwrap();
    assert_eq!(read, std::fs::read(two.copy.wal_dir().join(&segment)).unwrap());
    let got = fetched(&two.copy_agent, &two.common_segment);
    assert!(got.success(), "what lies before the fork is in the parent: {got:?}");
}

/// A copy that is recovered in place to a moment before the fork, which production has too, stays in its own lineage. Where no directory
/// shows which of the two servers is restored, a person says so before it archives.
#[test]
fn a_copy_that_is_recovered_to_before_the_fork_stays_in_its_own_lineage() {
    let mut two = Two::start();
    let (one, own) = (two.lineage(1), two.lineage(2));
    let of_production = |two: &Two| {
        let keys = two.bed.store.back_door().list("clusters/main").into_iter();
        keys.filter(|key| key.contains(&format!("/{one}/wal/"))).collect::<Vec<String>>()
    };
    let before = of_production(&two);
    two.copy.stop(Shutdown::Fast);
    let target = ["--target-lsn", &two.common, "--target-action", "promote", "--resume-archiving"];
    let pgdata = two.copy.pgdata().to_str().unwrap().to_owned();
    let elsewhere = two.bed.cluster.dir().join("elsewhere").to_str().unwrap().to_owned();
    let refused = two.copy_agent.restore(&[&["restore", "--pgdata", &elsewhere], &target[..]].concat());
    let text = refused.expect_status(1).stdout;
    assert!(text.contains(&one) && text.contains(&own) && text.contains("--lineage"), "{text}");

    // Killed when the old directory was renamed, and repeated without `--replace`.
    let replace = [&["restore", "--replace", "--pgdata", &pgdata], &target[..]].concat();
    let command = two.copy_agent.command("restore-agent", replace);
    process::run(&mut faults::inject(&command, &["pwrite64:signal=SIGKILL:when=1"], &[]), SOON);
    assert!(two.copy.pgdata().join("walpoint-restore.json").exists(), "it was interrupted");
    let again = [&["restore", "--json", "--pgdata", &pgdata], &target[..]].concat();
    let report = json(&two.copy_agent.restore(&again).expect_success());
    assert_eq!(report["lineage"], own.as_str(), "{report:#}");
    let binding = std::fs::read_to_string(two.copy.pgdata().join("walpoint.lineage")).unwrap();
    assert!(binding.trim_end().ends_with(&own), "{binding}");
    two.copy.set("archive_command", two.copy_agent.archive_command());
    two.copy.start();
    two.copy.wait_promoted();
    archived(&two.copy, &segment(&two.copy, "again"));
    assert_eq!(of_production(&two), before, "nothing of the copy in production's lineage");

    // It was complete, and is lost: what was renamed for it does not say what was there.
    two.copy.stop(Shutdown::Immediate);
    std::fs::remove_dir_all(two.copy.pgdata()).unwrap();
    for mode in [&[][..], &["--replace"]] {
        let refused = two.copy_agent.restore(&[&again[..], mode].concat()).expect_status(1);
        assert_eq!(json(&refused)["reason"], "ambiguous-lineage", "{mode:?} {refused:#?}");
    }
}

/// A standby that has read one lineage goes on in the one that it is bound to later, as it holds nothing behind the fork.
#[test]
fn a_standby_follows_the_lineage_that_it_is_bound_to_later() {
    let mut two = Two::start();
    let binding = two.copy.pgdata().join("walpoint.lineage");
    std::fs::copy(&binding, two.follower.pgdata().join("walpoint.lineage")).unwrap();
    two.follower.start();
    two.follower.wait_for("select count(*) from t where who = 'copy'", "200");
    assert_eq!(rows(&two.follower), "both 300, copy 200", "{}", two.follower.log());
}

/// A prefetcher that runs, as a sidecar's does for ever, looks at the binding with each request: what it fetched ahead of another lineage
/// is not given.
#[test]
fn a_running_prefetcher_follows_the_lineage_that_the_directory_is_bound_to_later() {
    let two = Two::start();
    let (ours, theirs) = (segment(&two.production, "production"), segment(&two.copy, "copy"));
    assert_eq!(ours, theirs, "both have the same segments");
    archived(&two.production, &ours);
    archived(&two.copy, &theirs);
    let pgdata = two.follower.pgdata();
    // This very process stands for the server.
    std::fs::write(pgdata.join("postmaster.pid"), format!("{}\n", std::process::id())).unwrap();
    user::give(&pgdata.join("postmaster.pid"));
    let agent = Agent::with(&two.follower, &two.bed.store);
    agent.write();
    let socket = agent.fetch_socket();
    let mut command = agent.command("restore-agent", ["prefetch", "--persistent", "--pgdata"]);
    command.arg(pgdata).arg("--socket").arg(&socket);
    let _prefetcher = process::Background::start(&mut command, &two.bed.cluster.dir().join("prefetch.log"));
    wait::until_true(SOON, "the prefetcher listens", || {
        std::os::unix::net::UnixStream::connect(&socket).is_ok()
    });
    let fetched = || {
        let output = agent.fetch(&ours, "pg_wal/RECOVERYXLOG");
        assert!(output.success(), "{output:#?}");
        let path = two.follower.wal_dir().join("RECOVERYXLOG");
        let content = std::fs::read(&path).unwrap();
        std::fs::remove_file(path).unwrap();
        content
    };
    let of = |cluster: &Cluster| std::fs::read(cluster.wal_dir().join(&ours)).unwrap();
    assert!(fetched() == of(&two.production), "the lineage that was not split off");
    let binding = pgdata.join("walpoint.lineage");
    std::fs::copy(two.copy.pgdata().join("walpoint.lineage"), &binding).unwrap();
    user::give(&binding);
    assert!(fetched() == of(&two.copy), "the one that it is bound to");
    std::fs::remove_file(pgdata.join("postmaster.pid")).unwrap();
}

/// What a person says of a copy's timeline, in a repository that alone has it, says nothing of production's later timeline of that number in
/// another one: that is the latest, and restored.
#[test]
fn an_abandoned_timeline_of_a_copy_is_not_productions_of_that_number() {
    let mut bed = Bed::local(Cluster::builder().segment_size_mb(1));
    let other = Store::local();
    let both = |cluster: &Cluster, bed: &Bed| {
        Agent::with(cluster, &bed.store).repository("other", &other).cluster_line("ack = [\"main\"]")
    };
    bed.agent = both(&bed.cluster, &bed);
    bed.agent.archive_from(&bed.cluster);
    bed.cluster.start();
    bed.cluster.psql("create table t (who text)");
    bed.agent.init(&[]).expect_success();
    let daemon = bed.agent.daemon();
    archived(&bed.cluster, &segment(&bed.cluster, "production"));
    bed.agent.run(&["backup"]).expect_success();
    let mut heir = bed.cluster.standby();
    let heirs = both(&heir, &bed);
    heirs.archive_from(&heir);
    heir.start();

    // A recovery test where only the other repository is configured, which was recorded as one that acknowledges.
    let others = Agent::with(&bed.cluster, &bed.store).repository("other", &other);
    others.cluster_line("ack = [\"other\"]").init(&[]).expect_success();
    let mut copy = bed.cluster.standby();
    let copys = Agent::with(&copy, &other);
    copys.archive_from(&copy);
    copy.start();
    copy.wait_replayed(&bed.cluster);
    copy.promote();
    copy.wait_promoted();
    let testing = copys.daemon();
    for _ in 0..8 {
        let name = segment(&copy, "copy");
        assert!(name.starts_with("00000002"), "{name}");
        archived(&copy, &name);
    }
    assert_eq!(testing.stop(), 0);
    copy.stop(Shutdown::Fast);
    archived(&bed.cluster, &segment(&bed.cluster, "production"));
    let settle = ["lineage", "settle", "--timeline", "2", "--reason", "a test, thrown away"];
    bed.agent.run(&settle).expect_success();
    let abandoned = |store: &Store| {
        store.back_door().list("clusters").into_iter().filter(|key| key.contains(".abandoned/")).count()
    };
    assert_eq!((abandoned(&bed.store), abandoned(&other)), (0, 1), "only where that timeline is");
    archived(&bed.cluster, &segment(&bed.cluster, "production"));
    heir.wait_replayed(&bed.cluster);

    // Production fails over while the other repository is away.
    let (mounted, away) = (other.root().unwrap().to_owned(), other.root().unwrap().with_extension("away"));
    std::fs::rename(&mounted, &away).unwrap();
    drop(daemon);
    bed.cluster.crash();
    heir.promote();
    heir.wait_promoted();
    let _daemon = heirs.daemon();
    for _ in 0..2 {
        let name = segment(&heir, "heir");
        assert!(name.starts_with("00000002"), "{name}");
        archived(&heir, &name);
    }
    let plan = json(&heirs.restore(&["plan", "--json"]).expect_success());
    assert_eq!(plan["timeline"], 2, "{plan:#}");
    // Not even where somebody says so of the copy's timeline there.
    let record = walk(&away).into_iter().find(|path| path.to_str().unwrap().contains(".abandoned/")).unwrap();
    let below = record.strip_prefix(&away).unwrap();
    let there = bed.store.root().unwrap().join(below);
    std::fs::create_dir_all(there.parent().unwrap()).unwrap();
    std::fs::copy(&record, &there).unwrap();
    let plan = json(&heirs.restore(&["plan", "--json"]).expect_success());
    assert_eq!(plan["timeline"], 2, "{plan:#}");
}

fn walk(directory: &std::path::Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(walk(&path)) } else { found.push(path) }
    }
    found
}

/// An upgrade that was abandoned, or the upgrade of a copy, leaves a newer lineage beside the one in use: neither is restored without
/// a question. One that goes on from the other is.
#[test]
fn an_older_lineage_that_goes_on_is_not_passed_over() {
    let bed = Archived::start(Cluster::builder().segment_size_mb(1), Store::local());
    let mut ledger = Ledger::create(&bed.cluster, "rows");
    bed.backup();
    ledger.append(&bed.cluster);
    bed.settle();
    let old = format!("{}-1", bed.cluster.system_id());
    let mut other = Cluster::builder().segment_size_mb(1).init();
    let agent = Agent::with(&other, &bed.store);
    agent.archive_from(&other);
    agent.init(&["--new-lineage"]).expect_success();
    let _daemon = agent.daemon();
    other.start();
    agent.run(&["backup"]).expect_success();
    let new = format!("{}-1", other.system_id());
    let plan = |options: &[&str]| json(&bed.agent.restore(&[&["--json", "plan"], options].concat()));
    assert_eq!(plan(&[])["lineage"], new, "{:#}", plan(&[]));
    // Registrations are told apart by seconds.
    std::thread::sleep(Duration::from_secs(2));
    ledger.append(&bed.cluster);
    bed.settle();
    let refused = plan(&[]);
    assert_eq!(refused["reason"], "ambiguous-lineage", "{refused:#}");
    for lineage in [&old, &new] {
        assert!(refused["message"].to_string().contains(lineage.as_str()), "{refused:#}");
        assert_eq!(plan(&["--lineage", lineage])["lineage"], lineage.as_str());
    }
}

/// The command that `restore-point` prints leads into the lineage of the server that created it, whatever is newer. A name that two servers
/// gave is refused, though the older one has been idle since the newer one was registered: that it was given the name shows its use.
#[test]
fn a_restore_point_leads_into_the_lineage_that_it_was_created_in() {
    let bed = Archived::start(Cluster::builder().segment_size_mb(1), Store::local());
    bed.backup();
    bed.settle();
    let old = format!("{}-1", bed.cluster.system_id());
    let mut other = Cluster::builder().segment_size_mb(1).init();
    let agent = Agent::with(&other, &bed.store);
    agent.archive_from(&other);
    agent.init(&["--new-lineage"]).expect_success();
    let _daemon = agent.daemon();
    other.start();
    agent.run(&["backup"]).expect_success();
    agent.run(&["restore-point", "release"]).expect_success();
    // Registrations are told apart by seconds.
    std::thread::sleep(Duration::from_secs(2));

    let made = json(&bed.agent.run(&["restore-point", "release", "--json"]).expect_success());
    assert_eq!(made["same_name_count"], 1, "{made:#}");
    let plan = |options: &[&str]| json(&bed.agent.restore(&[&["--json", "plan"], options].concat()));
    for options in [&["--target-name", "release"][..], &[]] {
        let refused = plan(options);
        assert_eq!(refused["reason"], "ambiguous-lineage", "{options:?}: {refused:#}");
    }
    let alone = json(&bed.agent.run(&["restore-point", "alone", "--json"]).expect_success());
    assert!(
        alone["command"].to_string().contains(&format!(" --lineage {old} --target-name alone ")),
        "{alone:#}"
    );
    for command in [&made["command"], &alone["command"]] {
        let words: Vec<&str> = command.as_str().expect("a command").split(' ').collect();
        let target = words.iter().position(|word| *word == "--lineage").expect("a lineage");
        let planned = plan(&words[target..words.len() - 2]);
        assert_eq!(planned["lineage"], old.as_str(), "{command}: {planned:#}");
    }
}

/// Damage to the facts of a copy's lineage stops nothing of production's: it is archived and backed up, also by an agent that is
/// started then, and restored where a person names it. The copy archives into no other lineage meanwhile.
#[test]
fn damaged_facts_of_a_copys_lineage_stop_nothing_of_productions() {
    let mut two = Two::start();
    for daemon in std::mem::take(&mut two._daemons) {
        assert_eq!(daemon.stop(), 0);
    }
    let (own, copys) = (two.lineage(1), two.lineage(2));
    let door = two.bed.store.back_door();
    let key = door.list("clusters/main/lineages").into_iter().find(|key| key.ends_with(&copys)).unwrap();
    door.flip_bit(&key, 100);
    // Whole segments in production's lineage.
    let of_own = || {
        let keys = door.list("clusters/main").into_iter();
        let whole = |key: &String| key.rsplit('/').next().is_some_and(|name| name.len() == 24);
        keys.filter(|key| key.contains(&format!("/{own}/wal/")) && whole(key)).count()
    };

    let _daemon = two.production_agent.daemon();
    archived(&two.production, &segment(&two.production, "production"));
    let (archived_before, _copys_daemon) = (of_own(), two.copy_agent.launch());
    let waiting = segment(&two.copy, "copy");
    wait::until_true(SOON, "the copy's agent says why it stores nothing", || {
        two.copy.psql("select failed_count from pg_stat_archiver") != "0"
    });
    assert!(two.copy.wal_dir().join("archive_status").join(format!("{waiting}.ready")).exists());
    assert_eq!(of_own(), archived_before, "nothing of the copy in production's lineage");

    let backup = two.production_agent.run(&["backup"]);
    backup.expect_success();
    wait::until_true(SOON, "health names the lineage", || {
        let health = two.production_agent.run(&["health"]);
        format!("{}{}", health.stdout, health.stderr).contains(&copys)
    });
    let check = two.production_agent.run(&["check"]);
    assert!(check.stdout.contains(&copys), "{}{}", check.stdout, check.stderr);
    let verify = two.production_agent.run(&["verify", "--light"]);
    assert!(verify.status == 3 && verify.stdout.contains(&key), "{}{}", verify.stdout, verify.stderr);
    let status = json(&two.production_agent.run(&["status", "--json"]).expect_success());
    let status = &status["clusters"][0]["repositories"][0]["status"];
    assert_eq!(status["damaged_lineages"][0]["lineage"], copys, "{status:#}");

    let plan = |options: &[&str]| two.production_agent.restore(&[&["--json", "plan"], options].concat());
    let refused = json(&plan(&[]));
    assert_eq!(refused["reason"], "damaged-lineage", "{refused:#}");
    assert!(refused["hint"].to_string().contains(&format!("--lineage {own}")), "{refused:#}");
    assert_eq!(json(&plan(&["--lineage", &own]))["lineage"], own.as_str());
    assert!(plan(&["--lineage", &copys]).stderr.contains("damaged"));
    let (_, restored) = two.restored("beside-damage", &["--lineage", &own]);
    assert!(rows(&restored).contains("production"), "{}", rows(&restored));
}

/// Segments that are acknowledged while a lineage begins are in the new one or before its fork: nothing is missing in between.
#[test]
fn a_lineage_that_begins_under_load_has_no_gap_at_its_fork() {
    let mut bed = Bed::local(Cluster::builder().segment_size_mb(1));
    bed.cluster.set("wal_keep_size", "512MB");
    bed.cluster.start();
    let daemon = bed.agent.daemon();
    bed.cluster.psql("create table t (who text)");
    bed.agent.run(&["backup"]).expect_success();
    for n in 2..6 {
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    segment(&bed.cluster, "load");
                }
            });
            let begun = bed.agent.init(&["--new-lineage", "--even-if-bound"]);
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
            begun.expect_success();
        });
        let lsn = bed.cluster.lsn();
        archived(&bed.cluster, &segment(&bed.cluster, "after"));
        let lineage = format!("{}-{n}", bed.cluster.system_id());
        bed.agent.restore(&["plan", "--lineage", &lineage, "--target-lsn", &lsn]).expect_success();
    }
    assert_eq!(daemon.stop(), 0);
}
