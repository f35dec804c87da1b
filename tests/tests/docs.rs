//! What is written for people is true: every setting and every member of the JSON is described, links and files named
//! exist, each promise names a test that exists, and manual pages and completions cover every command.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use walpoint_tests::commands::AGENTS;
use walpoint_tests::dir::TestDir;
use walpoint_tests::{process, schema, testbed, user};

/// The top of the source tree.
fn top() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a parent").to_owned()
}

fn read(path: impl AsRef<Path>) -> String {
    let path = top().join(path);
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Every file with that ending below a directory, but for what is built.
fn files(below: &Path, ending: &str, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(below).unwrap_or_else(|e| panic!("{}: {e}", below.display())) {
        let path = entry.expect("an entry").path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if path.is_dir() && !name.starts_with('.') && name != "target" {
            files(&path, ending, found);
        } else if name.ends_with(ending) {
            found.push(path);
        }
    }
}

fn pages() -> Vec<PathBuf> {
    let mut found = Vec::new();
    files(&top(), ".md", &mut found);
    assert!(found.len() >= 8, "{found:?}");
    found
}

/// Those that users read. The others draw programs, and name commands of a design.
fn pages_for_users() -> impl Iterator<Item = PathBuf> {
    let others = ["README.md", "CHANGELOG.md"].map(|name| top().join(name));
    pages().into_iter().filter(move |page| page.starts_with(top().join("docs")) || others.contains(page))
}

/// The names of a struct's fields as its source has them; those that are not part of JSON are left out.
fn fields(file: &str, name: &str) -> Vec<String> {
    let source = read(file);
    let begin =
        source.find(&format!("struct {name}")).unwrap_or_else(|| panic!("no struct {name} in {file}"));
    let body = &source[begin..];
    let end = body.find("\n}").unwrap_or_else(|| panic!("struct {name} in {file} does not end"));
    let mut skip = false;
    let mut names = Vec::new();
    for line in body[..end].lines().skip(1).map(str::trim) {
        if line.starts_with("#[") {
            skip |= line == "#[serde(skip)]" || line.starts_with("#[serde(flatten");
            continue;
        }
        let public = ["pub(crate) ", "pub(super) ", "pub "].iter().find_map(|word| line.strip_prefix(word));
        let declared = public.unwrap_or(line);
        let field = declared.split_once(": ").map(|(name, _)| name);
        let field = field.filter(|name| name.chars().all(|c| c.is_ascii_lowercase() || c == '_'));
        if let Some(field) = field.filter(|_| !line.starts_with("//")) {
            if !skip {
                names.push(field.to_owned());
            }
            skip = false;
        }
    }
    assert!(!names.is_empty(), "struct {name} in {file} has no fields");
    names
}

#[test]
fn every_configuration_key_is_described() {
    let page = read("docs/configuration.md");
    let config = "shared/runtime/src/config.rs";
    let retention = "shared/runtime/src/retention.rs";
    let tables = [
        (config, "ClusterSettings", "## `[cluster.NAME]`"),
        (config, "DaemonSettings", "## `[daemon]`"),
        (retention, "RetentionSettings", "## `[cluster.NAME.retention]`"),
        (retention, "LabelSettings", "## `[cluster.NAME.retention.label.LABEL]`"),
        ("shared/runtime/src/config/stream.rs", "StreamSettings", "## `[cluster.NAME.stream]`"),
        ("shared/runtime/src/config/drill.rs", "DrillScenario", "## `[cluster.NAME.drill.SCENARIO]`"),
        ("shared/storage/src/store/table.rs", "StoreTable", "## `[repository.NAME]`"),
    ];
    for (file, name, heading) in tables {
        let section = page.split(heading).nth(1).unwrap_or_else(|| panic!("no heading {heading}"));
        let section = section.split("\n## ").next().unwrap_or_default();
        let described: BTreeSet<&str> =
            section.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect();
        let known = fields(file, name);
        let known: BTreeSet<&str> = known.iter().map(String::as_str).collect();
        assert_eq!(described, known, "{heading} in docs/configuration.md and struct {name}");
    }
}

/// The schemas of all documents, by name.
fn schemas() -> Vec<(String, Value)> {
    let mut found = Vec::new();
    files(&schema::directory(), ".json", &mut found);
    found.sort();
    assert!(found.len() >= 14, "{found:?}");
    let names = found.iter().map(|path| path.file_stem().unwrap_or_default().to_string_lossy().into_owned());
    names.map(|name| (name.clone(), schema::read(&name))).collect()
}

/// Shows each member that a schema describes, and each value that it names.
fn walk(schema: &Value, see: &mut impl FnMut(&str, &Value)) {
    match schema {
        Value::Object(object) => {
            for (keyword, inner) in object {
                match (keyword.as_str(), inner) {
                    ("properties", Value::Object(members)) => {
                        members.iter().for_each(|(name, member)| see(name, member))
                    }
                    ("const", value) => see("", value),
                    ("enum", Value::Array(values)) => values.iter().for_each(|value| see("", value)),
                    _ => {}
                }
                walk(inner, see);
            }
        }
        Value::Array(all) => all.iter().for_each(|one| walk(one, see)),
        _ => {}
    }
}

#[test]
fn every_member_of_the_json_is_described() {
    let page = read("docs/json.md");
    let mut known = BTreeSet::new();
    for (name, schema) in schemas() {
        assert!(page.contains(&format!("(schema/{name}.json)")), "docs/json.md does not link to {name}.json");
        walk(&schema, &mut |member, described| {
            let word = if member.is_empty() { described.as_str().unwrap_or_default() } else { member };
            assert!(page.contains(&format!("`{word}`")), "docs/json.md does not describe `{word}` of {name}");
            known.insert(word.to_owned());
        });
    }
    for row in page.lines().filter(|line| line.starts_with("| `")) {
        let first = row.split(" | ").next().unwrap_or_default();
        for member in first.split('`').skip(1).step_by(2) {
            assert!(known.contains(member), "docs/json.md describes `{member}`, which no document has");
        }
    }
}

/// A member's name says what it holds, in the same way in all documents.
#[test]
fn members_of_the_json_are_named_for_what_they_hold() {
    let forbidden =
        ["told", "aside", "condemned", "ripe", "doomed", "adopted", "dead", "given", "what", "who", "bad"];
    let numbers = ["_count", "_bytes", "seconds", "xid", "oid", "slot", "number", "block", "pid", "port"];
    let ends = |name: &str, word: &str| name == word || name.ends_with(&format!("_{word}"));
    for (document, schema) in schemas() {
        walk(&schema, &mut |name, member| {
            let text = |key: &str| member[key].as_str().unwrap_or_default();
            if name.is_empty() {
                let value = member.as_str().unwrap_or_default();
                let kebab = |c: char| c.is_ascii_lowercase() || matches!(c, '-' | '.');
                assert!(value.chars().all(kebab) || document == "log", "{document}: the value {value:?}");
                return;
            }
            let place = format!("{document}: {name}: {member}");
            assert!(name.split('_').all(|word| !forbidden.contains(&word)), "{place}");
            assert!(!text("description").is_empty() || name == "result", "{place} has no description");
            let time = text("format") == "date-time";
            assert_eq!(
                time,
                ends(name, "time") || name == "timestamp",
                "{place}: times and no others are called so"
            );
            assert_eq!(
                text("$ref").ends_with("/Lsn"),
                ends(name, "lsn"),
                "{place}: LSNs and no others are called so"
            );
            let segment = text("$ref").ends_with("/SegmentName");
            assert!(!segment || ends(name, "segment"), "{place}: a segment");
            assert!(text("type") != "number" || ends(name, "seconds"), "{place}: a fraction");
            let said = numbers.iter().any(|end| name.ends_with(end));
            assert!(text("type") != "integer" || said, "{place}: a number of what?");
        });
    }
}

/// The anchor that a heading gets.
fn anchor(heading: &str) -> String {
    let kept = heading.to_lowercase();
    let kept = kept.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

#[test]
fn every_link_leads_somewhere() {
    let mut seen = 0;
    for page in pages() {
        let text = fs::read_to_string(&page).expect("a page");
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.contains("://") || link.contains(' ') {
                continue;
            }
            let (file, fragment) = link.split_once('#').unwrap_or((link, ""));
            let target =
                if file.is_empty() { page.clone() } else { page.parent().expect("a parent").join(file) };
            assert!(target.exists(), "{} links to {link}, which is not there", page.display());
            seen += 1;
            if !fragment.is_empty() {
                let target = fs::read_to_string(&target).expect("a page");
                let headings = target.lines().filter_map(|line| line.strip_prefix('#'));
                let found = headings.map(|h| anchor(h.trim_start_matches('#').trim())).any(|a| a == fragment);
                assert!(found, "{} links to {link}, and there is no such heading", page.display());
            }
        }
    }
    assert!(seen > 10, "{seen} links");
}

/// What stands between backquotes.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter(|line| !line.starts_with("```")).flat_map(|line| line.split('`').skip(1).step_by(2))
}

