//! What the sink is given, and which gaps are reported.

use super::*;
use crate::index::tests::bed;

/// Records that cannot continue what was read.
const STRANGE: u8 = 0xEE;

/// Notes what it is given.
#[derive(Default)]
struct Notes {
    /// The segments whose end came, and how many bytes of them are records.
    read: Vec<(u64, u64)>,
    gaps: Vec<ScanGap>,
    number: u64,
    fed: u64,
    content: u64,
    position: Lsn,
    /// Whether something was read that the next segment has to continue.
    continued: bool,
}

impl WalSink for Notes {
    fn begin(&mut self, name: SegmentName, length: u64) {
        assert_eq!(length, SIZE);
        (self.number, self.fed, self.content) = (name.number(size()).unwrap().0, 0, 0);
        self.position = self.position.max(start(self.number));
    }

    fn bytes(&mut self, bytes: &[u8]) -> Result<(), String> {
        if self.fed == 0 && self.continued && bytes[0] == STRANGE {
            return Err("strange".to_owned());
        }
        if let Some(last) = bytes.iter().rposition(|byte| *byte != 0) {
            self.content = self.fed + last as u64 + 1;
        }
        self.fed += bytes.len() as u64;
        self.position = self.position.max(start(self.number) + self.content);
        Ok(())
    }

    /// A record of 64 bytes may cross the end.
    fn end(&mut self) -> Result<bool, String> {
        assert_eq!(self.fed, SIZE);
        self.read.push((self.number, self.content));
        self.continued = true;
        Ok(self.content + 64 >= SIZE)
    }

    fn gap(&mut self, gap: ScanGap) {
        self.continued = false;
        self.gaps.push(gap);
    }

    fn position(&self) -> Lsn {
        self.position
    }

    fn is_done(&self) -> bool {
        false
    }
}

/// The gaps by where they lie, and a word of why.
fn gaps(notes: &Notes) -> Vec<(Lsn, Option<Lsn>, &'static str)> {
    let why = |why: &GapReason| match why {
        GapReason::Missing => "missing",
        GapReason::Lost => "lost",
        GapReason::Damaged(_) => "damaged",
        GapReason::Records(_) => "records",
    };
    notes.gaps.iter().map(|gap| (gap.from, gap.until, why(&gap.why))).collect()
}

fn segments(first: u64, last: u64) -> SegmentRange {
    SegmentRange { timeline: FIRST, first: SegmentNo(first), last: SegmentNo(last) }
}

async fn read_parts(archive: &crate::wal::WalArchive, parts: Vec<ScanPart>) -> Notes {
    let range = ScanRange { timeline: FIRST, parts, backup: None };
    read(archive, &range, Notes::default()).await.unwrap()
}

async fn all(bed: &Bed, timeline: TimelineId) -> ScanRange {
    segments_between(&mut catalog(bed).await, timeline, Moments::default()).await.unwrap()
}

#[tokio::test]
async fn an_incomplete_segment_may_change_while_the_others_are_read() {
    let bed = bed().await;
    store(&bed, FIRST, 3, (1, SIZE)).await;
    stream(&bed, 4, (0, 104), true).await;
    let range = all(&bed, FIRST).await;
    let notes = read(&bed.archive, &range, Notes::default()).await.unwrap();
    assert_eq!((&notes.read[..], gaps(&notes)), (&[(3, SIZE), (4, 104)][..], vec![]), "it ends early");

    delete_slices(&bed, 4).await;
    let notes = read(&bed.archive, &range, Notes::default()).await.unwrap();
    assert_eq!((&notes.read[..], gaps(&notes)), (&[(3, SIZE)][..], vec![(start(4), None, "missing")]));

    store(&bed, FIRST, 4, (1, SIZE)).await;
    let notes = read(&bed.archive, &range, Notes::default()).await.unwrap();
    assert_eq!((&notes.read[..], gaps(&notes)), (&[(3, SIZE), (4, SIZE)][..], vec![]), "it is complete");
}

#[tokio::test]
async fn slices_that_cannot_be_read_are_a_gap_behind_those_that_can() {
    let bed = bed().await;
    store(&bed, FIRST, 3, (1, SIZE)).await;
    stream(&bed, 4, (0, 104), true).await;
    stream(&bed, 4, (104, 200), false).await;
    let notes = read(&bed.archive, &all(&bed, FIRST).await, Notes::default()).await.unwrap();
    assert_eq!(notes.read, [(3, SIZE), (4, 104)]);
    assert_eq!(gaps(&notes), [(start(4) + 104, None, "damaged")]);
}

