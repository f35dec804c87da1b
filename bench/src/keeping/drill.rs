//! `drill`: a restore drill, against the restore, the start and the recovery that it consists of.

use super::finding::BoundFinding;
use super::ours::{OurRepository, Settings};
use super::scene::KeepingBed;
use super::server::EndedServer;
use crate::figures::GoodSide;
use crate::place::StoreKind;

/// By hand: until the server that was restored has recovered everything and takes writes. It writes as little as the drill's server
/// does, whose copy is thrown away. What the driver finds running is ended after that.
const BY_HAND: &str = "{bin}/restore-agent restore --quiet --pgdata {target} \
    && {pg}/pg_ctl --wait --timeout=300 --pgdata={target} --log={work}/server.log \
       --options=\"-c listen_addresses='' -c port=5432 -k {work} -c fsync=off -c full_page_writes=off \
       -c synchronous_commit=off -c autovacuum=off -c jit=off\" start > {work}/pg_ctl.log \
    && until test \"$({pg}/psql -XAt -h {work} -p 5432 -U postgres -c 'select pg_is_in_recovery()' postgres)\" = f; \
       do sleep 0.02; done";

/// The drill, in a directory on the same disk, without what is not part of the comparison.
const DRILL: &str =
    "{bin}/restore-agent drill --quiet --skip amcheck --pg-bindir {pg} --directory {scratch}/drill";

pub(super) fn measure(scene: &mut KeepingBed<'_>) -> Result<Vec<BoundFinding>, String> {
    let server = EndedServer::of_data_set(scene);
    server.settle();
    let repository = OurRepository::of(scene, StoreKind::Local, Settings::default(), server.cluster())?;
    repository.backup(scene, server.cluster(), "full", 0)?;
    let mut times = Vec::new();
    for round in 0..=scene.few_rounds() {
        let mut seconds = [0.0; 2];
        // Neither is always the first.
        let drill_first = round.is_multiple_of(2);
        for drill in [drill_first, !drill_first] {
            scene.put_aside().map_err(|e| format!("putting a restored directory aside: {e}"))?;
            let (command, what) =
                if drill { (DRILL, "drill") } else { (BY_HAND, "restore, start, recovery") };
            seconds[usize::from(drill)] = repository.shell(scene, command, what, round)?.report.seconds;
        }
        if round > 0 {
            times.push(seconds[1] / seconds[0]);
        }
    }
    repository.remove(scene);
    Ok(vec![
        BoundFinding::within("time, against restore, start and recovery", "×", GoodSide::AtMost, 1.2, &times).noting(
            "without pg_amcheck and checks of one's own; page checksums, tables and the removal of the copy are included. Both servers \
             run with fsync, full_page_writes, synchronous_commit, autovacuum and jit off, as a drill's does",
        ),
    ])
}
