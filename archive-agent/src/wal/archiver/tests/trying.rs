//! How long a file is tried, how often, and what a push is answered.

use super::*;

/// Bytes of a segment are worth so long: a second for each MiB.
const LIMIT: Duration = secs(60 + 16);

#[tokio::test(start_paused = true)]
async fn a_failure_is_tried_again_after_pauses_that_double_to_five_seconds_until_the_push_timeout() {
    let bed = Bed::new();
    let request = bed.finish(segment(1));
    bed.script().answers(Answer::Fails(Duration::ZERO));
    let (reply, took) = bed.pushed(&request).await;
    assert_eq!((reply.outcome, reply.message.as_str()), (PushOutcome::Failed, "503: try again"));
    assert!(took >= PUSH_TIMEOUT && took < PUSH_TIMEOUT + secs(1), "{took:?}");

    let begun: Vec<Duration> = bed.script().attempts(None).iter().map(|attempt| attempt.begun).collect();
    assert!(begun.last().unwrap().as_secs() >= 59, "the last one is made when the time is over: {begun:?}");
    let pauses: Vec<Duration> = begun.windows(2).map(|two| two[1] - two[0]).collect();
    let mut full = Duration::from_millis(100);
    for pause in &pauses[..pauses.len() - 1] {
        let slack = Duration::from_millis(2);
        assert!(
            *pause <= full + slack && *pause + slack >= full * 3 / 4,
            "{pause:?} of {full:?}: {pauses:?}"
        );
        full = (full * 2).min(secs(5));
    }
    assert!(pauses.len() < 25, "{}", pauses.len());

    bed.script().answers(Answer::Stores(Duration::ZERO));
    let (reply, took) = bed.pushed(&request).await;
    assert_eq!(reply.outcome, PushOutcome::Stored, "PostgreSQL asks again, whatever failed before");
    assert!(took < secs(1));
    assert_eq!(reply.remember, [format!("remember {}", request.name)]);
    assert_eq!(reply.identity, request.identity);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_answered_at_once_to_all_who_asked() {
    let bed = Bed::new();
    let (request, other) = (bed.finish(segment(1)), bed.finish(segment(2)));
    bed.script().answers_for(segment(1), Answer::Refuses(secs(3)));
    bed.archiver.start_ahead(segment(1));
    tokio::time::sleep(secs(1)).await;
    let pushes: Vec<_> = (0..5).map(|_| bed.push(&request)).collect();
    let (reply, _) = bed.pushed(&other).await;
    assert_eq!(reply.outcome, PushOutcome::Stored, "another file does not wait for it");
    let begun = Instant::now();
    for push in pushes {
        let reply = push.await.unwrap();
        assert_eq!((reply.outcome, reply.message.as_str()), (PushOutcome::Failed, "403: not allowed"));
    }
    assert!(begun.elapsed() <= secs(2), "{:?}", begun.elapsed());
    assert_eq!(bed.script().attempts(Some(segment(1))).len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_does_not_answer_is_named_in_time_and_its_answer_is_used_when_it_comes() {
    let bed = Bed::new();
    let request = bed.finish(segment(1));
    bed.script().answers(Answer::Stores(secs(100)));
    let (reply, took) = bed.pushed(&request).await;
    let says = "not stored within 1m 16s: it waits for the script\nDETAIL: The daemon keeps trying.";
    assert_eq!((reply.outcome, reply.message.as_str()), (PushOutcome::Failed, says));
    assert!(took >= LIMIT && took < LIMIT + secs(1), "{took:?}");
    let (reply, took) = bed.pushed(&request).await;
    assert_eq!((reply.outcome, bed.script().attempts(None).len()), (PushOutcome::Stored, 1));
    assert!(took >= secs(23) && took < secs(25), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_store_that_failed_before_it_was_silent_is_quoted() {
    let bed = Bed::new();
    let request = bed.finish(segment(1));
    bed.script().answers(Answer::Fails(Duration::ZERO));
    let push = bed.push(&request);
    tokio::time::sleep(secs(1)).await;
    bed.script().answers(Answer::Hangs);
    let message = push.await.unwrap().message;
    assert!(message.contains("503: try again"), "{message}");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_stopping_is_answered_soon() {
    let bed = Bed::new();
    let request = bed.finish(segment(1));
    bed.script().answers(Answer::Hangs);
    bed.server_is(1_700_000_000, "stopping");
    let (reply, took) = bed.pushed(&request).await;
    assert_eq!(reply.outcome, PushOutcome::Failed);
    assert!(took >= secs(6) && took < secs(7), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_begins_to_stop_is_not_kept_waiting_by_what_it_asked_before() {
    let bed = Bed::new();
    let request = bed.finish(segment(1));
    bed.script().answers(Answer::Hangs);
    bed.server_is(1_700_000_000, "ready");
    let push = bed.push(&request);
    tokio::time::sleep(secs(20)).await;
    bed.server_is(1_700_000_000, "stopping");
    let begun = Instant::now();
    let message = push.await.unwrap().message;
    assert!(begun.elapsed() < secs(8), "{:?}: {message}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_file_that_is_not_the_one_that_is_meant_is_not_stored() {
    let bed = Bed::new();
    let request = bed.finish(segment(1));
    let other_server = FileIdentity { system_id: 8, ..request.identity };
    let other_file = FileIdentity { inode: 1, ..request.identity };
    for (identity, says) in [(other_server, "comes from 8\n"), (other_file, "is not the one that")] {
        let (reply, _) = bed.pushed(&PushRequest { identity, ..request.clone() }).await;
        let PushReply { outcome, message, .. } = reply;
        assert!(outcome == PushOutcome::Failed && message.contains(says), "{message}");
        assert!(message.contains("HINT: "), "{message}");
    }
    let (reply, _) = bed.pushed(&PushRequest { name: "pg_control".to_owned(), ..request.clone() }).await;
    assert_eq!(reply.outcome, PushOutcome::Failed);
    assert!(bed.script().begun().is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_upload_that_panics_is_an_answer_and_the_next_push_begins_anew() {
    let bed = Bed::new();
    let request = bed.finish(segment(1));
    bed.script().answers(Answer::Panics);
    let (one, two) = tokio::join!(bed.pushed(&request), bed.pushed(&request));
    for (reply, _) in [one, two] {
        assert_eq!(reply.outcome, PushOutcome::Failed);
        assert!(reply.message.starts_with("internal error"), "{}", reply.message);
    }
    bed.script().answers(Answer::Stores(Duration::ZERO));
    assert_eq!(bed.pushed(&request).await.0.outcome, PushOutcome::Stored);
}

/// What the health board shows of pushes that fail.
#[tokio::test(start_paused = true)]
async fn a_file_that_fails_is_shown_until_it_is_stored_or_waits_no_more() {
    let bed = Bed::new();
    let (first, second) = (bed.finish(segment(1)), bed.finish(segment(2)));
    let by_hand = bed.write(segment(3));
    let shown = Arc::new(Mutex::new(String::new()));
    let (working, failing) = (Arc::clone(&shown), Arc::clone(&shown));
    let showing = Arc::clone(&bed.archiver)
        .tell_refusals(move || lock(&working).clear(), move |problem| *lock(&failing) = problem.to_owned());
    let showing = tokio::spawn(showing);
    let shows = async || {
        tokio::time::sleep(secs(2)).await;
        lock(&shown).clone()
    };
    bed.script().answers(Answer::Refuses(Duration::ZERO));
    bed.pushed(&by_hand).await;
    assert_eq!(shows().await, "", "PostgreSQL does not wait for it");
    bed.pushed(&first).await;
    assert_eq!(shows().await, format!("\"{}\": 403: not allowed", segment(1)));
    bed.script().answers(Answer::Stores(Duration::ZERO));
    bed.pushed(&first).await;
    assert_eq!(shows().await, "");
    bed.script().answers(Answer::Refuses(Duration::ZERO));
    bed.pushed(&second).await;
    assert_ne!(shows().await, "");
    bed.done(segment(2));
    assert_eq!(shows().await, "");
    showing.abort();
}