#[test]
fn every_file_that_a_page_names_is_there() {
    let roots = ["shared/", "archive-agent/", "restore-agent/", "tests/", "docs/", "docker/", "bench/"];
    let mut seen = 0;
    for page in pages() {
        let text = fs::read_to_string(&page).expect("a page");
        for name in quoted(&text) {
            let file = name.split("::").next().unwrap_or_default();
            let ends = [".rs", ".sh", ".md", ".service", ".timer", ".toml"].iter().any(|e| file.ends_with(e));
            if ends && roots.iter().any(|root| file.starts_with(root)) {
                assert!(top().join(file).exists(), "{} names {file}, which is not there", page.display());
                seen += 1;
            }
        }
    }
    assert!(seen > 50, "{seen} files");
}

/// Command lines of the two agents in a page: what stands in blocks and between backquotes, without what follows in a shell.
fn command_lines(page: &str) -> Vec<Vec<String>> {
    let (mut texts, mut block): (Vec<&str>, bool) = (Vec::new(), false);
    for line in page.lines() {
        match line.trim_start().starts_with("```") {
            true => block = !block,
            false if block => texts.push(line),
            // What has an ellipsis is a message.
            false => texts.extend(quoted(line).filter(|text| !text.contains('…'))),
        }
    }
    let mut found = Vec::new();
    for text in texts {
        let words: Vec<&str> = text.split_whitespace().collect();
        for (at, program) in words.iter().enumerate() {
            let program = program.rsplit(['/', '(']).next().unwrap_or_default();
            if AGENTS.iter().any(|(agent, ..)| *agent == program) {
                let ends = |word: &&&str| ["--", "#", "|", "&", "&&", ";", ">", "2>", "-->"].contains(*word);
                let rest = words[at + 1..].iter().take_while(|word| !ends(word));
                let rest = rest
                    .map(|word| word.trim_matches(['"', '\'', ',', ';', ')', '.', ':', '[', ']']).to_owned());
                found.push([program.to_owned()].into_iter().chain(rest).collect());
            }
        }
    }
    found
}

