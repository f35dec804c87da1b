//! Histories, what is abandoned or refused, and which timeline decides.

use futures_util::TryStreamExt;
use walpoint_base::{Lsn, SegmentNo, TimelineHistory, TimelineId, WalFileName};
use walpoint_storage::error::RepoError;
use walpoint_storage::layout::AbandonedUntil;

use super::{Bed, NAME, beds, facts_of_size, segment};
use crate::wal::*;

#[tokio::test]
async fn the_other_files_are_kept_apart_and_protected() {
    for Bed { archive, .. } in beds(1).await {
        let size = archive.lineage().segment_size;
        let segment_name: SegmentName = NAME.parse().unwrap();
        let timeline = TimelineId::new(2).unwrap();
        for (name, content) in [
            (WalFileName::History(timeline), b"1\t0/3000000\tno recovery target specified\n".to_vec()),
            (WalFileName::Backup(segment_name, 0x28), b"START WAL LOCATION".to_vec()),
        ] {
            assert_eq!(archive.get(name).await.unwrap(), None);
            assert_eq!(archive.put_file(name, content.clone()).await.unwrap(), Stored::New);
            assert_eq!(archive.put_file(name, content.clone()).await.unwrap(), Stored::Same);
            let error = archive.put_file(name, b"other".to_vec()).await.unwrap_err();
            assert!(matches!(error, RepoError::Conflict { .. }), "{error}");
            let file = archive.get(name).await.unwrap().unwrap();
            assert!(file.content == content && file.header.is_none());
        }
        let partial = WalFileName::Partial(segment_name);
        assert_eq!(archive.get(partial).await.unwrap(), None);
        let (one, other) = (segment(size, 3), segment(size, 4));
        let copy = [&one[..5000], &vec![9; one.len() - 5000]].concat();
        let put = async |content: &[u8]| {
            let content = WalContent::from(content.to_vec()).with_zeros_from(5000);
            archive.put_file(partial, content).await.unwrap()
        };
        assert_eq!(put(&one).await, Stored::New);
        assert_eq!(put(&copy).await, Stored::Same, "what is behind the end says nothing");
        let read = archive.get(partial).await.unwrap().unwrap().content;
        assert!(read[..5000] == one[..5000] && read[5000..].iter().all(|byte| *byte == 0));
        let longer = WalContent::from(one.clone()).with_zeros_from(7000);
        assert_eq!(archive.put_file(partial, longer).await.unwrap(), Stored::New, "of another promotion");
        let shorter = WalContent::from(one.clone()).with_zeros_from(3000);
        assert_eq!(archive.put_file(partial, shorter).await.unwrap(), Stored::New);
        assert_eq!(archive.partials(segment_name).await.unwrap().len(), 3);
        let read = archive.get(partial).await.unwrap().unwrap().content;
        assert!(read[..7000] == one[..7000], "the one that holds most");
        assert_eq!(put(&other).await, Stored::New, "of another server");
        let told = archive.get(partial).await.unwrap_err().to_string();
        assert!(told.contains("two servers wrote this timeline"), "{told}");
        assert_eq!(archive.get(WalFileName::Segment(segment_name)).await.unwrap(), None);
        assert_eq!(archive.histories().await.unwrap(), [timeline]);
        let history = archive.history(timeline).await.unwrap().unwrap();
        assert_eq!(history.parent().unwrap().switch, Lsn(0x3000000));
        assert_eq!(archive.history(TimelineId::FIRST).await.unwrap(), None);
    }
}

