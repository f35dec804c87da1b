//! Who is recorded where, and what that lets be acknowledged.

use super::super::super::fixtures::{Bed, two, uploader};
use super::*;

async fn recorded(bed: &Bed) -> Vec<RepositoryId> {
    let known = on_record(&bed.archive).await.unwrap().unwrap();
    known.members.iter().map(|member| member.repository).collect()
}

/// A third repository, in which the server of the first one has its lineage.
async fn third(main: &Bed) -> Bed {
    let third = Bed::named("third").await;
    let (lineage, id) = (third.archive.lineage(), third.archive.repository().id());
    crate::binding::add(&main.pgdata(), &lineage.cluster, id, lineage.id).unwrap();
    third
}

#[tokio::test]
async fn a_repository_acknowledges_alone_only_when_those_before_it_have_it_on_record() {
    let (main, far, before, cluster) = two().await;
    let id = |bed: &Bed| bed.archive.repository().id();
    let now = |bed: &Bed| vec![member(&bed.archive)];
    // As it was so far.
    before.record(&cluster, std::slice::from_ref(&main.archive), &now(&main)).await.unwrap();
    for bed in [&main, &far] {
        let known = on_record(&bed.archive).await.unwrap().unwrap();
        joined(&bed.archive, known, &now(&main), &[]).await.unwrap();
        assert_eq!(recorded(bed).await, [id(&main)]);
    }

    let own = std::slice::from_ref(&far.archive);
    let without = uploader(&[&far], &["far"]);
    let refused = without.record(&cluster, own, &now(&far)).await.unwrap_err();
    assert!(refused.text.contains("--lost-repo") && refused.text.contains("main"), "{}", refused.text);
    assert_eq!([recorded(&main).await, recorded(&far).await], [[id(&main)], [id(&main)]]);

    uploader(&[&main, &far], &["far"]).record(&cluster, own, &now(&far)).await.unwrap();
    let both = [id(&main), id(&far)];
    assert_eq!([recorded(&main).await, recorded(&far).await], [both, both]);
    without.record(&cluster, own, &now(&far)).await.unwrap();
    assert_eq!(recorded(&far).await, both, "once is enough");
}

#[tokio::test]
async fn a_repository_that_joins_others_is_not_recorded_where_one_of_them_is_away() {
    let (main, far, _, cluster) = two().await;
    let members = [member(&main.archive), member(&far.archive)];
    let known = on_record(&far.archive).await.unwrap().unwrap();
    joined(&far.archive, known, &members, &[]).await.unwrap();
    let third = Bed::named("third").await;
    let own = [far.archive.clone(), third.archive.clone()];
    let known = on_record(&third.archive).await.unwrap().unwrap();
    joined(&third.archive, known, &members, &[]).await.unwrap();
    let now = [member(&far.archive), member(&third.archive)];
    let without = uploader(&[&far, &third], &["far", "third"]);
    let all = without.record(&cluster, &own, &now).await.unwrap();
    assert!(!all, "it is recorded when that one is there");
    assert_eq!(recorded(&far).await.len(), 2, "recovery asks one that has everything");
}

/// Each may hold what the other one lacks: whichever acknowledges now, readers of either wait for both. Where one names a third one that is
/// away, that one does not record the others: it stays as it is, and its readers wait for that one.
#[tokio::test]
async fn repositories_that_were_registered_apart_record_each_other() {
    for (outside, away) in [(true, false), (false, false), (false, true)] {
        let (main, far, _, cluster) = two().await;
        let gone = AckMember { name: "gone".to_owned(), repository: RepositoryId([7; 16]) };
        for (bed, away) in [(&main, false), (&far, away)] {
            let known = on_record(&bed.archive).await.unwrap().unwrap();
            let own = [member(&bed.archive)].into_iter().chain(away.then(|| gone.clone()));
            joined(&bed.archive, known, &own.collect::<Vec<_>>(), &[]).await.unwrap();
        }
        let [of_main, of_far] = [&main, &far].map(|bed| bed.archive.repository().id());
        let own = [main.archive.clone(), far.archive.clone()];
        if outside {
            record_each_other(&own.iter().collect::<Vec<_>>()).await;
        } else {
            let now = own.each_ref().map(member);
            let all = uploader(&[&main, &far], &["main", "far"]).record(&cluster, &own, &now).await;
            assert_eq!(all.unwrap(), !away);
        }
        assert_eq!(recorded(&main).await, [of_main, of_far], "{outside} {away}");
        let behind = if away { gone.repository } else { of_main };
        assert_eq!(recorded(&far).await, [of_far, behind], "{outside} {away}");
    }
}