#[test]
fn every_command_line_in_the_pages_is_one() {
    let mut helps: BTreeMap<Vec<String>, String> = BTreeMap::new();
    let mut seen = 0;
    for page in pages_for_users() {
        let text = fs::read_to_string(&page).expect("a page");
        for line in command_lines(&text) {
            let words = line[1..].iter().take_while(|word| !word.starts_with('-')).take(2);
            let plain =
                |word: &&String| !word.is_empty() && word.chars().all(|c| c.is_ascii_lowercase() || c == '-');
            let mut command: Vec<String> = words.take_while(plain).cloned().collect();
            if command.first().is_none_or(|command| {
                !["config", "evidence", "hold", "key", "lineage"].contains(&command.as_str())
            }) {
                command.truncate(1);
            }
            // A message may begin with the name of a program.
            if command.first().is_none_or(|word| word == "could") {
                continue;
            }
            command.insert(0, line[0].clone());
            let help = helps.entry(command.clone()).or_insert_with(|| {
                let mut arguments: Vec<&str> = command[1..].iter().map(String::as_str).collect();
                arguments.push("--help");
                agent(&command[0], &arguments).stdout
            });
            assert!(
                help.contains("Usage:"),
                "{} names the command {command:?}, which is none",
                page.display()
            );
            for option in line.iter().filter(|word| word.starts_with("--")) {
                let option = option.split(['=', '/', '…']).next().unwrap_or_default();
                let known =
                    help.split_whitespace().any(|word| word.trim_matches([',', '.', '[', ']']) == option);
                assert!(known, "{}: {} has no option {option}", page.display(), command.join(" "));
                seen += 1;
            }
        }
    }
    assert!(seen > 50, "{seen} options");
}

