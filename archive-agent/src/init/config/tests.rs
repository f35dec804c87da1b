use std::io::Write;

use walpoint_storage::store::settings::Provider;

use super::*;

fn args(pgdata: &str) -> InitArgs {
    InitArgs {
        pgdata: Some(pgdata.into()),
        conninfo: Some("host=/tmp user='a b'".to_owned()),
        push_socket: Some("/run/x.push".into()),
        repo_name: "main".to_owned(),
        new_lineage: false,
        even_if_bound: false,
        lost_repo: Vec::new(),
        encrypt: false,
        secret: SecretArgs::default(),
        store: StoreArgs::default(),
    }
}

fn common(config: &Path, url: Option<&str>, cluster: &str) -> CommonArgs {
    CommonArgs {
        config: Some(config.to_owned()),
        repo: url.map(|url| url.parse().unwrap()).into_iter().collect(),
        cluster: Some(cluster.parse().unwrap()),
        ..CommonArgs::default()
    }
}

#[test]
fn a_file_is_written_once_extended_by_what_is_new_and_never_changed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sub/walpoint.toml");
    let first = plan(&common(&path, Some("file:///r"), "a.b"), &args("/data")).unwrap();
    assert_eq!(first.write().unwrap(), Change::Written);
    let selection = common(&path, None, "a.b").select::<StoreSettings>().unwrap();
    assert_eq!(selection.settings.pgdata.unwrap(), Path::new("/data"));
    assert_eq!(selection.settings.conninfo.unwrap(), "host=/tmp user='a b'");
    assert_eq!(selection.repositories, [("main".to_owned(), StoreSettings::at("file:///r"))]);

    let again = plan(&common(&path, Some("file:///r"), "a.b"), &args("/data")).unwrap();
    assert_eq!((again.write().unwrap(), again.by_hand), (Change::Unchanged, None));
    let without = plan(&common(&path, None, "a.b"), &args("/data")).unwrap();
    assert_eq!(without.write().unwrap(), Change::Unchanged);

    let mut second = args("/data2");
    second.push_socket = Some("/run/y.push".into());
    let other = plan(&common(&path, Some("file:///r"), "b"), &second).unwrap();
    assert_eq!(other.write().unwrap(), Change::Extended);
    let config = Config::<StoreSettings>::read(&path).unwrap();
    assert_eq!((config.cluster.len(), config.repository.len()), (2, 1));

    let before = std::fs::read_to_string(&path).unwrap();
    let changed = plan(&common(&path, Some("file:///r"), "b"), &args("/elsewhere")).unwrap();
    assert_eq!(changed.write().unwrap(), Change::Refused);
    assert!(changed.by_hand.as_ref().unwrap().contains("pgdata = \"/elsewhere\""), "{changed:?}");
    let mut offsite = args("/data2");
    offsite.push_socket = None;
    offsite.repo_name = "offsite".to_owned();
    let moved = plan(&common(&path, Some("file:///other"), "b"), &offsite).unwrap();
    assert_eq!(moved.write().unwrap(), Change::Refused);
    let text = moved.by_hand.unwrap();
    assert!(text.contains("[repository.offsite]") && text.contains("[\"main\", \"offsite\"]"), "{text}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), before);
    let taken = plan(&common(&path, Some("file:///other"), "c"), &args("/c")).unwrap_err();
    assert!(taken.to_string().contains("--repo-name"), "{taken}");
}

#[test]
fn paths_are_absolute_in_what_is_printed_and_in_what_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("walpoint.toml");
    let mut relative = args("data");
    relative.push_socket = Some("x.push".into());
    relative.store.ca_file = Some("ca.pem".to_owned());
    relative.store.options = vec!["session_token_file=token".to_owned()];
    let first = plan(&common(&path, Some("s3://bucket"), "a"), &relative).unwrap();
    first.write().unwrap();
    let here = std::env::current_dir().unwrap();
    let written = common(&path, None, "a").select::<StoreSettings>().unwrap();
    for settings in [&first.settings, &written.settings] {
        assert_eq!(settings.push_socket.as_deref(), Some(&*here.join("x.push")));
        assert_eq!(settings.pgdata.as_deref(), Some(&*here.join("data")));
    }
    assert_eq!(first.repositories, written.repositories);
    let again = plan(&common(&path, Some("s3://bucket"), "a"), &relative).unwrap();
    assert_eq!((again.write().unwrap(), again.by_hand), (Change::Unchanged, None));
}

