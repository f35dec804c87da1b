//! What is wrong with a configuration is found, and told with its line.

use walpoint_base::table::WrongKey;

use super::*;

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Store {
    url: String,
    #[serde(default)]
    sse: Option<String>,
}

impl FromTable for Store {
    type Table = Self;

    fn from_table(table: Self) -> Result<Self, WrongKey> {
        match &table.sse {
            Some(_) => Err(WrongKey {
                key: "sse",
                what: "\"sse\" is wrong".to_owned(),
                hint: "Remove it.".to_owned(),
            }),
            None => Ok(table),
        }
    }

    fn place(&self) -> Option<String> {
        Some(self.url.clone())
    }
}

fn parse(text: &str) -> Result<Config<Store>, String> {
    let (config, problems) = examine::examine(text, |_| Vec::new(), |_| Vec::new());
    config.ok_or_else(|| Problems(problems).to_string())
}

const GOOD: &str = "[repository.main]\nurl = \"file:///backup\"\n[cluster.prod]\nrepositories = [\"main\"]\n";

#[test]
fn a_minimal_file_has_defaults() {
    let config = parse(GOOD).unwrap();
    let (name, cluster) = config.cluster.first_key_value().unwrap();
    assert_eq!(cluster.push_socket(name), Path::new("/run/walpoint/prod.push"));
    assert_eq!(cluster.ack_set(), ["main"]);
    assert_eq!(config.repository["main"].url, "file:///backup");
    let budget = parse(&format!("{GOOD}fetch_timeout = \"90s\"\n")).unwrap();
    assert_eq!(duration(budget.cluster.values().next().unwrap().fetch_timeout), Duration::from_secs(90));
    let days = parse(&format!("{GOOD}fetch_timeout = \"1d 2h\"\n")).unwrap();
    assert_eq!(days.cluster.values().next().unwrap().fetch_timeout, SignedDuration::from_hours(26));
    assert_eq!(cluster.prefetch_max, ByteSize::mib(256));
    let off = parse(&format!("{GOOD}prefetch_max = 0\n")).unwrap();
    assert_eq!(off.cluster.values().next().unwrap().prefetch_max.as_u64(), 0);
}

#[test]
fn a_typo_is_told_with_line_and_key() {
    let error = parse(&format!("{GOOD}look_ahed = 3\n")).unwrap_err();
    assert_eq!(
        error,
        "line 5, [cluster.prod]: unknown key \"look_ahed\"\nHINT: Perhaps you meant \"look_ahead\"."
    );
    let error = parse("[repository.main]\nurl = \"x\"\nregoin = \"y\"\n").unwrap_err();
    assert!(error.contains("regoin") && error.contains("line 3"), "{error}");
}

#[test]
fn a_key_that_does_not_go_with_others_is_shown_in_its_line() {
    let twice = "[repository.far]\nurl = \"s3://far\"\nsse = \"AES256\"\n";
    let error = parse(&format!("{GOOD}{twice}")).unwrap_err();
    assert_eq!(error, "line 7, [repository.far]: \"sse\" is wrong\nHINT: Remove it.");
}

#[test]
fn contradictions_are_refused() {
    for (extra, told) in [
        ("ack = [\"other\"]", "not in \"repositories\""),
        ("ack = []", "\"ack\" is empty"),
        ("compression_level = 0", "1 to 19"),
        ("transfers = 0", "at least 1"),
        ("transfers = 4000000000000000000", "at most 1024"),
        ("queue_max = 50", "with its unit"),
        ("prefetch_max = 256", "with its unit"),
        ("max_rate = 20", "with its unit"),
        ("pgdata = \"data\"", "absolute"),
        ("spool = \"spool\"", "absolute"),
        ("push_socket = \"s\"", "line 5, [cluster.prod]: \"push_socket\" must be an absolute path"),
        ("fetch_socket = \"s\"", "\"fetch_socket\" must be an absolute path"),
        ("extra_paths = [\"/x\", \"etc\"]", "\"extra_paths\" must be absolute paths, and \"etc\" is none"),
        ("ack = [\"main\", \"main\"]", "\"ack\" names \"main\" twice"),
        ("[cluster.b]\nrepositories = [\"main\", \"main\"]", "\"repositories\" names \"main\" twice"),
        (
            "[repository.far]\nurl = \"file:///backup\"\n[cluster.b]\nrepositories = [\"main\", \"far\"]",
            "\"main\" and \"far\", which are one place",
        ),
        ("push_timeout = \"0s\"", "\"push_timeout\" must be a span of time above zero"),
        (
            "fetch_timeout = \"-5m\"",
            "line 5, [cluster.prod]: \"fetch_timeout\" must be a span of time above zero",
        ),
        ("prefetch_idle_timeout = \"0s\"", "above zero"),
        ("backup_wal_timeout = \"-1h\"", "above zero"),
        ("backup_wal_timeout = \"11000d\"", "longer than 10 years"),
        (
            "[daemon]\ndrain_timeout = \"0s\"",
            "line 6, [daemon]: \"drain_timeout\" must be a span of time above zero",
        ),
        ("[daemon]\ndrain_timeout = \"110000000h\"", "longer than 10 years"),
        ("[cluster.Prod]\nrepositories = [\"main\"]", "cluster name"),
        ("[cluster.b]\nrepositories = [\"gone\"]", "no [repository.gone]"),
        ("[cluster.b]\nrepositories = []", "\nHINT: Name at least one"),
        ("push_socket = \"/s\"\n[cluster.b]\nrepositories = [\"main\"]\npush_socket = \"/s\"", "shared"),
    ] {
        let error = parse(&format!("{GOOD}{extra}\n")).unwrap_err();
        assert!(error.contains(told), "{extra}: {error}");
    }
}

