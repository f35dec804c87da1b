//! The look-ahead: how far it goes, in which order, where it stops, and that its result is used.

use super::script::End;
use super::*;
use crate::wal::problems::see_waiting;
use crate::wal::ready::look_ahead;

/// How far ahead of PostgreSQL.
const WINDOW: usize = 3;

/// A look-ahead until dropped.
struct Looking(JoinHandle<anyhow::Result<()>>);

impl Drop for Looking {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn look(bed: &Bed) -> Looking {
    Looking(tokio::spawn(look_ahead(Arc::clone(&bed.archiver), WINDOW, |_| {})))
}

/// PostgreSQL asks for a file until it is stored, and goes on.
async fn archive(bed: &Bed, request: &PushRequest) {
    assert_eq!(bed.pushed(request).await.0.outcome, PushOutcome::Stored);
    bed.done(request.name.parse().unwrap());
}

/// Longer than the look-ahead takes to see anything.
async fn settle() {
    tokio::time::sleep(secs(30)).await;
}

#[tokio::test(start_paused = true)]
async fn it_begins_with_the_first_question_and_goes_no_further_than_the_window() {
    let bed = Bed::new();
    let requests: Vec<_> = (1..=8).map(|number| bed.finish(segment(number))).collect();
    let history: WalFileName = "00000002.history".parse().unwrap();
    let asked = bed.finish(history);
    let _looking = look(&bed);
    settle().await;
    assert!(bed.script().begun().is_empty(), "PostgreSQL has asked for nothing");

    archive(&bed, &asked).await;
    settle().await;
    let expected = [history, segment(1), segment(2), segment(3)];
    assert_eq!(bed.script().begun(), expected, "the history first, then the window behind it");

    for (n, request) in requests.iter().enumerate() {
        let before = bed.script().attempts(Some(segment(u32::try_from(n + 1).unwrap()))).len();
        let (reply, took) = bed.pushed(request).await;
        let after = bed.script().attempts(Some(segment(u32::try_from(n + 1).unwrap()))).len();
        assert_eq!((reply.outcome, before, after), (PushOutcome::Stored, 1, 1), "{}", request.name);
        assert_eq!(took, Duration::ZERO, "it is stored already");
        bed.done(request.name.parse().unwrap());
        settle().await;
        assert_eq!(bed.script().begun().len(), (n + 2 + WINDOW).min(9));
    }
}

#[tokio::test(start_paused = true)]
async fn a_file_that_waits_is_uploaded_before_its_turn_while_the_first_is_under_way() {
    let bed = Bed::new();
    let requests: Vec<_> = (1..=4).map(|number| bed.finish(segment(number))).collect();
    bed.script().answers(Answer::Stores(secs(10)));
    let _looking = look(&bed);
    let push = bed.push(&requests[0]);
    tokio::time::sleep(secs(1)).await;
    assert_eq!(bed.script().begun(), [segment(1), segment(2), segment(3)], "one upload of the first one");
    assert_eq!(push.await.unwrap().outcome, PushOutcome::Stored);
    bed.done(segment(1));
    let (reply, took) = bed.pushed(&requests[1]).await;
    assert_eq!((reply.outcome, took < secs(1)), (PushOutcome::Stored, true), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn it_stops_behind_a_refusal_and_repeats_only_that_and_not_at_once() {
    let bed = Bed::new();
    let requests: Vec<_> = (1..=9).map(|number| bed.finish(segment(number))).collect();
    bed.script().answers_for(segment(2), Answer::Refuses(Duration::ZERO));
    let _looking = look(&bed);
    archive(&bed, &requests[0]).await;
    tokio::time::sleep(secs(150)).await;
    for (number, attempts) in [(1, 1), (3, 1), (4, 1), (5, 0), (9, 0)] {
        assert_eq!(bed.script().attempts(Some(segment(number))).len(), attempts, "{number}");
    }
    let refused = bed.script().attempts(Some(segment(2)));
    assert!((3..=8).contains(&refused.len()), "{}", refused.len());
    assert!(refused.windows(2).all(|two| two[1].begun - two[0].begun >= REST_AFTER_FAILURE), "{refused:?}");

    let (reply, _) = bed.pushed(&requests[1]).await;
    assert_eq!(reply.outcome, PushOutcome::Failed);
    assert_eq!(
        bed.script().attempts(Some(segment(2))).len(),
        refused.len() + 1,
        "PostgreSQL's question counts"
    );
    bed.script().answers_for(segment(2), Answer::Stores(Duration::ZERO));
    archive(&bed, &requests[1]).await;
    settle().await;
    assert_eq!(bed.script().attempts(Some(segment(5))).len(), 1, "it goes on");
}

#[tokio::test(start_paused = true)]
async fn a_failure_ahead_of_time_is_no_answer() {
    let bed = Bed::new();
    let requests: Vec<_> = (1..=3).map(|number| bed.finish(segment(number))).collect();
    bed.script().answers_for(segment(2), Answer::Refuses(Duration::ZERO));
    let _looking = look(&bed);
    archive(&bed, &requests[0]).await;
    settle().await;
    assert!(bed.archiver.refused.borrow().is_none());
    bed.script().answers_for(segment(2), Answer::Stores(Duration::ZERO));
    archive(&bed, &requests[1]).await;
}

#[tokio::test(start_paused = true)]
async fn a_server_that_stops_asking_or_was_restarted_gets_nothing_stored_ahead() {
    let bed = Bed::new();
    let (first, second) = (bed.finish(segment(1)), bed.finish(segment(2)));
    let _looking = look(&bed);
    archive(&bed, &first).await;
    settle().await;
    assert_eq!(bed.script().begun(), [segment(1), segment(2)]);
    tokio::time::sleep(secs(200)).await;
    let third = bed.finish(segment(3));
    settle().await;
    assert_eq!(bed.script().begun().len(), 2, "segment 2 waited for three minutes without a question");

    archive(&bed, &second).await;
    settle().await;
    assert_eq!(bed.script().begun(), [segment(1), segment(2), segment(3)], "it asked");

    bed.server_is(1_800_000_000, "ready");
    bed.finish(segment(4));
    settle().await;
    assert_eq!(bed.script().begun().len(), 3, "another start of the server has not asked");
    archive(&bed, &third).await;
    settle().await;
    assert_eq!(bed.script().begun().len(), 4);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_archives_without_a_question_gets_nothing_stored_ahead() {
    let bed = Bed::new();
    let first = bed.finish(segment(1));
    let _looking = look(&bed);
    archive(&bed, &first).await;
    settle().await;
    bed.finish(segment(2));
    settle().await;
    assert_eq!(bed.script().begun(), [segment(1), segment(2)]);
    // archive_command = '/bin/true'
    File::create(bed.mark(segment(2)).with_extension("done")).unwrap();
    bed.done(segment(2));
    settle().await;
    let third = bed.finish(segment(3));
    settle().await;
    assert_eq!(bed.script().begun().len(), 2, "nothing waited for long, and no question came");

    archive(&bed, &third).await;
    settle().await;
    bed.finish(segment(4));
    settle().await;
    assert_eq!(bed.script().begun(), [1, 2, 3, 4].map(segment), "it asks again");
}

#[tokio::test(start_paused = true)]
async fn a_file_that_goes_is_passed() {
    let bed = Bed::new();
    let requests: Vec<_> = (1..=6).map(|number| bed.finish(segment(number))).collect();
    bed.script().answers_for(segment(2), Answer::Hangs);
    let _looking = look(&bed);
    archive(&bed, &requests[0]).await;
    settle().await;
    // Removed by a person, with its mark.
    bed.remove(segment(3));
    bed.done(segment(3));
    settle().await;
    let begun = bed.script().begun();
    assert_eq!(begun, [1, 2, 3, 4, 5].map(segment), "the window is filled again");
    let hanging = bed.script().attempts(Some(segment(2)));
    assert_eq!((hanging.len(), hanging[0].end), (1, End::UnderWay));
}

#[tokio::test(start_paused = true)]
async fn a_long_backlog_is_stored_once_and_in_order() {
    let bed = Bed::new();
    let requests: Vec<_> = (1..=150).map(|number| bed.finish(segment(number))).collect();
    bed.script().answers(Answer::Stores(Duration::from_millis(20)));
    let _looking = look(&bed);
    for request in &requests {
        archive(&bed, request).await;
    }
    assert_eq!(bed.script().begun(), (1..=150).map(segment).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn a_server_that_does_not_ask_is_noticed_with_the_look_ahead_off() {
    let bed = Bed::new();
    bed.finish(segment(1));
    for _ in 0..5 {
        see_waiting(&bed.archiver).await.unwrap();
        tokio::time::sleep(secs(50)).await;
    }
    assert!(bed.archiver.asking().neglected().await.unwrap().is_some());
}