#[test]
fn tables_that_every_program_would_refuse_are_not_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("walpoint.toml");
    let first = plan(&common(&path, Some("file:///r"), "a"), &args("/data")).unwrap();
    assert_eq!(first.write().unwrap(), Change::Written);
    let before = std::fs::read_to_string(&path).unwrap();
    let refused = plan(&common(&path, Some("file:///r"), "b"), &args("/data2")).unwrap_err();
    assert_eq!(refused.status, 2);
    let text = refused.to_string();
    assert!(text.contains("nothing was changed") && text.contains("shared with cluster \"a\""), "{text}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), before);
}

#[test]
fn a_repository_of_the_configuration_is_no_url() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("walpoint.toml");
    let refused = plan(&common(&path, Some("main"), "a"), &args("/data")).unwrap_err();
    assert!(refused.status == 2 && refused.to_string().contains("\nHINT: Give the URL"), "{refused}");
}

#[test]
fn options_of_the_store_are_checked_and_kept() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("walpoint.toml");
    let mut args = args("/data");
    args.store.path_style = true;
    args.store.endpoint = Some("http://127.0.0.1:9".to_owned());
    args.store.options =
        vec!["retries=7".to_owned(), "checksum=none".to_owned(), "payload_signing=true".to_owned()];
    let first = plan(&common(&path, Some("s3://bucket/x"), "a"), &args).unwrap();
    first.write().unwrap();
    let settings = &common(&path, None, "a").select::<StoreSettings>().unwrap().repositories[0].1;
    let Ok(Provider::S3(s3)) = &settings.provider else { panic!("{settings:?}") };
    assert_eq!(
        (settings.limits.retries, s3.path_style, s3.payload_signing),
        (Some(7), Some(true), Some(true))
    );
    for (option, told) in
        [("regoin=x", "regoin"), ("nothing", "KEY=VALUE"), ("secret_access_key=x", "secret_access_key")]
    {
        args.store.options = vec![option.to_owned()];
        let error = plan(&common(&path, Some("s3://bucket/x"), "a"), &args).unwrap_err();
        assert_eq!(error.status, 2);
        assert!(error.to_string().contains(told), "{error}");
    }
}

/// A repository by its URL acknowledges with those of the file, unless that says which do.
#[test]
fn a_repository_by_its_url_acknowledges_as_the_file_says() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("walpoint.toml");
    plan(&common(&path, Some("file:///r"), "a"), &args("/data")).unwrap().write().unwrap();
    let mut offsite = args("/data");
    offsite.repo_name = "offsite".to_owned();
    let planned = |args: &InitArgs| plan(&common(&path, Some("file:///other"), "a"), args);
    let acknowledging = || planned(&offsite).unwrap().settings.ack.unwrap();
    assert_eq!(acknowledging(), ["main", "offsite"]);
    let mut file = std::fs::OpenOptions::new().append(true).open(&path).unwrap();
    file.write_all(b"ack = [\"main\"]\n").unwrap();
    assert_eq!(acknowledging(), ["main"]);
    let new_lineage = InitArgs { new_lineage: true, ..offsite.clone() };
    let lost = "00000000000000000000000000000000".parse().unwrap();
    for everywhere in [new_lineage, InitArgs { lost_repo: vec![lost], ..offsite.clone() }] {
        let told = planned(&everywhere).unwrap_err();
        assert!(format!("{:#}", told.error).contains("without --repo"), "{told:?}");
    }
}
