use walpoint_base::table::WrongKey;

use super::*;

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Store {
    url: String,
}

impl FromTable for Store {
    type Table = Self;

    fn from_table(table: Self) -> Result<Self, WrongKey> {
        Ok(table)
    }
}

fn file(text: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    walpoint_base::durable::replace(file.path(), text.as_bytes(), 0o600).unwrap();
    file
}

fn repo(given: &[&str]) -> Vec<RepoArgument> {
    given.iter().map(|text| text.parse().unwrap()).collect()
}

fn two_clusters() -> tempfile::NamedTempFile {
    let cluster = |name| format!("[cluster.{name}]\nrepositories = [\"m\"]\npgdata = \"/{name}\"\n");
    file(&format!("[repository.m]\nurl = \"file:///m\"\n{}{}", cluster("a"), cluster("b")))
}

#[test]
fn what_needs_a_file_is_not_sent_for_a_url() {
    let error = CommonArgs::default().require_config().unwrap_err();
    assert!(error.status == 2 && !error.to_string().contains("--repo"), "{error}");
    assert!(error.to_string().contains("HINT: Give --config FILE or set WALPOINT_CONFIG."), "{error}");
    let given = CommonArgs { repo: repo(&["/x"]), ..CommonArgs::default() };
    given.require_config().unwrap();
    let masked = CommonArgs { repo: repo(&["s3://k:hidden@b/p"]), ..CommonArgs::default() };
    let error = masked.without_repo("archiving").unwrap_err().to_string();
    assert!(error.contains("s3://***@b/p") && !error.contains("hidden"), "{error}");
}

#[test]
fn one_of_several_clusters_has_to_be_named() {
    let config = two_clusters();
    let mut args = CommonArgs { config: Some(config.path().to_owned()), ..CommonArgs::default() };
    let error = args.select::<Store>().unwrap_err();
    assert_eq!(error.status, 2);
    assert!(error.to_string().contains("a, b"), "{error}");
    args.cluster = Some("b".parse().unwrap());
    let selection = args.select::<Store>().unwrap();
    assert_eq!(selection.settings.pgdata.unwrap(), PathBuf::from("/b"));
    assert_eq!(selection.repositories[0].1.url, "file:///m");
    args.cluster = Some("c".parse().unwrap());
    assert!(args.select::<Store>().unwrap_err().to_string().contains("[cluster.c]"));
}

#[test]
fn readers_work_without_a_file() {
    let mut args = CommonArgs { repo: repo(&["file:///x"]), ..CommonArgs::default() };
    assert!(args.select::<Store>().unwrap_err().to_string().contains("--cluster"));
    args.cluster = Some("any".parse().unwrap());
    assert_eq!(args.select::<Store>().unwrap().repositories[0].1.url, "file:///x");
}

#[test]
fn what_has_a_slash_is_a_url() {
    for (text, url) in
        [("main", false), ("off-site.2", false), ("s3://b", true), ("/backup", true), ("a/b", true)]
    {
        let parsed: RepoArgument = text.parse().unwrap();
        assert_eq!(matches!(parsed, RepoArgument::Url(_)), url, "{text}");
        assert_eq!(parsed.to_string(), text);
    }
    "".parse::<RepoArgument>().unwrap_err();
    assert_eq!(repository_name("main").unwrap(), "main");
    assert!(repository_name("a/b").unwrap_err().contains("no slash"));
}

#[test]
fn json_logs_go_with_json_unless_another_format_is_asked_for() {
    for (json, asked, expected) in [
        (false, None, LogFormat::Text),
        (true, None, LogFormat::Json),
        (true, Some(LogFormat::Text), LogFormat::Text),
        (false, Some(LogFormat::Json), LogFormat::Json),
    ] {
        let args = CommonArgs { json, log_format: asked, ..CommonArgs::default() };
        assert_eq!(args.log_format(), expected);
    }
}

#[test]
fn spans_have_units() {
    for (text, seconds) in [("90s", 90), ("5m", 300), ("1h 30m", 5400), ("1h30m", 5400), ("1d 2h", 93_600)] {
        assert_eq!(span(text).unwrap(), Duration::from_secs(seconds), "{text}");
    }
    for bad in ["60", "", "soon", "0s", "-5m", "1y", "9223372036854775807s"] {
        span(bad).unwrap_err();
    }
    assert!(span("60").unwrap_err().contains("has units"));
}