/// What was registered apart takes the place of none that is away: its readers would end before what is acknowledged now.
#[tokio::test]
async fn one_that_was_registered_apart_does_not_acknowledge_for_one_that_is_away() {
    let (main, far, _, cluster) = two().await;
    let gone = AckMember { name: "gone".to_owned(), repository: RepositoryId([7; 16]) };
    for (bed, by) in [(&main, gone.clone()), (&far, member(&far.archive))] {
        let known = on_record(&bed.archive).await.unwrap().unwrap();
        joined(&bed.archive, known, &[by], &[]).await.unwrap();
    }
    let own = [main.archive.clone(), far.archive.clone()];
    let now = own.each_ref().map(member);
    let uploader = uploader(&[&main, &far], &["main", "far"]);
    let refused = uploader.record(&cluster, &own, &now).await.unwrap_err();
    assert!(refused.text.contains("gone"), "{}", refused.text);
    assert_eq!(recorded(&main).await, [gone.repository]);
}

/// A repository outside `ack` that cannot be written holds nothing up, where one on record acknowledges.
#[tokio::test]
async fn one_outside_that_takes_no_records_holds_nothing_up() {
    let (main, far, _, cluster) = two().await;
    let third = third(&main).await;
    for bed in [&main, &far] {
        let known = on_record(&bed.archive).await.unwrap().unwrap();
        let members = [member(&main.archive), member(&far.archive)];
        joined(&bed.archive, known, &members, &[]).await.unwrap();
    }
    far.refuse_record(1);
    let own = [main.archive.clone(), third.archive.clone()];
    let now = own.each_ref().map(member);
    let uploader = uploader(&[&main, &far, &third], &["main", "third"]);
    assert!(!uploader.record(&cluster, &own, &now).await.unwrap(), "it is recorded there later");
}

#[tokio::test]
async fn what_could_not_be_recorded_is_tried_again() {
    tokio::time::pause();
    let recorded = Recorded::default();
    recorded.note(1, false);
    assert!(recorded.is_enough(1) && !recorded.is_enough(2));
    tokio::time::advance(REST).await;
    assert!(!recorded.is_enough(1));
    recorded.note(1, true);
    tokio::time::advance(REST).await;
    assert!(recorded.is_enough(1) && !recorded.is_enough(2));
}

#[tokio::test]
async fn a_new_member_records_nothing_before_the_old_ones_do() {
    let (main, far, uploader, cluster) = two().await;
    let old = [member(&main.archive)];
    let known = on_record(&far.archive).await.unwrap().unwrap();
    joined(&far.archive, known, &old, &[]).await.unwrap();
    main.take_no_records();
    let (own, now) = ([far.archive.clone(), main.archive.clone()], [member(&far.archive), old[0].clone()]);
    uploader.record(&cluster, &own, &now).await.unwrap_err();
    assert_eq!(recorded(&far).await, [main.archive.repository().id()], "the old one cannot be written");
}

