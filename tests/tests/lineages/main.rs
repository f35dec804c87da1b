//! Several lineages of one cluster: which one a restore takes, and what one that was split off has of its parent.

mod acknowledging;
#[path = "../archive_bed/mod.rs"]
mod archive_bed;
mod begun;
mod copies;
mod numbers;
mod repositories;
mod split_off;

use std::path::PathBuf;
use std::time::Duration;

use archive_bed::Bed;
use serde_json::Value;
use walpoint_tests::agent::{Agent, Daemon};
use walpoint_tests::cluster::{Cluster, Shutdown};
use walpoint_tests::process::Output;
use walpoint_tests::wait;

const SOON: Duration = Duration::from_secs(120);

/// Two servers that go on from one, on the same timeline number: production, and a copy with a lineage of its own.
struct Two {
    bed: Bed,
    production: Cluster,
    production_agent: Agent,
    copy: Cluster,
    copy_agent: Agent,
    /// The backup that both come from.
    backup: String,
    /// A position behind it that both have.
    common: String,
    /// A segment before the fork.
    common_segment: String,
    /// A moment behind the fork that both have.
    moment: String,
    /// A standby that has read the archive before the fork, and was stopped there.
    follower: Cluster,
    _daemons: Vec<Daemon>,
}

fn segment(cluster: &Cluster, who: &str) -> String {
    cluster.psql(&format!("insert into t select '{who}' from generate_series(1, 100)"));
    cluster.switch_wal()
}

#[track_caller]
fn archived(cluster: &Cluster, name: &str) {
    let status = cluster.wal_dir().join("archive_status");
    wait::until_true(SOON, &format!("{name} is archived\n{}", cluster.log()), || {
        status.join(format!("{name}.done")).exists() || !cluster.wal_dir().join(name).exists()
    });
}

#[track_caller]
fn json(output: &Output) -> Value {
    serde_json::from_str(&output.stdout)
        .unwrap_or_else(|e| panic!("{e}: {} {}", output.stdout, output.stderr))
}

impl Two {
    fn start() -> Two {
        let mut bed = Bed::local(Cluster::builder().segment_size_mb(1));
        bed.cluster.start();
        let daemon = bed.agent.daemon();
        bed.cluster.psql("create table t (who text)");
        bed.agent.run(&["backup"]).expect_success();
        let backup = json(&bed.agent.run(&["status", "--json"]))["clusters"][0]["repositories"][0]["status"]
            ["backups"][0]["id"]
            .as_str()
            .unwrap()
            .to_owned();
        let common_segment = segment(&bed.cluster, "both");
        let common = bed.cluster.lsn();
        archived(&bed.cluster, &segment(&bed.cluster, "both"));
        let mut follower = bed.cluster.standby();
        follower.set("primary_conninfo", "''");
        let following = Agent::with(&follower, &bed.store);
        following.write();
        follower.set("restore_command", following.restore_command());
        follower.start();
        follower.wait_for("select count(*) from t", "200");
        follower.stop(Shutdown::Fast);
        let standby = |bed: &Bed| {
            let standby = bed.cluster.standby();
            let agent = Agent::with(&standby, &bed.store);
            agent.archive_from(&standby);
            standby.set("archive_command", "false");
            (standby, agent)
        };
        let [(mut production, production_agent), (mut copy, copy_agent)] = [standby(&bed), standby(&bed)];
        for one in [&mut production, &mut copy] {
            one.set("wal_keep_size", "64MB");
            one.start();
            one.wait_replayed(&bed.cluster);
        }
        // More that both stream and the archive has.
        archived(&bed.cluster, &segment(&bed.cluster, "both"));
        for one in [&production, &copy] {
            one.wait_replayed(&bed.cluster);
        }
        bed.cluster.stop(Shutdown::Fast);
        assert_eq!(daemon.stop(), 0);
        production.promote();
        copy.promote();
        let ask = |cluster: &Cluster, agent: &Agent| {
            cluster.set("archive_command", agent.archive_command());
            cluster.reload();
        };
        let first = production_agent.daemon();
        ask(&production, &production_agent);
        archived(&production, &segment(&production, "production"));
        copy_agent.init(&["--new-lineage"]).expect_success();
        let second = copy_agent.daemon();
        ask(&copy, &copy_agent);
        archived(&copy, &segment(&copy, "copy"));
        let moment = copy.psql("select clock_timestamp()");
        archived(&production, &segment(&production, "production"));
        archived(&copy, &segment(&copy, "copy"));
        Two {
            bed,
            production,
            production_agent,
            copy,
            copy_agent,
            backup,
            common,
            common_segment,
            moment,
            follower,
            _daemons: vec![first, second],
        }
    }

    fn lineage(&self, n: u32) -> String {
        format!("{}-{n}", self.production.system_id())
    }

    fn restored(&self, name: &str, arguments: &[&str]) -> (PathBuf, Cluster) {
        let place = self.bed.cluster.dir().join(name);
        let all = [&["restore", "--pgdata", place.to_str().unwrap()], arguments].concat();
        self.production_agent.restore(&all).expect_success();
        let cluster =
            Cluster::start_restored(self.bed.cluster.dir(), self.bed.cluster.major(), place.clone());
        (place, cluster)
    }
}

fn rows(cluster: &Cluster) -> String {
    cluster.psql("select string_agg(who || ' ' || n, ', ' order by who) from (select who, count(*) n from t group by who) x")
}
