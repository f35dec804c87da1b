//! R1: every kind of target lands on exactly the rows that it should.

use std::process::Command;
use std::time::Duration;

use walpoint_tests::archived::Archived;
use walpoint_tests::cluster::Cluster;
use walpoint_tests::rows::{Ledger, Mark};
use walpoint_tests::store::Store;
use walpoint_tests::{process, testbed, user, wait};

/// A server with small segments that knows when each transaction was committed, in a zone with an odd offset.
fn builder() -> walpoint_tests::builder::ClusterBuilder {
    let builder = Cluster::builder().segment_size_mb(1).conf("track_commit_timestamp", "on");
    builder
        .conf("timezone", "America/St_Johns")
        .conf("wal_keep_size", "128MB")
        .conf("wal_retrieve_retry_interval", "200ms")
}

/// The time in the commit record of a row.
fn commit_time(cluster: &Cluster, mark: &Mark) -> String {
    cluster.psql(&format!(
        "select to_char(pg_xact_commit_timestamp('{}'::xid) at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS.US') || '+00'",
        mark.xid
    ))
}

/// Where the commit record of a row starts.
fn commit_record(cluster: &Cluster, mark: &Mark) -> String {
    let mut command = cluster.tool("pg_waldump");
    command.arg("-p").arg(cluster.wal_dir()).args(["-s", &mark.before, "-e", &mark.after]);
    command.args(["-r", "Transaction", "-x", &mark.xid.to_string()]);
    let dump = process::run(&mut command, wait::SOON).expect_success().stdout;
    let line =
        dump.lines().find(|line| line.contains("COMMIT")).unwrap_or_else(|| panic!("no commit in {dump}"));
    let (_, rest) = line.split_once("lsn: ").expect("a record's position");
    rest.split(',').next().expect("a position").to_owned()
}

/// Restores with each of these options and compares the highest row.
#[track_caller]
fn land(bed: &Archived, ledger: &Ledger, cases: &[(&str, &[&str], u32)]) {
    for (what, options, expected) in cases {
        let restored = bed.restore_and_start("target", options);
        restored.wait_paused();
        assert_eq!(ledger.highest(&restored), *expected, "{what}: {options:?}\n{}", restored.log());
        let pgdata = restored.pgdata().to_owned();
        drop(restored);
        std::fs::remove_dir_all(pgdata).unwrap();
    }
}