#[tokio::test]
async fn those_that_a_repository_on_record_names_are_asked_too() {
    let (main, far, _, cluster) = two().await;
    let third = third(&main).await;
    let before = [member(&main.archive), member(&third.archive)];
    for (bed, members) in [(&main, &before[..]), (&third, &before[..]), (&far, &before[..1])] {
        let known = on_record(&bed.archive).await.unwrap().unwrap();
        joined(&bed.archive, known, members, &[]).await.unwrap();
    }
    let (own, now) = (std::slice::from_ref(&far.archive), [member(&far.archive)]);
    let refused = uploader(&[&main, &far], &["far"]).record(&cluster, own, &now).await.unwrap_err();
    assert!(refused.text.contains("repository third"), "{}", refused.text);
    assert!(uploader(&[&main, &far, &third], &["far"]).record(&cluster, own, &now).await.unwrap());
    for bed in [&main, &third, &far] {
        assert!(
            recorded(bed).await.contains(&far.archive.repository().id()),
            "{}",
            bed.archive.repository().name()
        );
    }
}

#[tokio::test]
async fn a_repository_outside_that_hangs_delays_an_acknowledgement_by_its_time_limit_only() {
    let (main, far, _, cluster) = two().await;
    let third = third(&main).await;
    let before = [member(&main.archive), member(&third.archive)];
    for bed in [&main, &third, &far] {
        let known = on_record(&bed.archive).await.unwrap().unwrap();
        joined(&bed.archive, known, &before, &[]).await.unwrap();
    }
    let (own, now) = ([main.archive.clone(), far.archive.clone()], [before[0].clone(), member(&far.archive)]);
    let uploader = uploader(&[&main, &far, &third], &["main", "far"]);
    let hanging = third.hang_record(1);
    let began = std::time::Instant::now();
    assert!(!uploader.record(&cluster, &own, &now).await.unwrap(), "it is recorded later");
    assert!(began.elapsed() < TIME_LIMIT * 3, "{:?}", began.elapsed());
    drop(hanging);
}

#[tokio::test]
async fn one_that_was_replaced_and_comes_back_is_reported() {
    let (main, far, ..) = two().await;
    let (lost, third) = (main.archive.repository().id(), Bed::named("third").await);
    let known = on_record(&far.archive).await.unwrap().unwrap();
    joined(&far.archive, known, &[member(&main.archive)], &[]).await.unwrap();
    let known = on_record(&far.archive).await.unwrap().unwrap();
    let next = known.superseded_by(&[member(&third.archive)], &[], &[lost]).unwrap();
    far.archive.repository().supersede_acknowledging(far.archive.lineage(), &next).await.unwrap();
    let refused = joined_or_reported(&far.archive, next, &[member(&main.archive)]).await.unwrap_err();
    assert!(refused.text.contains("another one took the place"), "{}", refused.text);
}

#[tokio::test]
async fn a_damaged_record_lets_no_repository_acknowledge_alone() {
    let (main, far, _, cluster) = two().await;
    let (own, now) = (std::slice::from_ref(&far.archive), [member(&far.archive)]);
    let old = [member(&main.archive)];
    for bed in [&main, &far] {
        let known = on_record(&bed.archive).await.unwrap().unwrap();
        joined(&bed.archive, known, &old, &[]).await.unwrap();
    }
    far.damage_record(1);
    let refused = uploader(&[&far], &["far"]).record(&cluster, own, &now).await.unwrap_err();
    assert!(refused.text.contains("--lost-repo"), "what it named before counts: {}", refused.text);
    // The other one records it, and that is read.
    assert!(uploader(&[&main, &far], &["far"]).record(&cluster, own, &now).await.unwrap());
    assert_eq!(recorded(&main).await.len(), 2);
    main.damage_record(2);
    let main_alone = uploader(&[&main], &["main"]);
    assert!(main_alone.record(&cluster, std::slice::from_ref(&main.archive), &old).await.unwrap());

    let third = Bed::named("third").await;
    let known = on_record(&third.archive).await.unwrap().unwrap();
    joined(&third.archive, known, &old, &[]).await.unwrap();
    let (own, now) = (std::slice::from_ref(&third.archive), [member(&third.archive)]);
    let refused = uploader(&[&main, &far, &third], &["third"]).record(&cluster, own, &now).await.unwrap_err();
    assert!(refused.text.contains("it is not known which"), "{}", refused.text);
}
