//! How far back removed relations are looked for.

use std::sync::Arc;

use rand::SeedableRng;
use rand::rngs::StdRng;
use walpoint_base::{Lsn, SegmentName, SegmentNo};
use walpoint_plan::restore::testing::forked::{mb, world};
use walpoint_plan::restore::testing::world::*;
use walpoint_plan::restore::*;

use super::archived::{archive, open};
use super::decoder::{Decoder, records};
use crate::index::tests::bed;

/// Takes the commits of these transactions for removals, and cannot decode that segment.
struct Removing(&'static [u32], Option<SegmentName>);

struct Search {
    xids: &'static [u32],
    unreadable: Option<SegmentName>,
    before: Lsn,
    last: Option<Removal>,
}

impl SegmentDecoder for Removing {
    fn search(&self, rule: &StopRule, from: Lsn, until: Lsn) -> Box<dyn StopSearch> {
        Decoder.search(rule, from, until)
    }

    fn tablespaces(&self) -> Box<dyn TablespaceSearch> {
        Decoder.tablespaces()
    }

    fn required(&self) -> Box<dyn RequiredSearch> {
        Decoder.required()
    }

    fn removals(&self, before: Lsn) -> Option<Box<dyn RemovalSearch>> {
        Some(Box::new(Search { xids: self.0, unreadable: self.1, before, last: None }))
    }
}

impl RemovalSearch for Search {
    fn feed(&mut self, name: SegmentName, content: &[u8]) -> Result<(), String> {
        if self.unreadable == Some(name) {
            return Err("it cannot be decoded".to_owned());
        }
        for record in records(content).into_iter().filter(|record| record.start < self.before) {
            match record.kind {
                TestRecordKind::Commit { time, xid } if self.xids.contains(&xid) => {
                    self.last =
                        Some(Removal { xid, time, lsn: record.start, unlocked: None, database: None });
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn last(&self) -> Option<Removal> {
        self.last
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removal_is_looked_for_up_to_a_segment_that_cannot_be_read() {
    let (world, _) = world();
    let bed = bed().await;
    archive(&world, &bed, &mut StdRng::seed_from_u64(1)).await;
    let last = async |xids, before, unreadable: Option<u64>| {
        let mut catalog = open(&world, &bed).await;
        let decoder: Arc<dyn SegmentDecoder> =
            Arc::new(Removing(xids, unreadable.map(|n| SegmentNo(n).name(tli(1), size()))));
        let question = RemovalQuestion { path: tli(1), after: Lsn(mb(2)), before: Lsn(before) };
        let asked = catalog.ask(Some(&decoder), |facts| {
            Path::to(facts, tli(1)).unwrap().coverage(SegmentNo(2))?;
            facts.removal(question.clone())
        });
        asked.await.unwrap().map(|removal| removal.xid)
    };
    // Two commits a segment: transaction 1010 ends in segment 5.
    assert_eq!(last(&[1010], mb(20), None).await, Some(1010));
    assert_eq!(last(&[1010, 1024], mb(20), None).await, Some(1024));
    assert_eq!(last(&[1010, 1024], mb(12), None).await, Some(1010));
    assert_eq!(last(&[1010], mb(5), None).await, None);
    assert_eq!(last(&[1010], mb(20), Some(7)).await, None);
    assert_eq!(last(&[1010, 1024], mb(20), Some(7)).await, Some(1024));
}
