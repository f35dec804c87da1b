//! B7: a clock that jumps. While this machine's clock and the store's disagree no backup is begun; once they agree again the
//! next one builds on the one before, and restores.

use walpoint_tests::agent::Agent;
use walpoint_tests::cluster::Cluster;
use walpoint_tests::http_faults::HttpProxy;
use walpoint_tests::oracle::Contents;
use walpoint_tests::store::Store;

use crate::bed::{Bed, report};

/// B7: a day ahead, a day behind, right again.
#[test]
fn a_clock_that_jumps_stops_backups_until_it_is_right() {
    let bed = Bed::new(Cluster::builder().segment_size_mb(1), Store::s3(), |agent| agent);
    bed.cluster.psql("create table t as select i, md5(i::text) from generate_series(1, 20000) i; checkpoint");
    let first = bed.backup(&[]);
    let proxy = HttpProxy::to(bed.store.port().unwrap());
    let agent = Agent::new(&bed.cluster).repository_via_port("main", &bed.store, proxy.port());
    for (seconds, says) in [(86_400, "ahead"), (-86_400, "behind")] {
        proxy.shift_clock(seconds);
        let refused = agent.run(&["backup"]).expect_status(1);
        assert!(refused.stderr.contains("no backup was started"), "{refused:#?}");
        assert!(refused.stderr.contains("clock") && refused.stderr.contains(says), "{refused:#?}");
        let begun = bed.store.back_door().list("clusters/main/backups");
        assert!(begun.iter().all(|key| key.contains(first["backup"].as_str().unwrap())), "{begun:?}");
    }
    proxy.shift_clock(0);
    bed.cluster.psql("insert into t values (0, 'later')");
    let second = report(&agent.run(&["backup", "--json"]).expect_success());
    assert_eq!(second["repositories"][0]["parent"], first["backup"]);
    let source = Contents::of(&bed.cluster);
    let segment = bed.cluster.switch_wal();
    bed.cluster.wait_archived(&segment);
    source.assert_equal(&Contents::of(&bed.restore(second["backup"].as_str().unwrap())));
}
