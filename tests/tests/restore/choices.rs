//! R1 and R2: targets that may mean more than one moment, and repositories that do not all know the same.

use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;
use walpoint_tests::agent::Agent;
use walpoint_tests::archived::Archived;
use walpoint_tests::builder::ClusterBuilder;
use walpoint_tests::clock::Clock;
use walpoint_tests::cluster::{Cluster, Shutdown};
use walpoint_tests::proxy::{Fault, Proxy};
use walpoint_tests::rows::Ledger;
use walpoint_tests::store::Store;
use walpoint_tests::{faults, process, wait};

fn builder() -> ClusterBuilder {
    Cluster::builder().segment_size_mb(1).conf("wal_retrieve_retry_interval", "200ms")
}

fn plan(bed: &Archived, options: &[&str]) -> Value {
    let output = bed.agent.restore(&[&["--json", "plan"], options].concat());
    serde_json::from_str(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:#?}"))
}

/// The highest row at a target.
#[track_caller]
fn row(bed: &Archived, ledger: &Ledger, options: &[&str]) -> u32 {
    let restored = bed.restore_and_start("target", options);
    restored.wait_paused();
    let highest = ledger.highest(&restored);
    let pgdata = restored.pgdata().to_owned();
    drop(restored);
    std::fs::remove_dir_all(pgdata).unwrap();
    highest
}

/// R1: PostgreSQL stops at the first restore point of a name that it replays. Where a backup can reach several, the plan names
/// each with the option that leads there; where it can reach only one, recovery ends at that one.
#[test]
fn of_restore_points_with_one_name_none_is_chosen_silently() {
    let bed = Archived::start(builder(), Store::local());
    let primary = &bed.cluster;
    let mut ledger = Ledger::create(primary, "rows");
    let first = bed.backup();
    let point = || primary.psql("select pg_create_restore_point('nightly')");
    ledger.append(primary);
    point();
    ledger.append(primary);
    let second = bed.backup();
    ledger.append(primary);
    point();
    ledger.append(primary);
    bed.settle();

    let refused = plan(&bed, &["--target-name", "nightly"]);
    assert_eq!(
        (&refused["result"], &refused["reason"]),
        (&"unreachable".into(), &"ambiguous-restore-point".into())
    );
    let hints: Vec<&str> = refused["hint"].as_str().unwrap().lines().collect();
    assert_eq!(hints.len(), 2, "{refused}");
    let year = primary.psql("select to_char(now(), 'YYYY-')");
    for (hint, expected) in hints.iter().zip([1, 3]) {
        assert!(hint.contains(&year), "a time is missing: {hint}");
        let (_, options) = hint.split_once(": --target-timeline").expect("options");
        let (options, _) = options.split_once(" recovers").expect("a sentence");
        let options = format!("--target-timeline{options}");
        let options: Vec<&str> = options.split(' ').collect();
        assert_eq!(row(&bed, &ledger, &options), expected, "{hint}");
    }
    let output = bed.try_restore("refused", &["--target-name", "nightly"]).expect_status(1);
    assert!(!bed.place("refused").exists(), "{output:#?}");
    assert_eq!(
        plan(&bed, &["--target-name", "nightly", "--backup", &first])["reason"],
        "ambiguous-restore-point"
    );
    // From the second backup only one of them can be reached.
    assert_eq!(row(&bed, &ledger, &["--target-name", "nightly", "--backup", &second]), 3);
}

/// R1: after a wrap-around of ids a number means several transactions. With its epoch it means one, and a transaction of another
/// epoch is not taken for it.
#[test]
fn a_transaction_is_found_by_its_epoch() {
    let mut cluster = builder().init();
    let mut reset = cluster.tool("pg_resetwal");
    process::run(reset.args(["--epoch", "3"]).arg(cluster.pgdata()), wait::SOON).expect_success();
    let store = Store::local();
    let agent = Agent::with(&cluster, &store);
    agent.archive_from(&cluster);
    agent.init(&[]).expect_success();
    let daemon = agent.daemon();
    cluster.start();
    let bed = Archived::of(daemon, cluster, agent, store);
    let primary = &bed.cluster;
    let mut ledger = Ledger::create(primary, "rows");
    bed.backup();
    ledger.append(primary);
    let mark = ledger.append(primary);
    ledger.append(primary);
    let next: u64 = primary.psql("select txid_current()").trim().parse().unwrap();
    bed.settle();

    let xid = u64::from(mark.xid);
    let full = 3 << 32 | xid;
    assert_eq!(next >> 32, 3, "{next}");
    let with_epoch = format!("3:{xid}");
    for target in [&full.to_string(), &with_epoch] {
        assert_eq!(row(&bed, &ledger, &["--target-xid", target]), mark.n, "{target}");
    }
    let bare = plan(&bed, &["--target-xid", &xid.to_string()]);
    assert_eq!(bare["stop"]["full_xid"], full, "{bare}");
    assert!(bare["notes"].to_string().contains(&with_epoch), "{bare}");
    assert!(bare["options"].to_string().contains(&with_epoch), "{bare}");
    for other in [format!("0:{xid}"), format!("2:{xid}"), format!("4:{xid}"), (full + (1 << 32)).to_string()]
    {
        let refused = plan(&bed, &["--target-xid", &other]);
        assert_eq!(refused["reason"], "xid-of-other-epoch", "{other}: {refused}");
        assert!(refused["message"].as_str().unwrap().contains(&with_epoch), "{refused}");
    }
    assert_eq!(plan(&bed, &["--target-xid", &format!("3:{}", xid + 5000)])["reason"], "xid-not-found");
}

/// R1: the clock is an hour ahead while one transaction commits, and that record crosses the end of a segment: no segment by itself
/// says when it was. PostgreSQL stops at it, so the plan does, whatever times follow.
#[test]
fn a_commit_of_a_clock_that_jumped_decides_across_the_end_of_a_segment() {
    let mut cluster = builder().conf("autovacuum", "off").init();
    let clock = Clock::of(&mut cluster);
    let store = Store::local();
    let agent = Agent::with(&cluster, &store);
    agent.archive_from(&cluster);
    agent.init(&[]).expect_success();
    let daemon = agent.daemon();
    cluster.start();
    let bed = Archived::of(daemon, cluster, agent, store);
    let primary = &bed.cluster;
    let mut ledger = Ledger::create(primary, "rows");
    bed.backup();
    ledger.append_many(primary, 2);
    // Leaves 24 bytes of the segment to the commit's record, unless another process writes a record meanwhile.
    let commit = "do $$ declare room int; begin
           insert into rows values (1000);
           loop
             room := 1048576 - ((pg_current_wal_insert_lsn() - '0/0')::bigint % 1048576)::int - 24;
             exit when room = 0;
             perform pg_logical_emit_message(false, '', repeat('x', case
               when room > 8192 then least(room - 8192, 4000) when room > 280 then 149
               when room >= 56 then room - 51 else 4000 end));
           end loop;
         end $$";
    let offset = "select (pg_current_wal_insert_lsn() - '0/0')::bigint % 1048576";
    let hours = (1..=5).find(|hours| {
        clock.ahead(hours * 3600);
        primary.psql(commit);
        // The header of the segment's first page, and the rest of the record.
        let crossed = primary.psql(offset) == "56";
        clock.ahead(0);
        primary.psql("delete from rows where n = 1000");
        crossed
    });
    let hours = hours.expect("a commit that crosses the end of a segment");
    for _ in 0..4 {
        ledger.append(primary);
        primary.switch_wal();
    }
    bed.settle();
    let time = format!(
        "select to_char(now() at time zone 'UTC' + interval '{hours} h' - interval '2 min', \
                        'YYYY-MM-DD HH24:MI:SS') || 'Z'"
    );
    let time = primary.psql(&time);
    let planned = plan(&bed, &["--target-time", &time]);
    assert_eq!(planned["result"], "plan", "{planned:#}");
    assert_eq!(row(&bed, &ledger, &["--target-time", &time]), 2, "{planned:#}");
}

/// R1: ending recovery rolls back what has not ended, but not what was prepared: its locks stay. The plan names it.
#[test]
fn prepared_transactions_keep_their_locks_after_recovery() {
    let bed = Archived::start(builder().conf("max_prepared_transactions", "5"), Store::local());
    let primary = &bed.cluster;
    primary.psql("create table t as select 1 as n; create table u as select 1 as n");
    bed.backup();
    primary.psql("begin; savepoint s; lock table t in access exclusive mode; release s; prepare transaction 'it''s open'");
    let xid =
        primary.psql("begin; insert into u values (2); select txid_current(); commit").trim().to_owned();
    bed.settle();

    let planned = plan(&bed, &["--target-xid", &xid]);
    assert_eq!(planned["stop"]["prepared_transactions"][0]["gid"], "it's open", "{planned}");
    let notes = planned["notes"].to_string();
    assert!(notes.contains("('it''s open')") && notes.contains("ROLLBACK PREPARED"), "{notes}");
    assert!(!notes.contains("releases its locks"), "{notes}");
    let restored = bed.restore_and_start("target", &["--target-xid", &xid]);
    restored.wait_paused();
    let read = "set statement_timeout = '2s'; select sum(n) from t";
    restored.try_psql(read).unwrap_err();
    restored.psql("select pg_wal_replay_resume()");
    restored.wait_promoted();
    let error = restored.try_psql(read).unwrap_err();
    assert!(error.contains("statement timeout"), "{error}");
    restored.psql("rollback prepared 'it''s open'");
    assert_eq!(restored.psql(read), "1");
}

/// R3: WAL of a server that was set to wal_level = minimal for a moment is all there, if that lay inside a segment. PostgreSQL
/// ends recovery at it, so the plan does not lead across.
#[test]
fn recovery_across_a_spell_of_minimal_wal_is_refused() {
    let mut bed = Archived::start(builder(), Store::local());
    let mut ledger = Ledger::create(&bed.cluster, "rows");
    bed.cluster.switch_wal();
    let first = bed.backup();
    bed.cluster.switch_wal();
    ledger.append(&bed.cluster);
    let before = bed.cluster.psql("select pg_current_wal_insert_lsn()");
    let file = "select pg_walfile_name(pg_current_wal_insert_lsn())";
    let mut with = |settings: [(&str, &str); 3]| {
        settings.iter().for_each(|(name, value)| bed.cluster.set(name, value));
        bed.cluster.stop(Shutdown::Fast);
        bed.cluster.start();
        let mark = ledger.append(&bed.cluster);
        (mark, bed.cluster.psql(file))
    };
    let (_, began) = with([("wal_level", "minimal"), ("archive_mode", "off"), ("max_wal_senders", "0")]);
    let (after, ended) = with([("wal_level", "replica"), ("archive_mode", "on"), ("max_wal_senders", "10")]);
    assert_eq!(began, ended, "the spell lies inside a segment");
    ledger.append(&bed.cluster);
    bed.settle();

    for target in [&["--target-time", &after.time_after][..], &["--target-lsn", &after.after], &[]] {
        let refused = plan(&bed, target);
        assert_eq!(refused["reason"], "minimal-wal", "{target:?}: {refused}");
        let options: Vec<&str> = refused["nearest_targets"][0]["options"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(Value::as_str)
            .collect();
        assert_eq!(row(&bed, &ledger, &options), 1, "{refused}");
    }
    assert_eq!(row(&bed, &ledger, &["--target-lsn", &before]), 1);
    let status: Value =
        serde_json::from_str(&bed.agent.run(&["status", "--json"]).expect_success().stdout).unwrap();
    assert!(status.to_string().contains(&first), "{status}");
    bed.backup();
    ledger.append(&bed.cluster);
    bed.settle();
    let restored = bed.restore_and_start("latest", &[]);
    restored.wait_promoted();
    assert_eq!(ledger.highest(&restored), 5);
}

/// R5: "5 minutes ago" is another moment each time it is read. The same command finishes what was interrupted, so it means the
/// moment that it meant at first.
#[test]
fn a_relative_time_stays_the_moment_that_it_was() {
    let bed = Archived::start(builder(), Store::local());
    let primary = &bed.cluster;
    let mut ledger = Ledger::create(primary, "rows");
    bed.backup();
    ledger.append(primary);
    primary.psql("select pg_sleep(8)");
    let moment = primary.psql("select extract(epoch from clock_timestamp())::numeric(20, 6)");
    primary.psql("select pg_sleep(8)");
    ledger.append(primary);
    ledger.append(primary);
    bed.settle();

    let ago = primary.psql(&format!("select (extract(epoch from clock_timestamp()) - {moment})::int"));
    let ago = format!("{} seconds ago", ago.trim());
    let pgdata = bed.place("target");
    let command = || -> Command {
        bed.agent.command(
            "restore-agent",
            ["restore", "--pgdata", pgdata.to_str().unwrap(), "--target-time", &ago],
        )
    };
    let injection = "pwrite64:signal=SIGKILL:when=1";
    process::run(&mut faults::inject(&command(), &[injection], &[]), Duration::from_secs(60));
    assert!(pgdata.join("walpoint-restore.json").exists() && !pgdata.join("global/pg_control").exists());
    std::thread::sleep(Duration::from_secs(10));
    let output = process::run(&mut command(), Duration::from_secs(60)).expect_success();
    assert!(output.stderr.replace('\\', "").contains(&format!("\"{ago}\" was 20")), "{output:#?}");
    let restored = Cluster::start_restored(primary.dir(), primary.major(), &pgdata);
    restored.wait_paused();
    assert_eq!(ledger.highest(&restored), 1);
}

/// R3: a store that neither answers nor refuses. The plan of the other repository does not wait for it longer than half a minute.
#[test]
fn a_repository_that_hangs_does_not_hold_up_the_plan() {
    let second = Store::s3();
    let proxy = Proxy::to(second.port().unwrap());
    let bed = Archived::start_with(builder(), Store::local(), |agent| {
        agent.repository_via_port("second", &second, proxy.port())
    });
    let mut ledger = Ledger::create(&bed.cluster, "rows");
    bed.backup();
    ledger.append(&bed.cluster);
    bed.settle();
    proxy.set(Fault::Blackhole);
    let began = Instant::now();
    let output = bed.agent.restore(&["--json", "plan"]);
    let took = began.elapsed();
    let answer: Value = serde_json::from_str(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:#?}"));
    assert_eq!(answer["result"], "plan", "{output:#?}");
    assert!(output.stderr.contains("was skipped: it did not answer within 20s after"), "{output:#?}");
    assert!(took < Duration::from_secs(30), "{took:?}");
}

/// R2: a repository that lags behind lacks restore points and backups. The one that has them answers, whichever is asked first.
#[test]
fn a_repository_that_lags_behind_does_not_answer_for_the_other() {
    let second = Store::local();
    let bed = Archived::start_with(builder(), Store::local(), |agent| agent.repository("second", &second));
    let primary = &bed.cluster;
    let mut ledger = Ledger::create(primary, "rows");
    let early = bed.backup();
    let row_one = ledger.append(primary);
    primary.psql("select pg_create_restore_point('twice')");
    let late = bed.backup();
    let row_two = ledger.append(primary);
    primary.psql("select pg_create_restore_point('twice'); select pg_create_restore_point('once')");
    ledger.append(primary);
    bed.settle();
    let (main, other) = (bed.back_door(), second.back_door());
    let objects = |door: &walpoint_tests::store::BackDoor| {
        let keys = door.list("clusters/main");
        keys.into_iter().filter(|k| !k.contains("/leases/") && !k.contains("/index/")).count()
    };
    wait::until_true(wait::SOON, "both have everything", || objects(&main) == objects(&other));

    // The repository asked first lags: it knows neither the second backup nor the WAL after it.
    let segment = &row_two.segment;
    let lacking = main.list("clusters/main").into_iter().filter(|key| {
        let wal = key.rsplit('/').next().is_some_and(|name| name.len() == 24 && name >= segment.as_str());
        let manifest = key.contains("/backups/") && key.contains(&late) && key.ends_with("/manifest");
        wal || manifest || key.contains("/index/")
    });
    let lacking: Vec<String> = lacking.collect();
    let points = main.list("clusters/main").into_iter().filter(|key| key.contains("/points/"));
    // Of "twice" the older one stays.
    let twice: Vec<String> = points.collect();
    let newest = |name: &str| {
        let hex: String = name.bytes().map(|b| format!("{b:02x}")).collect();
        twice.iter().filter(|key| key.contains(&hex)).max().expect("a point").clone()
    };
    for key in lacking.iter().chain([&newest("twice"), &newest("once")]) {
        main.delete(key);
    }

    let immediate = plan(&bed, &["--target-immediate"]);
    assert_eq!(immediate["backup"]["id"], late.as_str(), "{immediate}");
    let once = plan(&bed, &["--target-name", "once"]);
    assert_eq!(once["result"], "plan", "{once}");
    let several = plan(&bed, &["--target-name", "twice"]);
    assert_eq!(several["reason"], "ambiguous-restore-point", "{several}");
    let chosen = plan(&bed, &["--target-immediate", "--backup", &early]);
    assert_eq!(chosen["backup"]["id"], early.as_str());
    // A moment that both have is reached from the newer backup.
    let moment = plan(&bed, &["--target-lsn", &row_one.after, "--backup", &early]);
    assert_eq!(moment["result"], "plan");
    let beyond = plan(&bed, &["--target-lsn", "7/0"]);
    let end = beyond["nearest_targets"][0]["lsn"].as_str().unwrap().to_owned();
    let alone = plan(&bed, &["--target-lsn", &end]);
    assert_eq!(alone["result"], "plan", "the furthest moment is offered: {beyond} {alone}");
    assert_eq!(row(&bed, &ledger, &["--target-immediate"]), 1);
    assert_eq!(row(&bed, &ledger, &["--target-name", "once"]), 2);
}

/// A list of many restore points is damaged: those that it does not hold are found all the same, and its own by their WAL.
#[test]
fn a_damaged_list_of_restore_points_is_in_no_ones_way() {
    let bed = Archived::start(builder(), Store::local());
    let primary = &bed.cluster;
    let mut ledger = Ledger::create(primary, "rows");
    bed.backup();
    ledger.append(primary);
    primary.psql("select pg_create_restore_point('lone')");
    ledger.append(primary);
    bed.settle();
    primary.psql("select count(pg_create_restore_point('point ' || n)) from generate_series(1, 50) n");
    ledger.append(primary);
    bed.settle();
    let door = bed.back_door();
    let lists: Vec<String> =
        door.list("clusters/main").into_iter().filter(|key| key.contains("/points/batches/")).collect();
    assert!(!lists.is_empty());
    lists.iter().for_each(|key| door.truncate(key, 100));

    let lone = plan(&bed, &["--target-name", "lone"]);
    assert_eq!(lone["result"], "plan", "{lone:#}");
    assert!(lone["notes"].to_string().contains("damaged list of restore points"), "{lone:#}");
    assert_eq!(row(&bed, &ledger, &["--target-name", "lone"]), 1);
    assert_eq!(row(&bed, &ledger, &["--target-name", "point 7"]), 2);
    let nowhere = plan(&bed, &["--target-name", "nowhere"]);
    assert_eq!(nowhere["reason"], "restore-point-not-found", "{nowhere:#}");
    let hints = nowhere["hint"].to_string();
    assert!(hints.contains("may have contained it") && hints.contains("/points/batches/"), "{nowhere:#}");
}