/// R1: times, positions, transactions, restore points, the end of a backup, and the end of the archive; inclusive and
/// exclusive; at, between, before and after commits.
#[test]
fn each_target_lands_on_the_rows_it_should() {
    let bed = Archived::start(builder(), Store::local());
    let primary = &bed.cluster;
    let mut ledger = Ledger::create(primary, "rows");
    let early = ledger.append_many(primary, 2);
    let first = bed.backup();
    let rows = ledger.append_many(primary, 3); // 3, 4, 5
    primary.psql("select pg_create_restore_point('a point''s \"name\"')");
    let six = ledger.append(primary);
    let second = bed.backup();
    let late = ledger.append_many(primary, 2); // 7, 8
    bed.settle();

    let (four, five) = (&rows[1], &rows[2]);
    let at_four = commit_time(primary, four);
    let record_five = commit_record(primary, five);
    let (xid_four, xid_six) = (four.xid.to_string(), six.xid.to_string());
    land(
        &bed,
        &ledger,
        &[
            ("the time of a commit", &["--target-time", &at_four], 4),
            ("the time of a commit, exclusive", &["--target-time", &at_four, "--target-exclusive"], 3),
            ("between commits", &["--target-time", &four.time_after], 4),
            ("between commits, exclusive", &["--target-time", &five.time_before, "--target-exclusive"], 4),
            ("between the backup and the next commit", &["--target-time", &rows[0].time_before], 2),
            ("after the second backup", &["--target-time", &late[0].time_after], 7),
            ("a commit's record", &["--target-lsn", &record_five], 5),
            ("a commit's record, exclusive", &["--target-lsn", &record_five, "--target-exclusive"], 4),
            ("a position after a commit", &["--target-lsn", &six.after], 6),
            ("a transaction", &["--target-xid", &xid_four], 4),
            ("a transaction, exclusive", &["--target-xid", &xid_four, "--target-exclusive"], 3),
            ("a transaction, from a backup of choice", &["--target-xid", &xid_six, "--backup", &first], 6),
            ("a restore point", &["--target-name", "a point's \"name\""], 5),
            ("the end of the newest backup", &["--target-immediate"], 6),
            ("the end of a backup", &["--target-immediate", "--backup", &first], 2),
        ],
    );

    // Without a target: everything, and the server takes writes.
    let restored = bed.restore_and_start("latest", &[]);
    restored.wait_promoted();
    assert_eq!(ledger.highest(&restored), 8);
    restored.psql("insert into rows values (9)");
    let from = restored.log();
    assert!(from.contains("starting archive recovery"), "{from}");
    drop(restored);

    // Refused: before the first moment and after the last.
    let after_all = &late[1].time_after;
    for (options, says) in [
        (["--target-time", &early[0].time_before], "ends after it"),
        (["--target-time", after_all], "no record in it reaches"),
        (["--target-lsn", &early[0].after], "ends after it"),
        (["--target-lsn", "7/0"], "no record in it reaches"),
        (["--target-xid", &early[1].xid.to_string()], "in no WAL that a backup can replay"),
    ] {
        let output = bed.try_restore("refused", &options).expect_status(1);
        assert!(output.stderr.contains(says), "{options:?}: {output:#?}");
        assert!(!bed.place("refused").exists(), "{options:?} touched something");
    }
    // A backup of choice that ends later is no way there.
    bed.try_restore("refused", &["--target-xid", &xid_four, "--backup", &second]).expect_status(1);
    let output =
        bed.try_restore("refused", &["--target-time", &at_four, "--backup", &second]).expect_status(1);
    assert!(output.stderr.contains(&second) && !bed.place("refused").exists(), "{output:#?}");
}

/// R1: transactions that overlap end in another order than they began; one that was rolled back is a target too.
#[test]
fn a_transactions_end_counts_and_not_its_beginning() {
    let bed = Archived::start(builder(), Store::local());
    let primary = &bed.cluster;
    primary.psql("create table seen (who text)");
    bed.backup();
    let xid = "select txid_current() % 4294967296";
    let mut slow = primary.session();
    slow.run("begin");
    slow.run("insert into seen values ('slow')");
    let slow_xid = slow.run(xid);
    let quick_xid = primary.psql(&format!("begin; insert into seen values ('quick'); {xid}; commit"));
    let mut gone = primary.session();
    gone.run("begin");
    gone.run("insert into seen values ('gone')");
    let gone_xid = gone.run(xid);
    slow.run("commit");
    primary.psql("insert into seen values ('later')");
    gone.run("rollback");
    primary.psql("insert into seen values ('last')");
    // A subtransaction ends with its parent.
    let sub = primary.psql(&format!(
        "begin; insert into seen values ('parent'); savepoint s; insert into seen values ('child'); {xid}; commit"
    ));
    primary.psql("insert into seen values ('after')");
    bed.settle();

    for (target, expected) in [
        (quick_xid.trim(), "quick"),
        (slow_xid.trim(), "quick,slow"),
        (gone_xid.trim(), "later,quick,slow"),
        (sub.trim(), "child,last,later,parent,quick,slow"),
    ] {
        let restored = bed.restore_and_start("target", &["--target-xid", target]);
        restored.wait_paused();
        assert_eq!(restored.psql("select string_agg(who, ',' order by who) from seen"), expected, "{target}");
        drop(restored);
        std::fs::remove_dir_all(bed.place("target")).unwrap();
    }
}