#[test]
fn sockets_that_can_never_be_opened_are_refused() {
    for directory in ["/tmp", "/tmp/.", "/var/tmp", "/dev/shm"] {
        let error = parse(&format!("{GOOD}push_socket = \"{directory}/main.push\"\n")).unwrap_err();
        assert!(error.contains("line 5, [cluster.prod]: \"push_socket\" must not be directly in"), "{error}");
        assert!(error.contains("such as /run/walpoint.") && !error.contains("chmod"), "{error}");
    }
    let path = |length: usize| format!("/run/{}", "x".repeat(length - 5));
    for key in ["push_socket", "fetch_socket"] {
        let error = parse(&format!("{GOOD}{key} = \"{}\"\n", path(108))).unwrap_err();
        assert!(error.contains(&format!("line 5, [cluster.prod]: \"{key}\" is 108 bytes long")), "{error}");
        parse(&format!("{GOOD}{key} = \"{}\"\n", path(107))).unwrap();
    }
    parse(&format!("{GOOD}push_socket = \"/tmp/own/main.push\"\nfetch_socket = \"/tmp/fetch\"\n")).unwrap();
}

#[test]
fn everything_that_is_wrong_is_found_at_once_with_its_line() {
    let text = "[repository.main]
url = \"file:///backup\"
regoin = \"x\"
sse = 7
[repository.\"a/b\"]
url = \"file:///b\"
[repository.plain]

[cluster.prod]
repositories = [\"main\", \"gone\"]
transfers = \"four\"
pgdata = \"data\"
[cluster.prod.retention]
dayly = 7
minimum = 0
[cluster.prod.retention.label.x]
cuont = 1
[cluster.second]
ack = 7
[cluster.Third]
repositories = [\"main\"]
[deamon]
[daemon]
drain_timeout = \"soon\"
";
    let error = parse(text).unwrap_err();
    let expected = "line 3, [repository.main]: unknown key \"regoin\"
line 4, [repository.main]: \"sse\": invalid type: integer \"7\", expected a string
line 5, [repository.a/b]: the name of a repository has no slash
line 7, [repository.plain]: \"url\" is missing
line 10, [cluster.prod]: \"repositories\" names \"gone\", but there is no [repository.gone]
DETAIL: Line 10: There is: a/b, main, plain.
line 11, [cluster.prod]: \"transfers\": invalid type: string \"four\", expected a whole number
line 12, [cluster.prod]: \"pgdata\" must be an absolute path
line 14, [cluster.prod.retention]: unknown key \"dayly\"
HINT: Line 14: Perhaps you meant \"daily\".
line 15, [cluster.prod.retention]: \"minimum\" must be at least 1: the last backup is never dropped
line 17, [cluster.prod.retention.label.x]: unknown key \"cuont\"
HINT: Line 17: Perhaps you meant \"count\".
line 18, [cluster.second]: \"repositories\" is missing
line 19, [cluster.second]: \"ack\": invalid type: integer \"7\", expected a list
line 22: unknown key \"deamon\"
HINT: Line 22: Perhaps you meant \"daemon\".";
    for line in expected.lines() {
        assert!(error.lines().any(|found| found == line), "{line}\nis not in\n{error}");
    }
    assert!(
        error.contains("line 20, [cluster.Third]: ")
            && error.contains("line 24, [daemon]: \"drain_timeout\": ")
    );
    let lines: Vec<&str> = error.lines().collect();
    assert_eq!(lines.iter().filter(|line| line.starts_with("line ")).count(), 15, "{error}");
    assert!(
        lines[15].starts_with("DETAIL: ") && lines[16..].iter().all(|line| line.starts_with("HINT: ")),
        "{error}"
    );
    let broken = parse("[repository.main\nurl = 7\n[cluster.x]\n").unwrap_err();
    assert!(broken.starts_with("line 1: "), "{broken}");
}

#[test]
fn a_repository_is_looked_at_more_closely_on_request() {
    let wrong = |store: &Store| {
        let what = format!("\"url\" {} leads nowhere", store.url);
        vec![WrongKey { key: "url", what, hint: String::new() }]
    };
    let (config, problems) = examine::examine::<Store>(GOOD, wrong, |_| Vec::new());
    assert!(config.is_none());
    assert_eq!(
        Problems(problems).to_string(),
        "line 2, [repository.main]: \"url\" file:///backup leads nowhere"
    );
}

#[test]
fn streaming_is_off_until_it_is_switched_on() {
    let text =
        |more: &str| format!("[repository.a]\nurl = \"/a\"\n[cluster.x]\nrepositories = [\"a\"]\n{more}");
    let stream = |more: &str| {
        parse(&text(more)).unwrap().cluster.remove(&"x".parse::<ClusterName>().unwrap()).unwrap().stream
    };
    assert!(stream("").is_none());
    let stream = stream("[cluster.x.stream]\nslot = \"other\"\n").unwrap();
    assert!(!stream.enabled && !stream.synchronous && !stream.on_standby && stream.slot.as_str() == "other");
    assert_eq!(stream.flush_interval, SignedDuration::from_secs(1));
    let wrong = "[cluster.x.stream]\nenabled = true\nslot = \"No\"\nflush_interval = \"1h\"\nflash = 1\n";
    let error = parse(&text(wrong)).unwrap_err();
    for line in
        ["line 7, [cluster.x.stream]: \"slot\": ", "line 9, [cluster.x.stream]: unknown key \"flash\""]
    {
        assert!(error.contains(line), "{error}");
    }
    let long = "[cluster.x.stream]\nflush_interval = \"1h\"\n";
    assert!(parse(&text(long)).unwrap_err().contains("at most 10 minutes"));
}

#[test]
fn drills_have_names_and_what_is_wrong_with_them_has_its_line() {
    let nightly =
        "[cluster.prod.drill.nightly]\nkind = \"pitr\"\ntarget_time = \"1 hour ago\"\nrto = \"1h\"\n";
    let config = parse(&format!("{GOOD}{nightly}[cluster.prod.drill.b]\nkind = \"backup\"\n")).unwrap();
    let cluster = config.cluster.into_values().next().unwrap();
    let names: Vec<&str> = cluster.drill.keys().map(ScenarioName::as_str).collect();
    assert_eq!(names, ["b", "nightly"]);
    let wrong = "[cluster.prod.drill.a]
kind = \"backup\"
target_name = \"x\"
[cluster.prod.drill.b]
rto = \"1h\"
[cluster.prod.drill.c]
kind = \"pitr\"
shedule = \"@daily\"
schedule = \"@daily\"
chekcs = \"/c\"
target_time = \"2026-11-21 10:00:00\"
[cluster.prod.drill.\"No Name\"]
kind = \"pitr\"
";
    let error = parse(&format!("{GOOD}{wrong}")).unwrap_err();
    for line in [
        "line 7, [cluster.prod.drill.a]: \"target_name\" is no key of a scenario of kind \"backup\"",
        "line 8, [cluster.prod.drill.b]: \"kind\" is missing",
        "line 12, [cluster.prod.drill.c]: unknown key \"shedule\"",
        "line 13, [cluster.prod.drill.c]: unknown key \"schedule\"",
        "line 14, [cluster.prod.drill.c]: unknown key \"chekcs\"",
        "HINT: Line 14: Perhaps you meant \"checks\".",
        "line 15, [cluster.prod.drill.c]: \"target_time\": not a time with a zone",
        "line 16, [cluster.prod.drill.No Name]: not the name of a scenario",
    ] {
        assert!(error.contains(line), "{line}\nis not in\n{error}");
    }
    let page =
        |name: &str| format!("[cluster.prod.drill.{name}]\nkind = \"pitr\"\nreport = \"/page.html\"\n");
    let error = parse(&format!("{GOOD}{}{}", page("a"), page("b"))).unwrap_err();
    assert!(
        error.contains("line 10, [cluster.prod.drill.b]: \"report\" is that of scenario \"a\", too"),
        "{error}"
    );
    let flat = parse(&format!("{GOOD}[cluster.prod.drill]\nkind = \"pitr\"\n")).unwrap_err();
    assert!(flat.contains("line 6, [cluster.prod.drill.kind]: \"kind\" is not a table"), "{flat}");
    assert!(flat.contains("write [cluster.prod.drill.NAME]"), "{flat}");
    let none = parse(&format!("{GOOD}drill = 7\n")).unwrap_err();
    assert!(none.contains("line 5, [cluster.prod]: \"drill\": invalid type"), "{none}");
}
