//! An archive of 100,000 segments for `plan`: its index is all there, and of its objects those that a plan looks at. The
//! moment to be planned for lies in a segment of real WAL, 900 segments after a backup.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt, stream};
use walpoint_base::chain::ChainFacts;
use walpoint_base::crossing::CrossingFacts;
use walpoint_base::facts::{HistoryHash, SegmentMarks, TransactionRange};
use walpoint_base::{BackupId, ClusterName, PgTimestamp, SegmentFacts, SegmentName, SegmentNo, TimelineId};
use walpoint_pg::wal::inspect;
use walpoint_repo::index::{FANOUT, IndexWriter, SegmentEntry, fixtures};
use walpoint_repo::wal::{WalArchive, WalFlags, WalHeader};
use walpoint_repo::{Repository, backup};
use walpoint_storage::RepoError;
use walpoint_storage::object::ContentHash;
use walpoint_storage::store::StoreSettings;
use walpoint_storage::store::settings::Provider;
use walpoint_tests::cluster::{Cluster, Shutdown};
use walpoint_tests::dir::TestDir;
use walpoint_tests::process;
use walpoint_tests::seaweed::Credentials;
use walpoint_tests::{testbed, user};

use crate::data::{MAJOR, SEGMENT};

/// Segments of the archive.
pub const SEGMENTS: u64 = 100_000;

/// The real one, at least.
const REAL: u64 = 60_000;

/// How far the backup lies before it.
pub const BEHIND: u64 = 900;

/// Microseconds between the commits of two segments.
const STEP: i64 = 10_000;

const FIRST: TimelineId = TimelineId::FIRST;

/// A stopped cluster with one segment of WAL far from the beginning.
#[derive(Debug)]
pub struct LongCluster {
    cluster: Cluster,
    name: SegmentName,
    facts: SegmentFacts,
    content: Vec<u8>,
}

impl LongCluster {
    /// Makes it.
    pub fn make() -> LongCluster {
        let mut cluster = Cluster::builder().major(MAJOR).conf("wal_keep_size", "1GB").init();
        let size = walpoint_base::SegmentSize::DEFAULT;
        let mut reset = Command::new(testbed::pg_program(MAJOR, "pg_resetwal"));
        reset.arg("-l").arg(SegmentNo(REAL).name(FIRST, size).to_string()).arg("-D").arg(cluster.pgdata());
        process::run(user::become_user(&mut reset), Duration::from_secs(30)).expect_success();
        cluster.start();
        cluster.psql("create table t (n int)");
        cluster.switch_wal();
        cluster.psql("insert into t select generate_series(1, 1000)");
        let segment = cluster.switch_wal();
        cluster.stop(Shutdown::Fast);
        let content = std::fs::read(cluster.wal_dir().join(&segment)).expect("read the segment");
        let name: SegmentName = segment.parse().expect("a segment's name");
        let facts = inspect(name, &content).expect("sound WAL");
        LongCluster { cluster, name, facts, content }
    }

    /// Its data directory.
    pub fn pgdata(&self) -> &Path {
        self.cluster.pgdata()
    }

    /// Fills a repository in which the cluster `main` is registered. The moment to plan for, just before the commit in the
    /// real segment, is returned as text.
    pub fn fill(&self, repository: &str) -> Result<String, String> {
        let dir = TestDir::new();
        let full = Credentials::full();
        let secret = dir.write("secret", &full.secret);
        let mut settings: StoreSettings = toml::from_str(repository).map_err(|e| e.to_string())?;
        if let Ok(Provider::S3(s3)) = &mut settings.provider {
            s3.access_key_id = Some(full.key);
            s3.secret_access_key_file = Some(secret);
        }
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
        runtime.block_on(self.fill_in(&settings)).map_err(|e| e.to_string())
    }

    async fn fill_in(&self, settings: &StoreSettings) -> Result<String, RepoError> {
        let repository = Repository::open("main", settings).await?;
        let cluster: ClusterName = "main".parse().expect("a name");
        let lineage =
            repository.lineage_for(&cluster, self.facts.system_id).await?.expect("init registered it");
        let archive = repository.wal(&lineage);
        let real = self.name.number(lineage.segment_size).expect("a number").0;
        let commit = self.facts.transactions.expect("a commit").earliest;
        let header = |number: u64| {
            let time = PgTimestamp(commit.0 + (number.cast_signed() - real.cast_signed()) * STEP);
            header(&archive, number, time)
        };
        let entry = |number: SegmentNo| {
            let mut header = header(number.0);
            if number.0 == real {
                header.transactions = self.facts.transactions;
            }
            (number.0 > 0).then(|| SegmentEntry::of(&header, 5_000_000))
        };
        let groups = SEGMENTS / FANOUT;
        fixtures::sealed_groups(&archive, FIRST, groups, entry).await?;
        // What is proven segment by segment, and the tail that no index has yet.
        let begun = real - BEHIND;
        let there = (begun..real + 3).filter(|&number| number != real).chain(groups * FANOUT..SEGMENTS);
        let headers: Vec<WalHeader> = there.map(header).collect();
        let stored = headers.iter().map(|header| fixtures::header_only(&archive, header));
        stream::iter(stored).buffer_unordered(16).try_collect::<Vec<()>>().await?;
        archive.put_segment(&self.facts, self.content.clone(), WalFlags::default()).await?;
        IndexWriter::new(archive.clone()).catch_up(FIRST).await?;

        // A backup every 10,000 segments, and the one that counts.
        let backups = (1..10).map(|n| n * 10_000).filter(|&n| n != real).chain([begun]);
        for number in backups {
            let size = lineage.segment_size;
            let at = |number: u64| header(number).transactions.expect("a commit").earliest.to_time();
            let start = SegmentNo(number).start(size) + 40;
            let id = BackupId::new(at(number), FIRST, start, u32::try_from(number).unwrap_or(0));
            let stop = SegmentNo(number + 2).start(size) + 400;
            backup::fixtures::smallest(&archive, id, stop, at(number + 2)).await?;
        }
        Ok(PgTimestamp(commit.0 - STEP / 2).to_time().to_string())
    }
}

/// The header of a segment that holds one commit.
pub fn header(archive: &WalArchive, number: u64, commit: PgTimestamp) -> WalHeader {
    let lineage = archive.lineage();
    let start = SegmentNo(number).start(lineage.segment_size);
    let xid = u32::try_from(number).unwrap_or(0) + 1000;
    WalHeader {
        lineage: lineage.id,
        major: lineage.major,
        timeline: FIRST,
        first_page_timeline: FIRST,
        segment: SegmentNo(number),
        size: lineage.segment_size,
        wal_block_size: lineage.wal_block_size,
        content_len: SEGMENT,
        hash: ContentHash([u8::try_from(number % 251).unwrap_or(0); 32]),
        first_record: Some(start + 40),
        last_record: Some(start + SEGMENT - 48),
        end: start + SEGMENT,
        records: 2,
        transactions: Some(TransactionRange::add(None, commit, xid)),
        restore_points: 0,
        whole: true,
        switched: false,
        damaged: false,
        crossing: CrossingFacts::default(),
        chain: ChainFacts::default(),
        marks: SegmentMarks::default(),
        history: HistoryHash::NONE,
        stored: commit.to_time(),
    }
}