/// R1: a time is a moment in whatever zone it is written, and "ago" is one too. Without a zone it is refused.
#[test]
fn times_are_moments_in_any_zone() {
    let bed = Archived::start(builder(), Store::local());
    let primary = &bed.cluster;
    let mut ledger = Ledger::create(primary, "rows");
    bed.backup();
    let one = ledger.append(primary);
    // The moment between the rows, far from both even on a machine that does much else.
    primary.psql("select pg_sleep(3)");
    let moment = primary.psql("select extract(epoch from clock_timestamp())::numeric(20, 6)");
    primary.psql("select pg_sleep(3)");
    ledger.append(primary);
    bed.settle();

    let clock = |zone: &str, suffix: &str| {
        let at = format!("to_timestamp({moment}) at time zone '{zone}'");
        primary.psql(&format!("select to_char({at}, 'YYYY-MM-DD HH24:MI:SS') || '{suffix}'"))
    };
    let plan = |time: &str| {
        let output = bed.agent.restore(&["--json", "plan", "--target-time", time]);
        serde_json::from_str::<serde_json::Value>(&output.expect_success().stdout).unwrap()
    };
    let utc = plan(&clock("UTC", "Z"));
    for (zone, suffix) in [
        ("Asia/Kolkata", "+05:30"),
        ("Europe/Rome", "[Europe/Rome]"),
        ("America/St_Johns", "[America/St_Johns]"),
    ] {
        assert_eq!(plan(&clock(zone, suffix))["target"], utc["target"], "{zone}");
    }
    let ago = primary.psql(&format!("select (extract(epoch from clock_timestamp()) - {moment})::int"));
    land(
        &bed,
        &ledger,
        &[
            ("a zone of half hours", &["--target-time", &clock("Asia/Kolkata", "+05:30")], one.n),
            ("some time ago", &["--target-time", &format!("{ago} seconds ago")], one.n),
        ],
    );
    for (time, says) in [
        (clock("UTC", ""), "zone"),
        ("yesterday".to_owned(), "a time"),
        ("2026-02-30 00:00:00Z".to_owned(), "a time"),
        // On the days on which clocks change, a local time is shown twice or never.
        (
            "2026-10-25 02:30:00[Europe/Rome]".to_owned(),
            "2026-10-25 02:30:00+02:00\" or \"2026-10-25 02:30:00+01:00",
        ),
        (
            "2026-03-29 02:30:00[Europe/Rome]".to_owned(),
            "2026-03-29 01:30:00+01:00\" or \"2026-03-29 03:30:00+02:00",
        ),
    ] {
        let output = bed.try_restore("refused", &["--target-time", &time]).expect_status(2);
        assert!(
            output.stderr.replace('\\', "").contains(says) && output.stderr.contains("--target-time"),
            "{time}: {output:#?}"
        );
    }
    let tomorrow = clock("UTC", "Z").replacen("20", "21", 1);
    let output = bed.try_restore("refused", &["--target-time", &tomorrow]).expect_status(1);
    assert!(output.stdout.contains("in the future by this machine's clock"), "{output:#?}");
}