/// The options of our programs by command, as their helps declare them.
fn options() -> BTreeMap<String, BTreeSet<String>> {
    let mut found = BTreeMap::new();
    let mut see = |program: &str, command: &str, arguments: &[&str]| {
        let help = agent(program, &[arguments, &["--help"]].concat()).stdout;
        let declared = help.lines().filter(|line| line.trim_start().starts_with('-'));
        let words = declared.flat_map(|line| line.split([' ', ',', '=', '[', '.']));
        let options = words.filter(|word| word.starts_with("--")).map(ToOwned::to_owned).collect();
        found.insert(command.to_owned(), options);
    };
    for (program, client, commands) in AGENTS {
        see(program, program, &[]);
        see(client, client, &[]);
        for command in commands {
            match command.split_once('-').filter(|(group, _)| commands.contains(group)) {
                Some((group, one)) => see(program, command, &[group, one]),
                None => see(program, command, &[command]),
            }
        }
    }
    found
}

/// An option that a page names without its program is one of the command that stands in front of it, or of some command.
#[test]
fn every_option_in_the_prose_is_one() {
    let options = options();
    // Their options are not ours.
    let others = ["docker", "initdb", "pg_ctl", "pg_dump", "podman", "psql", "systemctl"];
    let mut seen = 0;
    for page in pages_for_users() {
        let text = fs::read_to_string(&page).expect("a page");
        for span in quoted(&text) {
            let words: Vec<&str> = span.split_whitespace().collect();
            let names = |programs: &[&str]| words.iter().any(|word| programs.contains(word));
            // A command line with its program is looked at elsewhere, if it is a whole one.
            if names(&others) || (names(&AGENTS.map(|(program, ..)| program)) && !span.contains('…')) {
                continue;
            }
            let command = words.iter().take_while(|word| !word.starts_with('-')).copied();
            let of_command = options.get(&command.collect::<Vec<&str>>().join("-"));
            for word in words.iter().filter(|word| word.starts_with("--") && word.len() > 2) {
                let option = word.split(['=', '/', ',', '.', ';', ')']).next().unwrap_or_default();
                let is_one = |known: &BTreeSet<String>| match option.strip_suffix('…') {
                    Some(begin) => known.iter().any(|known| known.starts_with(begin)),
                    None => known.contains(option),
                };
                let found = of_command.map_or_else(|| options.values().any(is_one), is_one);
                assert!(found, "{} names {option} in `{span}`, and no command has it", page.display());
                seen += 1;
            }
        }
    }
    assert!(seen > 100, "{seen} options");
}