#[test]
fn a_name_chooses_among_the_clusters_repositories() {
    let tables =
        ["a", "b", "c"].map(|name| format!("[repository.{name}]\nurl = \"file:///{name}\"\n")).concat();
    let cluster = "[cluster.x]\nrepositories = [\"a\", \"b\"]\nack = [\"b\"]\n";
    let config = file(&(tables + cluster));
    let select = |given: &[&str]| {
        let config = Some(config.path().to_owned());
        CommonArgs { config, repo: repo(given), ..CommonArgs::default() }.select::<Store>()
    };
    let names = |selection: &Selection<Store>| {
        selection.repositories.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>()
    };
    let all = select(&[]).unwrap();
    assert_eq!(
        (names(&all), all.settings.ack_set(), all.chosen),
        (vec!["a".into(), "b".into()], &["b".to_owned()][..], false)
    );
    let one = select(&["a"]).unwrap();
    assert_eq!(
        (names(&one), one.settings.ack_set(), one.chosen),
        (vec!["a".into()], &["a".to_owned()][..], true)
    );
    assert_eq!(names(&select(&["b", "a"]).unwrap()), ["a", "b"], "in the order of the configuration");
    for unknown in ["c", "gone"] {
        let error = select(&["a", unknown]).unwrap_err();
        assert!(error.status == 2 && error.to_string().contains("\nDETAIL: It has: a, b."), "{error}");
    }
    for several in [["a", "file:///x"], ["file:///x", "file:///y"]] {
        let error = select(&several).unwrap_err();
        assert!(error.status == 2 && error.to_string().contains("with names only"), "{error}");
    }
    assert!(select(&["file:///x"]).unwrap().chosen);
}

#[test]
fn what_is_not_read_acknowledges_all_the_same() {
    let tables = ["a", "b"].map(|name| format!("[repository.{name}]\nurl = \"file:///{name}\"\n")).concat();
    let select = |ack: &str, given: &[&str]| {
        let config = file(&format!("{tables}[cluster.x]\nrepositories = [\"a\", \"b\"]\n{ack}"));
        let config = Some(config.path().to_owned());
        let args = CommonArgs { config, repo: repo(given), ..CommonArgs::default() };
        args.select_to_read::<Store>()
    };
    let cases: [(&[&str], &[&str], &[&str]); 2] = [(&[], &["a", "b"], &[]), (&["a"], &["a"], &["b"])];
    for (ack, expected) in [("ack = [\"b\"]\n", &["b"][..]), ("", &["a", "b"])] {
        for (given, read, left_out) in cases {
            let selection = select(ack, given).unwrap();
            let names = selection.repositories.iter().map(|(name, _)| name.as_str());
            assert_eq!(names.collect::<Vec<_>>(), read, "{ack} {given:?}");
            assert_eq!(selection.settings.ack_set(), expected, "{ack} {given:?}");
            assert_eq!(selection.settings.repositories, ["a", "b"], "{ack} {given:?}");
            assert_eq!(selection.left_out(), left_out, "{ack} {given:?}");
            assert_eq!(selection.chosen, !given.is_empty());
        }
    }
    assert_eq!(select("", &["c"]).unwrap_err().status, 2);
    let url = select("", &["file:///x"]).unwrap();
    assert_eq!((url.settings.ack_set(), url.left_out().len()), (&["repo".to_owned()][..], 0));
    assert!(url.chosen);
}

#[test]
fn a_command_about_all_repositories_takes_none() {
    CommonArgs::default().without_repo("push").unwrap();
    let args = CommonArgs { repo: repo(&["a"]), ..CommonArgs::default() };
    assert_eq!(args.without_repo("push").unwrap_err().status, 2);
}

#[test]
fn repo_replaces_only_the_repositories() {
    let config = two_clusters();
    let args = CommonArgs {
        config: Some(config.path().to_owned()),
        repo: repo(&["file:///x"]),
        cluster: Some("a".parse().unwrap()),
        ..CommonArgs::default()
    };
    let selection = args.select::<Store>().unwrap();
    assert_eq!(selection.settings.pgdata.unwrap(), PathBuf::from("/a"));
    assert_eq!(selection.repositories[0].1.url, "file:///x");
}