/// R1: the server does at the target what it was told, and a standby goes on with what is archived later.
#[test]
fn at_the_target_the_server_pauses_promotes_shuts_down_or_follows() {
    let bed = Archived::start(builder(), Store::local());
    let primary = &bed.cluster;
    let mut ledger = Ledger::create(primary, "rows");
    bed.backup();
    let rows = ledger.append_many(primary, 2);
    bed.settle();
    let target = ["--target-xid", &rows[0].xid.to_string()];

    let restored =
        bed.restore_and_start("promotes", &[&target[..], &["--target-action", "promote"]].concat());
    restored.wait_promoted();
    assert_eq!(
        (ledger.highest(&restored), restored.psql("select 1 / (select count(*) from rows)")),
        (1, "1".into())
    );
    drop(restored);

    let pgdata = bed.restore("shuts", &[&target[..], &["--target-action", "shutdown"]].concat());
    let mut restored = Cluster::adopt(primary.dir().clone(), primary.major(), pgdata, None);
    restored.launch();
    assert_eq!(restored.wait_for_end(Duration::from_secs(60)), 0, "{}", restored.log());
    assert!(restored.log().contains("shutdown at recovery target"), "{}", restored.log());
    drop(restored);

    let standby = bed.restore_and_start("follows", &["--standby"]);
    standby.wait_for("select count(*) from rows", "2");
    assert_eq!(standby.psql("select pg_is_in_recovery()"), "t");
    ledger.append(primary);
    bed.settle();
    standby.wait_for("select count(*) from rows", "3");
    assert_eq!(standby.psql("select pg_is_in_recovery()"), "t");
}

/// R1: where nothing else was committed between the target and the accident, recovery pauses at the end of the accident, whose
/// locks it holds. The plan says so, and names two ways to read what was dropped.
#[test]
fn a_table_that_is_locked_at_the_target_can_be_read_all_the_same() {
    let bed = Archived::start(builder().conf("autovacuum", "off"), Store::local());
    let primary = &bed.cluster;
    primary.psql("create table t (n int)");
    bed.backup();
    primary.psql("insert into t values (1), (2)");
    let oid = primary.psql("select 't'::regclass::oid");
    primary.psql("select pg_sleep(1)");
    let utc = "to_char(clock_timestamp() at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS.US') || 'Z'";
    let moment = primary.psql(&format!("select {utc}"));
    let accident = "begin; select pg_current_xact_id(); savepoint s; drop table t; release s; commit";
    let xid = primary.psql(accident);
    let too_late = primary.psql(&format!("select {utc}"));
    primary.psql("create table later ()");
    bed.settle();

    // A target behind the accident leads to the one before it.
    let late = bed.agent.restore(&["plan", "--target-time", &too_late]).expect_success().stdout;
    assert!(late.contains(&format!("Transaction {xid} was committed before the target")), "{late}");
    let at_it = ["plan", "--target-xid", &xid, "--target-exclusive"];
    let at_it = bed.agent.restore(&at_it).expect_success().stdout;
    assert!(at_it.contains("keeps the relation") && !at_it.contains("removed relations"), "{at_it}");

    let output = bed.agent.restore(&["--json", "plan", "--target-time", &moment]).expect_success();
    let paused: serde_json::Value = serde_json::from_str(&output.stdout).unwrap();
    let locks = paused["stop"]["locks"].as_array().expect("locks");
    assert_eq!(locks[0]["relation_oid"].to_string(), oid, "{paused}");
    let since = locks[0]["since_lsn"].as_str().unwrap();
    let note = paused["notes"][0].to_string();
    let advice = format!(
        "stop before the lock, after the same transactions: {} --json plan --target-lsn {since} --target-exclusive",
        testbed::under_test("restore-agent").display()
    );
    assert!(
        note.contains(&oid) && note.contains("pg_wal_replay_resume()") && note.contains(&advice),
        "{note}"
    );
    let promoted = ["--target-time", &moment, "--target-action", "promote"];
    let output = bed.try_restore("promoted", &promoted).expect_success();
    assert!(!output.stdout.contains("locked") && !output.stderr.contains("locked"), "{output:#?}");

    let read = "set statement_timeout = '2s'; select sum(n) from t";
    let restored = bed.restore_and_start("time", &["--target-time", &moment]);
    restored.wait_paused();
    let error = restored.try_psql(read).unwrap_err();
    assert!(error.contains("statement timeout"), "{error}");
    restored.psql("select pg_wal_replay_resume()");
    restored.wait_promoted();
    assert_eq!(restored.psql(read), "3");
    drop(restored);
    let restored = bed.restore_and_start("lsn", &["--target-lsn", since, "--target-exclusive"]);
    restored.wait_paused();
    assert_eq!(restored.psql(read), "3");
}