#[tokio::test]
async fn the_parents_incomplete_copy_is_read_up_to_the_switch() {
    let bed = bed().await;
    store(&bed, FIRST, 3, (1, SIZE)).await;
    stream(&bed, 4, (0, 700), true).await;
    let history = WalFileName::History(tli(2));
    bed.archive.put_file(history, b"1\t0/400200\treason\n".to_vec()).await.unwrap();
    let notes = read(&bed.archive, &all(&bed, tli(2)).await, Notes::default()).await.unwrap();
    assert_eq!((&notes.read[..], gaps(&notes)), (&[(3, SIZE), (4, 0x200)][..], vec![]));

    store(&bed, tli(2), 5, (1, SIZE)).await;
    let notes = read(&bed.archive, &all(&bed, tli(2)).await, Notes::default()).await.unwrap();
    assert_eq!(notes.read, [(3, SIZE), (4, 0x200), (5, SIZE)]);
    assert_eq!(gaps(&notes), [(Lsn(0x40_0200), Some(start(5)), "missing")]);
}

#[tokio::test]
async fn another_repositorys_copy_is_read_where_the_records_of_the_first_one_do_not_continue() {
    let (one, other) = (bed().await, bed().await);
    store(&one, FIRST, 3, (1, SIZE)).await;
    store(&one, FIRST, 4, (STRANGE, SIZE)).await;
    store(&other, FIRST, 4, (1, SIZE)).await;
    let whole = || vec![ScanPart::Whole(segments(3, 4))];
    let joined = one.archive.joined(vec![other.archive.clone()]);
    let notes = read_parts(&joined, whole()).await;
    assert_eq!((&notes.read[..], gaps(&notes)), (&[(3, SIZE), (4, SIZE)][..], vec![]));

    let notes = read_parts(&one.archive, whole()).await;
    assert_eq!((notes.read.len(), gaps(&notes)), (2, vec![(start(4), Some(start(4)), "records")]));
}

/// The copy that one repository alone has is not read where another one has that and one that contradicts it.
#[tokio::test]
async fn incomplete_copies_that_contradict_each_other_are_a_gap() {
    let (one, other) = (bed().await, bed().await);
    for (bed, byte) in [(&one, 1), (&other, 1), (&one, 2)] {
        let mut content = vec![byte; 700];
        content.resize(usize::try_from(SIZE).unwrap(), 0);
        bed.archive.put_file(WalFileName::Partial(name(3)), content).await.unwrap();
    }
    let files = vec![(name(3), start(4))];
    let part = IncompletePart { number: SegmentNo(3), timeline: FIRST, files, listed: true, written: None };
    for (first, second) in [(&one, &other), (&other, &one)] {
        let joined = first.archive.joined(vec![second.archive.clone()]);
        let notes = read_parts(&joined, vec![ScanPart::Incomplete(part.clone())]).await;
        assert_eq!((&notes.read[..], gaps(&notes)), (&[][..], vec![(start(3), None, "damaged")]));
    }
    let notes = read_parts(&other.archive, vec![ScanPart::Incomplete(part)]).await;
    assert_eq!((notes.read.len(), gaps(&notes)), (1, vec![]));
}

#[tokio::test]
async fn gaps_begin_where_reading_ended_and_do_not_overlap() {
    let bed = bed().await;
    // A record begins 40 bytes before the end.
    store(&bed, FIRST, 3, (1, SIZE - 40)).await;
    store(&bed, FIRST, 4, (STRANGE, SIZE)).await;
    let notes = read_parts(&bed.archive, vec![ScanPart::Whole(segments(3, 4))]).await;
    assert_eq!(notes.read, [(3, SIZE - 40), (4, SIZE)]);
    assert_eq!(gaps(&notes), [(Lsn(4 * SIZE - 40), Some(start(4)), "records")]);

    // Its content is not what its header says.
    bed.store([5]).await;
    let missing = ScanPart::Missing(segments(4, 4), GapReason::Missing);
    let parts = vec![ScanPart::Whole(segments(3, 3)), missing, ScanPart::Whole(segments(5, 5))];
    let notes = read_parts(&bed.archive, parts).await;
    let expected = [(Lsn(4 * SIZE - 40), Some(start(5)), "missing"), (start(5), Some(start(6)), "damaged")];
    assert_eq!(gaps(&notes), expected);
}
