//! B3: what the server has and the agent does not see: a tablespace that is not mounted for it, a directory that a mount hides
//! from it. Each looks like something that was just dropped.

use std::fs;
use std::time::Duration;

use walpoint_tests::cluster::Cluster;
use walpoint_tests::{faults, needs_root, process};

use crate::bed::Bed;

const LIMIT: Duration = Duration::from_secs(60);

/// B3: `check` and `backup` name it, and there is no backup that lacks it.
#[test]
fn what_the_server_has_and_the_agent_does_not_see_is_named_and_there_is_no_backup() {
    needs_root!();
    let bed = Bed::local(Cluster::builder());
    bed.cluster.create_tablespace("ts");
    bed.cluster.psql("create table t tablespace ts as select generate_series(1, 1000) n; checkpoint");
    let [(_, place)] = &bed.cluster.tablespaces()[..] else { panic!() };
    let postgres = bed.cluster.psql("select oid from pg_database where datname = 'postgres'");
    let version = fs::read_dir(place).unwrap().next().unwrap().unwrap().path();
    let pgdata = bed.cluster.pgdata();
    for (hidden, told) in [
        (place.clone(), "tablespace \"ts\" (pg_tblspc/"),
        (version.join(&postgres), "database \"postgres\" (pg_tblspc/"),
        (pgdata.join("base").join(&postgres), "database \"postgres\" (base/"),
        (pgdata.join("pg_xact"), "pg_xact is missing or empty"),
    ] {
        for (arguments, status) in [(&["check", "--no-switch"][..], 3), (&["backup"], 1)] {
            let command = bed.agent.command("archive-agent", arguments);
            let output = process::run(&mut faults::hiding(&command, &hidden), LIMIT).expect_status(status);
            let text = output.stdout + &output.stderr;
            assert!(text.contains(told) && text.contains("--remote"), "{told}: {text}");
        }
    }
    // A link that leads nowhere.
    let away = place.with_extension("away");
    fs::rename(place, &away).unwrap();
    let refused = bed.agent.run(&["backup"]).expect_status(1);
    assert!(refused.stderr.contains("tablespace \"ts\""), "{}", refused.stderr);
    fs::rename(&away, place).unwrap();
    assert!(bed.repository().finished().is_empty(), "nothing counts as a backup");
    bed.agent.run(&["check", "--no-switch"]).expect_success();
    bed.backup(&[]);
    bed.cluster.psql("drop table t; drop tablespace ts");
    bed.backup(&[]);
}
