//! B3: tablespaces that are directories in `pg_tblspc` instead of links: what `--flatten-tablespaces` leaves, and what
//! `allow_in_place_tablespaces` makes.

use std::fs;

use walpoint_tests::cluster::{Cluster, Shutdown};
use walpoint_tests::oracle::Contents;
use walpoint_tests::testbed::MAJORS;

use crate::bed::Bed;

/// B3: both readers copy one beside one that is a link. Before 16 a server that writes a map leaves it out, in its manifest too.
#[test]
fn tablespaces_inside_are_part_of_every_backup() {
    for major in MAJORS {
        let mut bed = Bed::local(Cluster::builder().major(major));
        bed.cluster.create_tablespace("inside");
        bed.cluster.create_tablespace("outside");
        bed.cluster.psql(
            "create table i tablespace inside as select generate_series(1, 1000) n;
             create table o tablespace outside as select generate_series(1, 100) n",
        );
        let [(inside, place), (outside, elsewhere)] = &bed.cluster.tablespaces()[..] else { panic!() };
        let link = bed.cluster.pgdata().join(format!("pg_tblspc/{inside}"));
        let there = format!("{outside} {}\n", elsewhere.display());
        let place = place.clone();
        bed.cluster.stop(Shutdown::Fast);
        fs::remove_file(&link).unwrap();
        fs::rename(place, &link).unwrap();
        bed.cluster.start();
        let contents = Contents::of(&bed.cluster);
        for reader in [&[][..], &["--remote"]] {
            let backup = bed.backup(reader);
            let id = backup["backup"].as_str().unwrap();
            let map = bed.repository().open(id).manifest().summary.facts.tablespace_map.clone();
            assert_eq!(String::from_utf8(map.0).unwrap(), there, "PostgreSQL {major} {reader:?}");
            bed.cluster.wait_archived(&bed.cluster.switch_wal());
            contents.assert_equal(&Contents::of(&bed.restore(id)));
        }
    }
}