/// Copies that contradict each other: the first segment of a timeline that left in it tells which one counts, and what lies behind
/// the switch point makes no difference.
#[tokio::test]
async fn a_younger_timeline_decides_between_copies_that_contradict_each_other() {
    for Bed { archive, .. } in beds(1).await {
        let size = archive.lineage().segment_size;
        let facts = facts_of_size(NAME, true, size);
        let name = facts.name;
        let start = name.number(size).unwrap().start(size);
        let (one, other) = (segment(size, 3), segment(size, 4));
        let put = async |content: &[u8], zeros| {
            let content = WalContent::from(content.to_vec()).with_zeros_from(zeros);
            archive.put_file(WalFileName::Partial(name), content).await.unwrap()
        };
        put(&one, 5000).await;
        put(&other, 9000).await;
        let copies = archive.contradicting_copies(name).await.unwrap();
        assert_eq!(copies.len(), 2, "{copies:?}");
        let told = archive.get_incomplete(name).await.unwrap_err().to_string();
        assert!(copies.iter().all(|copy| told.contains(copy.trim_matches('"'))), "{told}");

        let heir = TimelineId::new(name.timeline.get() + 1).unwrap();
        let line = format!("{}\t{}\tx\n", name.timeline, Lsn(start.0 + 4000));
        archive.put_file(WalFileName::History(heir), line.into_bytes()).await.unwrap();
        assert_eq!(archive.contradicting_copies(name).await.unwrap().len(), 2, "it has no segment yet");
        let content = [&one[..4000], &other[4000..]].concat();
        let heirs = facts_of_size(&SegmentName { timeline: heir, ..name }.to_string(), true, size);
        archive.put_segment(&heirs, content, WalFlags::default()).await.unwrap();
        assert_eq!(archive.contradicting_copies(name).await.unwrap(), [""; 0]);
        let read = archive.get_incomplete(name).await.unwrap().unwrap().content;
        assert!(read[..5000] == one[..5000] && read[5000..].iter().all(|byte| *byte == 0));
        // Another one of the same server up to there.
        put(&[&one[..4500], &other[4500..]].concat(), 6000).await;
        assert_eq!(archive.contradicting_copies(name).await.unwrap(), [""; 0]);
        let read = archive.get_incomplete(name).await.unwrap().unwrap().content;
        assert!(read[..4500] == one[..4500], "the one that holds most of those that agree");
    }
}

/// Copies of several repositories that contradict each other are believed as little as those of one, also where one of the repositories
/// has only one of them. The beginning of a longer one does not contradict it, and a younger timeline decides wherever it is.
#[tokio::test]
async fn copies_of_several_repositories_that_contradict_each_other_are_not_read() {
    let [one, other] = <[Bed; 2]>::try_from(beds(1).await).ok().unwrap();
    let size = one.archive.lineage().segment_size;
    let name: SegmentName = NAME.parse().unwrap();
    let (ours, theirs) = (segment(size, 3), segment(size, 4));
    let put = async |bed: &Bed, content: &[u8], zeros| {
        let content = WalContent::from(content.to_vec()).with_zeros_from(zeros);
        bed.archive.put_file(WalFileName::Partial(name), content).await.unwrap();
    };
    let orders = [(&one, &other), (&other, &one)].map(|(first, second)| {
        let joined = first.archive.joined(vec![second.archive.clone()]);
        (joined, WalCopies::new(first.archive.clone(), [second.archive.clone()]))
    });
    let is_read = async |content: &[u8]| {
        for (joined, copies) in &orders {
            assert_eq!(joined.contradicting_copies(name).await.unwrap(), [""; 0]);
            for read in [joined.get_incomplete(name).await, copies.get_incomplete(name).await] {
                let read = read.unwrap().unwrap().content;
                assert!(read.starts_with(content) && read[content.len()..].iter().all(|byte| *byte == 0));
            }
        }
    };
    let is_refused = async |count| {
        for (joined, copies) in &orders {
            let named = joined.contradicting_copies(name).await.unwrap();
            assert!(named.len() == count && named.iter().all(|one| one.contains("in repository \"main\"")));
            for read in [joined.get_incomplete(name).await, copies.get_incomplete(name).await] {
                let why = read.unwrap_err();
                assert!(matches!(&why, RepoError::Corrupt { .. }), "{why}");
                assert!(named.iter().all(|one| why.to_string().contains(one)), "{why}");
            }
            let beyond = joined.damaged_copy_beyond(name, None).await.unwrap();
            assert!(beyond.is_some_and(|why| why.contains("contradict each other")));
        }
    };
    put(&one, &ours, 5000).await;
    is_read(&ours[..5000]).await;
    put(&other, &ours, 3000).await;
    is_read(&ours[..5000]).await;
    put(&other, &theirs, 9000).await;
    is_refused(3).await;
    for hash in other.archive.partials(name).await.unwrap() {
        let key = other.archive.paths().partial(name, hash);
        other.archive.repository().store().delete(&key).await.unwrap();
    }
    put(&other, &theirs, 9000).await;
    is_refused(2).await;
    put(&one, &theirs, 7000).await;
    is_refused(3).await;

    let heir = TimelineId::new(name.timeline.get() + 1).unwrap();
    let left = name.number(size).unwrap().start(size) + 4000;
    let line = format!("{}\t{left}\tx\n", name.timeline);
    other.archive.put_file(WalFileName::History(heir), line.into_bytes()).await.unwrap();
    is_refused(3).await;
    let heirs = facts_of_size(&SegmentName { timeline: heir, ..name }.to_string(), true, size);
    let content = [&ours[..4000], &theirs[4000..]].concat();
    other.archive.put_segment(&heirs, content, WalFlags::default()).await.unwrap();
    is_read(&ours[..5000]).await;
}