/// The picture in the README needs nothing but itself, and says what it shows.
#[test]
fn the_picture_of_the_demonstration_stands_alone() {
    let picture = read("docs/demo.svg");
    for part in ["<title ", "<desc ", "role=\"img\"", "prefers-color-scheme: dark", "equal: "] {
        assert!(picture.contains(part), "docs/demo.svg has no {part}");
    }
    let rest = picture.replacen("http://www.w3.org/2000/svg", "", 1);
    for part in ["http", "url(", "@import", "<image", "<script", "xlink"] {
        assert!(!rest.contains(part), "docs/demo.svg holds {part}");
    }
    assert!(picture.len() < 100_000, "docs/demo.svg has {} bytes", picture.len());
}

/// What of a source file is built into the programs: without comments, and without an inline module of tests at its end.
fn built(source: &str) -> String {
    let lines: Vec<&str> = source.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
    let is_module = |at: usize| {
        let declared = lines[at + 1..].iter().find(|line| !line.starts_with("#["));
        declared.is_some_and(|line| line.contains("mod ") && line.ends_with('{'))
    };
    let tests = (0..lines.len()).find(|&at| lines[at] == "#[cfg(test)]" && is_module(at));
    lines[..tests.unwrap_or(lines.len())].join("\n") + "\n"
}

/// The programs' sources, with their strings as the compiler sees them.
fn strings() -> String {
    let mut sources = Vec::new();
    files(&top(), ".rs", &mut sources);
    let for_tests = |path: &PathBuf| {
        let path = path.strip_prefix(top()).expect("a file below the top").with_extension("");
        path.iter().any(|part| {
            let part = part.to_string_lossy();
            part == "testing" || part == "tests" || part.ends_with("_tests")
        })
    };
    let mut code = String::new();
    for path in sources.into_iter().filter(|path| !for_tests(path)) {
        let text = built(&fs::read_to_string(&path).expect("a source file"));
        // A line's end after a backslash and the next line's indent are not part of a string.
        let mut lines = text.split("\\\n");
        code += lines.next().unwrap_or_default();
        lines.for_each(|line| code += line.trim_start());
    }
    code.replace("\\\"", "\"")
}

/// The messages that the tables of a page explain.
fn explained(page: &str) -> Vec<&str> {
    let (mut found, mut explains) = (Vec::new(), false);
    for line in page.lines() {
        let Some(first) = line.strip_prefix("| ").and_then(|row| row.split(" | ").next()) else {
            explains &= line.starts_with('|');
            continue;
        };
        if first == "message" || first == "it says" || first.contains("log, after") {
            explains = true;
        } else if explains {
            let before = found.len();
            found.extend(quoted(first));
            assert!(found.len() > before, "the messages of this row are not between backquotes: {line}");
        }
    }
    found
}

/// A message that a page explains is one that some program prints, but for what stands in place of its ellipses. What a program
/// prints as a detail or a hint is shown as one.
#[test]
fn every_message_that_is_explained_exists() {
    let code = strings();
    let labels = ["DETAIL: ", "HINT: "];
    let (mut seen, mut unknown) = (0, Vec::new());
    for page in ["docs/archiving.md", "docs/backup.md", "docs/restore.md", "docs/retention.md"] {
        let text = read(page);
        // PostgreSQL's own lines are in no source of ours.
        for message in explained(&text).into_iter().filter(|message| !message.starts_with("FATAL: ")) {
            let is_labeled = labels.iter().any(|label| message.starts_with(label));
            // What follows a colon comes from somewhere else, except in a labeled line.
            let end = if is_labeled { "\n" } else { ": " };
            let parts = message.split('…').flat_map(|part| part.split(end));
            let parts = parts.map(|part| part.trim_matches([' ', '"', ':', '.']));
            for part in parts.filter(|part| part.len() >= 8) {
                let is_printed = code
                    .match_indices(part)
                    .any(|(at, _)| is_labeled || !labels.iter().any(|label| code[..at].ends_with(label)));
                seen += 1;
                if !is_printed {
                    unknown.push(format!("{page}: {part:?}"));
                }
            }
        }
    }
    assert!(unknown.is_empty(), "explained, and not printed so by any program: {unknown:#?}");
    assert!(seen > 60, "{seen} messages");
}

