//! How far a file is, against what happens then: what the push hears, and how often the file is stored anew for it.

use super::*;

/// How far a file is.
#[derive(Debug, Clone, Copy)]
enum State {
    /// Not asked for.
    New,
    /// Its first attempt is under way, for 9 s more.
    UnderWay,
    /// It failed, and is tried again in a moment.
    Retried,
    /// Its attempt has no answer, and gets none.
    Hangs,
    Stored,
    /// Refused a second ago.
    Refused,
}

/// What happens.
#[derive(Debug, Clone, Copy)]
enum Event {
    /// PostgreSQL asks for it.
    Push,
    /// Two clients do.
    TwoPushes,
    /// The look-ahead comes to it.
    LookAhead,
    /// The client goes after a second.
    ClientGoes,
    /// It was rewritten, and is asked for.
    Rewritten,
    /// It was removed, and is asked for.
    Removed,
    /// The data directory is bound to another lineage, and it is asked for.
    OtherLineage,
    /// The daemon ends, and it is asked for.
    Stop,
}

const EVENTS: [Event; 8] = [
    Event::Push,
    Event::TwoPushes,
    Event::LookAhead,
    Event::ClientGoes,
    Event::Rewritten,
    Event::Removed,
    Event::OtherLineage,
    Event::Stop,
];

const YES: Option<PushOutcome> = Some(PushOutcome::Stored);
const NO: Option<PushOutcome> = Some(PushOutcome::Failed);

/// What each of [`EVENTS`] leads to: what is answered, if anything is asked, and how many attempts begin.
type Row = [(Option<PushOutcome>, usize); 8];

#[rustfmt::skip]
const TABLE: [(State, Row); 6] = [
    //                Push      TwoPushes LookAhead  ClientGoes Rewritten Removed   OtherLin. Stop
    (State::New,      [(YES, 1), (YES, 1), (None, 1), (None, 1), (YES, 1), (NO, 0),  (YES, 1), (NO, 0)]),
    (State::UnderWay, [(YES, 0), (YES, 0), (None, 0), (None, 0), (YES, 1), (NO, 0),  (YES, 1), (NO, 0)]),
    (State::Retried,  [(YES, 1), (YES, 1), (None, 1), (None, 1), (YES, 1), (NO, 1),  (YES, 2), (NO, 0)]),
    (State::Hangs,    [(NO, 0),  (NO, 0),  (None, 0), (None, 0), (NO, 0),  (NO, 0),  (NO, 0),  (NO, 0)]),
    (State::Stored,   [(YES, 0), (YES, 0), (None, 0), (None, 0), (YES, 1), (YES, 0), (YES, 1), (YES, 0)]),
    (State::Refused,  [(YES, 1), (YES, 1), (None, 0), (None, 1), (YES, 1), (NO, 0),  (YES, 1), (NO, 0)]),
];

/// Brings a file there by the look-ahead.
async fn bring(bed: &Bed, name: WalFileName, state: State) {
    let answer = match state {
        State::New => return,
        State::UnderWay => Answer::Stores(secs(10)),
        State::Retried => Answer::Fails(Duration::ZERO),
        State::Hangs => Answer::Hangs,
        State::Stored => Answer::Stores(Duration::ZERO),
        State::Refused => Answer::Refuses(Duration::ZERO),
    };
    bed.script().answers(answer);
    bed.archiver.start_ahead(name);
    tokio::time::sleep(secs(1)).await;
}

/// Lets it happen, and two minutes pass; what was answered, to all the same.
async fn happen(bed: &Bed, request: &PushRequest, event: Event) -> Option<PushOutcome> {
    let name = request.name.parse().unwrap();
    let mut pushes = Vec::new();
    match event {
        Event::Push => pushes.push(bed.push(request)),
        Event::TwoPushes => pushes.extend([bed.push(request), bed.push(request)]),
        Event::LookAhead => bed.archiver.start_ahead(name),
        Event::ClientGoes => {
            let gone = tokio::time::timeout(secs(1), bed.archiver.push(request)).await;
            assert!(gone.is_err() || gone.is_ok_and(|reply| reply.outcome == PushOutcome::Stored));
        }
        Event::Rewritten => pushes.push(bed.push(&bed.write(name))),
        Event::Removed => {
            bed.remove(name);
            pushes.push(bed.push(request));
        }
        Event::OtherLineage => {
            bed.script().enters_another_lineage();
            pushes.push(bed.push(request));
        }
        Event::Stop => {
            bed.archiver.abandon();
            pushes.push(bed.push(request));
        }
    }
    tokio::time::sleep(secs(120)).await;
    let mut outcomes = Vec::new();
    for push in pushes {
        assert!(push.is_finished(), "no answer in two minutes");
        outcomes.push(push.await.unwrap().outcome);
    }
    assert!(outcomes.windows(2).all(|two| two[0] == two[1]), "{outcomes:?}");
    outcomes.first().copied()
}

#[tokio::test(start_paused = true)]
async fn every_state_meets_every_event() {
    let mut wrong = Vec::new();
    for (state, row) in TABLE {
        for (event, expected) in EVENTS.into_iter().zip(row) {
            let bed = Bed::new();
            let request = bed.finish(segment(1));
            bring(&bed, segment(1), state).await;
            let before = bed.script().attempts(None).len();
            bed.script().answers(Answer::Stores(secs(10)));
            let outcome = happen(&bed, &request, event).await;
            let after = bed.script().attempts(None);
            // A stop may find an attempt at its first step.
            let attempts = after[before..].iter().filter(|attempt| attempt.end != script::End::Cancelled);
            let found = (outcome, attempts.count());
            if found != expected {
                wrong.push(format!("{state:?} and {event:?}: {found:?}, not {expected:?}"));
            }
            let left = lock(&bed.archiver.active).len();
            assert_eq!(
                left,
                usize::from(matches!((state, event), (State::Hangs, e) if !matches!(e, Event::Stop)))
            );
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What a repository that is found to be another one makes of what was stored.
#[tokio::test(start_paused = true)]
async fn what_was_stored_counts_only_while_its_repositories_are_there() {
    for (permanent, expected) in [(true, (PushOutcome::Failed, 1)), (false, (PushOutcome::Stored, 2))] {
        let bed = Bed::new();
        let request = bed.finish(segment(1));
        assert_eq!(bed.pushed(&request).await.0.outcome, PushOutcome::Stored);
        bed.script().misses_repositories(permanent);
        let (reply, _) = bed.pushed(&request).await;
        assert_eq!((reply.outcome, bed.script().attempts(None).len()), expected);
    }
}