#[tokio::test]
async fn a_refused_history_is_kept_beside_and_an_empty_one_has_no_ancestors() {
    for bed in beds(16).await {
        let archive = &bed.archive;
        let (two, three) = (TimelineId::new(2).unwrap(), TimelineId::new(3).unwrap());
        let ours = b"1\t0/3000000\tno recovery target specified\n".to_vec();
        let theirs = b"1\t0/4000000\tno recovery target specified\n".to_vec();
        archive.put_file(WalFileName::History(two), ours.clone()).await.unwrap();
        archive.put_file(WalFileName::History(three), Vec::new()).await.unwrap();
        assert_eq!(archive.history(three).await.unwrap(), Some(TimelineHistory::root(three)));
        let hash = archive.put_refused_history(two, theirs.clone()).await.unwrap();
        assert_eq!(archive.put_refused_history(two, theirs.clone()).await.unwrap(), hash, "once is enough");
        let listed = archive.all_histories().await.unwrap();
        assert_eq!((listed.stored, listed.refused), (vec![two, three], vec![(two, hash)]));
        assert_eq!(archive.refused_history(two, hash).await.unwrap(), Some(theirs));
        assert_eq!(archive.refused_history(three, hash).await.unwrap(), None);
        assert_eq!(archive.get(WalFileName::History(two)).await.unwrap().unwrap().content, ours);
    }
}

/// Two servers began a timeline of one number: what a person says of the one covers the other in no repository.
#[tokio::test]
async fn an_abandoned_timeline_is_the_one_that_left_its_parent_there() {
    let two = TimelineId::new(2).unwrap();
    let until: SegmentName = "000000020000000000000013".parse().unwrap();
    let fork = |lsn| Some((TimelineId::FIRST, Lsn(lsn)));
    let history = |lsn: u64| format!("1\t0/{lsn:X}\tno recovery target specified\n").into_bytes();
    for (from, to) in beds(16).await.into_iter().zip(beds(16).await.into_iter().rev()) {
        let (from, to) = (&from.archive, &to.archive);
        let name = AbandonedUntil { until, fork: fork(0x500_0000) };
        from.put_file(WalFileName::History(two), history(0x500_0000)).await.unwrap();
        from.abandon_timeline(name, "thrown away", "dba").await.unwrap();
        to.abandon_timeline(name, "thrown away", "dba").await.unwrap();
        // Production's, later.
        to.put_file(WalFileName::History(two), history(0x700_0000)).await.unwrap();
        for (archive, counts) in [(from, true), (to, false)] {
            let listed = archive.all_histories().await.unwrap().abandoned;
            assert_eq!(listed, [name]);
            assert_eq!(archive.abandoned_here(&listed).await.unwrap().contains_key(&two), counts);
        }
        // Nor is what is said of another one of that number taken over.
        let more = AbandonedUntil { until: "000000020000000000000014".parse().unwrap(), ..name };
        from.abandon_timeline(more, "thrown away", "dba").await.unwrap();
        assert_eq!(to.take_verdicts(from).await.unwrap(), 0);
        let own = AbandonedUntil { until, fork: fork(0x700_0000) };
        to.abandon_timeline(own, "thrown away too", "dba").await.unwrap();
        let listed = to.all_histories().await.unwrap().abandoned;
        assert_eq!(to.abandoned_here(&listed).await.unwrap().get(&two), Some(&own));
    }
}