/// Every promise and every numbered behaviour has a row in docs/promises.md, and every test named there exists.
#[test]
fn every_promise_names_tests_that_exist() {
    let page = read("docs/promises.md");
    let mut sources = Vec::new();
    files(&top(), ".rs", &mut sources);
    let mut wanted: BTreeSet<String> = (1..=12).map(|n| n.to_string()).collect();
    for (letter, last) in [('A', 13), ('F', 7), ('B', 8), ('R', 14), ('K', 6), ('E', 1)] {
        wanted.extend((1..=last).map(|n| format!("{letter}{n}")));
    }
    for line in page.lines().filter(|line| line.starts_with("| ")) {
        let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        let [number, _, proof] = cells[..] else { continue };
        if !wanted.remove(number) {
            assert!(number.starts_with('-') || number == "number", "an unknown or second row: {line}");
            continue;
        }
        let mut tests = BTreeSet::new();
        for (file, name) in quoted(proof).filter_map(|test| test.split_once("::")) {
            let here = sources.iter().filter(|path| path.ends_with(file));
            let declared = [format!("fn {name}("), format!("fn {name}<")];
            let found = here.filter(|path| {
                let text = fs::read_to_string(path).expect("a source file");
                declared.iter().any(|declared| text.contains(declared))
            });
            assert!(found.count() > 0, "{number}: there is no test {name} in {file}");
            assert!(tests.insert((file, name)), "{number} names the test {name} in {file} twice");
        }
        assert!(!tests.is_empty(), "{number} has no test: {proof}");
    }
    assert!(wanted.is_empty(), "docs/promises.md has no row for {wanted:?}");
}

fn agent(program: &str, arguments: &[&str]) -> process::Output {
    let mut command = Command::new(testbed::under_test(program));
    command.args(arguments).env_remove("WALPOINT_CONFIG").current_dir("/");
    process::run(user::become_user(&mut command), Duration::from_secs(30))
}

#[test]
fn every_command_has_a_manual_page() {
    for (program, client, commands) in AGENTS {
        let dir = TestDir::new();
        let man = dir.mkdir("man1");
        let directory = man.to_str().expect("a path");
        agent(program, &["man", directory]).expect_success();
        let names: BTreeSet<String> = fs::read_dir(&man)
            .expect("a directory")
            .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
            .collect();
        let mut wanted: BTreeSet<String> = commands.iter().map(|c| format!("{program}-{c}.1")).collect();
        wanted.extend([format!("{program}.1"), format!("{client}.1")]);
        assert_eq!(names, wanted);
        for name in names {
            let text = fs::read_to_string(man.join(&name)).expect("a page");
            assert!(text.contains(".SH NAME") && text.contains(".SH SYNOPSIS"), "{name}:\n{text}");
        }
        // What the client says of itself is what its page says.
        let help = agent(client, &["--help"]).expect_success().stdout;
        let page = fs::read_to_string(man.join(format!("{client}.1"))).expect("a page").replace('\\', "");
        let options: Vec<&str> = help.split_whitespace().filter(|word| word.starts_with("--")).collect();
        assert!(options.len() >= 4, "{help}");
        for option in options {
            let option = option.trim_end_matches([',', ']']);
            assert!(page.contains(option), "{client}.1 does not describe {option}");
        }
    }
}

#[test]
fn completions_know_every_command() {
    for (program, _, commands) in AGENTS {
        for shell in ["bash", "zsh", "fish"] {
            let script = agent(program, &["completions", shell]).expect_success().stdout;
            for command in commands.iter().flat_map(|command| command.split('-')) {
                assert!(
                    script.contains(command),
                    "{program}'s completions for {shell} do not know {command}"
                );
            }
            let there = Command::new(shell).arg("--version").output().is_ok();
            assert!(there || shell != "bash", "bash is part of every machine that tests");
            if there {
                let mut check = Command::new(shell);
                process::run_with_input(check.arg("-n"), script.as_bytes(), Duration::from_secs(30))
                    .expect_success();
            }
        }
    }
}