/// R1: a target long after a DROP leads to the moment before it with one command, copied as it is printed; also where nothing was
/// committed since and the archive ends before the target.
#[test]
fn a_target_long_after_a_drop_leads_to_the_moment_before_it() {
    let bed = Archived::start(builder().conf("autovacuum", "off"), Store::local());
    let primary = &bed.cluster;
    primary.psql("create table t (n int); create table filler (text text)");
    bed.backup();
    primary.psql("insert into t values (1), (2)");
    let xid = primary.psql("begin; select pg_current_xact_id(); drop table t; commit");
    bed.settle();
    let now = "select to_char(clock_timestamp() at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS.US') || 'Z'";
    let quiet = primary.psql(now);
    let read = "set statement_timeout = '2s'; select sum(n) from t";

    // Nothing was committed since.
    let refused = bed.try_restore("quiet", &["--target-time", &quiet]).expect_status(1);
    let printed = command(&refused.stdout, &xid);
    run_copied(&bed, printed);
    let restored = Cluster::start_restored(primary.dir(), primary.major(), bed.place("quiet"));
    restored.wait_paused();
    assert_eq!(restored.psql(read), "3");
    drop(restored);

    for _ in 0..4 {
        primary.psql("insert into filler select repeat(md5(n::text), 50) from generate_series(1, 1000) n");
        bed.settle();
    }
    let late = primary.psql(now);
    primary.psql("insert into filler values ('late')");
    bed.settle();
    let output = bed.agent.restore(&["--json", "plan", "--target-time", &late]).expect_success();
    let plan: serde_json::Value = serde_json::from_str(&output.stdout).unwrap();
    let removal = &plan["removal"];
    assert_eq!(removal["xid"].to_string(), xid, "{plan:#}");
    let lsn = |of: &serde_json::Value| of["lsn"].as_str().unwrap().parse::<walpoint_base::Lsn>().unwrap();
    assert!(lsn(removal).0 + (4 << 20) < lsn(&plan["stop"]).0, "{plan:#}");
    let plan = bed.agent.restore(&["plan", "--target-time", &late]).expect_success().stdout;
    let before = run_copied(&bed, command(&plan, &xid));
    assert!(!before.stdout.contains("locked"), "{before:#?}");
    let options: Vec<&str> =
        removal["options"].as_array().unwrap().iter().filter_map(|o| o.as_str()).collect();
    let restored = bed.restore_and_start("late", &options);
    restored.wait_paused();
    assert_eq!(restored.psql(read), "3");
    drop(restored);

    // A restore that came too late says how to restore over it.
    let output = bed.try_restore("over", &["--target-time", &late]).expect_success();
    run_copied(&bed, command(&(output.stdout + &output.stderr), &xid));
    let restored = Cluster::start_restored(primary.dir(), primary.major(), bed.place("over"));
    restored.wait_paused();
    assert_eq!(restored.psql(read), "3");
}

/// The command that leads to the moment before a transaction.
#[track_caller]
fn command<'a>(text: &'a str, xid: &str) -> &'a str {
    assert!(text.contains(&format!("Transaction {xid}")), "{text}");
    let line = text.lines().find_map(|line| line.split_once("restore the moment before it: "));
    line.unwrap_or_else(|| panic!("no command in {text}")).1
}

/// Gives a shell what was printed.
#[track_caller]
fn run_copied(bed: &Archived, line: &str) -> process::Output {
    let own = bed.agent.command("restore-agent", [""; 0]);
    let mut shell = Command::new("sh");
    shell.args(["-c", line]).current_dir(own.get_current_dir().unwrap());
    shell.envs(own.get_envs().filter_map(|(name, value)| Some((name, value?))));
    user::become_user(&mut shell);
    process::run(&mut shell, Duration::from_secs(120)).expect_success()
}