#[tokio::test]
async fn verdicts_about_timelines_are_taken_over_with_each_repositorys_own_hashes() {
    let (two, three) = (TimelineId::new(2).unwrap(), TimelineId::new(3).unwrap());
    let until = AbandonedUntil {
        until: "000000030000000000000007".parse().unwrap(),
        fork: Some((TimelineId::FIRST, Lsn(0x500_0000))),
    };
    for (from, to) in beds(16).await.into_iter().zip(beds(16).await.into_iter().rev()) {
        let (from, to) = (&from.archive, &to.archive);
        let hash = from.put_refused_history(two, b"1\t0/4000000\tsettled\n".to_vec()).await.unwrap();
        from.settle_history(two, hash, "a test copy", "dba").await.unwrap();
        let open = b"1\t0/5000000\topen\n".to_vec();
        from.put_file(WalFileName::History(three), open.clone()).await.unwrap();
        from.put_refused_history(three, open.clone()).await.unwrap();
        from.abandon_timeline(until, "thrown away", "dba").await.unwrap();
        assert_eq!(to.take_verdicts(from).await.unwrap(), 4);
        assert_eq!(to.take_verdicts(from).await.unwrap(), 0, "once is enough");
        assert_eq!(to.abandonment(until).await.unwrap(), from.abandonment(until).await.unwrap());
        let listed = to.all_histories().await.unwrap();
        let own = listed.settled[0].1;
        assert_eq!(listed.refused.len(), 2);
        assert_eq!((listed.settled, listed.abandoned), (vec![(two, own)], vec![until]));
        assert!(listed.refused.contains(&(two, own)));
        let settled = to.settlement(two, own).await.unwrap().unwrap();
        assert_eq!((settled.history, &*settled.who, &*settled.reason), (own, "dba", "a test copy"));
        let (_, own) = listed.refused.into_iter().find(|(timeline, _)| *timeline == three).unwrap();
        assert_eq!(to.refused_history(three, own).await.unwrap(), Some(open));
    }
}

/// Two sites were promoted, each into its own repository, and each refused the other's history: what each has stays its own.
#[tokio::test]
async fn a_repositorys_own_history_is_not_refused_in_it_because_another_one_refused_it() {
    let two = TimelineId::new(2).unwrap();
    for (here, there) in beds(16).await.into_iter().zip(beds(16).await.into_iter().rev()) {
        let (here, there) = (&here.archive, &there.archive);
        let [ours, theirs] = ["4", "5"].map(|at| format!("1\t0/{at}000000\tours\n").into_bytes());
        for (archive, own, other) in [(here, &ours, &theirs), (there, &theirs, &ours)] {
            archive.put_file(WalFileName::History(two), own.clone()).await.unwrap();
            archive.put_refused_history(two, other.clone()).await.unwrap();
        }
        for (to, from, other) in [(here, there, &theirs), (there, here, &ours)] {
            assert_eq!(to.take_verdicts(from).await.unwrap(), 0);
            let refused = to.all_histories().await.unwrap().refused;
            let [(_, hash)] = refused[..] else { panic!("{refused:?}") };
            assert_eq!(to.refused_history(two, hash).await.unwrap().as_ref(), Some(other));
        }
    }
}

#[tokio::test]
async fn what_is_later_on_a_timeline_is_seen() {
    for Bed { archive, .. } in beds(1).await {
        let size = archive.lineage().segment_size;
        let timeline = TimelineId::FIRST;
        let after = async |n| archive.anything_after(timeline, SegmentNo(n)).await.unwrap();
        assert_eq!(after(0).await, None);
        let put = async |n: u64, whole| {
            let name = SegmentNo(n).name(timeline, size).to_string();
            let facts = facts_of_size(&name, whole, size);
            archive.put_segment(&facts, segment(size, 1), WalFlags::default()).await.unwrap();
            archive.paths().segment(facts.name)
        };
        let (three, far) = (put(3, true).await, put(4095 + 3, true).await);
        assert_eq!(after(2).await, Some(three));
        assert_eq!(after(3).await.as_ref(), Some(&far), "also in a later log");
        assert_eq!(after(4098).await, None);
        put(4098, false).await;
        assert_eq!(after(4098).await, None, "what goes with the segment itself is not later");
        put(4099, false).await;
        assert!(after(4098).await.unwrap().as_str().contains(".ended/"));
        // Left by an upload that never finished.
        let part = archive.paths().part(WalFileName::Segment(SegmentNo(5000).name(timeline, size)), "00", 0);
        let mut writer = walpoint_storage::object::ObjectWriter::new(
            archive.sealer(),
            walpoint_storage::object::ObjectKind::Part,
            &part,
        )
        .unwrap();
        writer.frame(b"x").unwrap();
        archive.store().create_once(&writer.finish().unwrap()).await.unwrap();
        assert_eq!(after(4099).await, None);

        assert_eq!(archive.timelines().await.unwrap(), [timeline]);
        let listed = async |from: Option<u64>| -> Vec<WalEntry> {
            let from = from.map(|n| SegmentNo(n).name(timeline, size));
            archive.list(timeline, from).map_ok(|(entry, _)| entry).try_collect().await.unwrap()
        };
        assert_eq!(listed(None).await.len(), 5);
        let tail = listed(Some(4098)).await;
        assert_eq!(tail.len(), 4);
        assert_eq!(tail[0], WalEntry::File(WalFileName::Segment(SegmentNo(4098).name(timeline, size))));
    }
}
