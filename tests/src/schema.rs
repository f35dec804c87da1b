//! What the programs print with `--json`, held against the committed schemas (`docs/schema`). Every command that a test runs is
//! checked by the way.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use boon::{Compiler, Schemas};
use serde_json::Value;

use crate::process::Output;

/// The directory of the schemas.
pub fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a parent").join("docs/schema")
}

/// The schema of that name, such as `archive-agent-status` or `log`.
#[track_caller]
pub fn read(name: &str) -> Value {
    let file = directory().join(format!("{name}.json"));
    let text = fs::read_to_string(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    text.parse().unwrap_or_else(|e| panic!("{}: {e}", file.display()))
}

/// Panics if what a command printed with `--json` is not what its schema describes.
#[track_caller]
pub fn check(command: &Command, output: &Output) {
    if let Some(command) = JsonCommand::of(command) {
        command.check(output);
    }
}

/// A command of the programs under test that prints JSON.
#[derive(Debug)]
pub struct JsonCommand {
    program: String,
    arguments: Vec<String>,
    /// Whether no other program starts it: that could write to its standard error.
    is_direct: bool,
}

impl JsonCommand {
    /// `None` for what prints no JSON, and for older programs, which have other documents.
    pub fn of(command: &Command) -> Option<JsonCommand> {
        // Another program may start it: strace, podman.
        let words = std::iter::once(command.get_program()).chain(command.get_args());
        let words: Vec<String> = words.map(|word| word.to_string_lossy().into_owned()).collect();
        let ours = |word: &String| word.ends_with("archive-agent") || word.ends_with("restore-agent");
        let at = words.iter().position(ours)?;
        let program = words[at].rsplit('/').next().unwrap_or_default().to_owned();
        let arguments = words[at + 1..].to_vec();
        let is_older = std::env::var_os("WALPOINT_PROGRAMS").is_some_and(|directory| !directory.is_empty());
        let is_json = arguments.iter().any(|one| one == "--json");
        (is_json && !is_older).then_some(JsonCommand { program, arguments, is_direct: at == 0 })
    }

    /// Panics if what it printed is not what its schema describes: the document on standard output, the log on standard error.
    #[track_caller]
    pub fn check(&self, output: &Output) {
        let may_be_text = self.may_print_text(output);
        for line in output.stderr.lines().filter(|line| !line.is_empty()) {
            match line.starts_with('{') {
                true => validate("log", line),
                false => {
                    assert!(may_be_text, "{self:?} printed a line that is not JSON: {line}\n{output:#?}")
                }
            }
        }
        // A killed command may have printed a part of its document.
        if output.status >= 128 {
            return;
        }
        let name = of_command(&self.program, &self.arguments);
        if output.stdout.trim().is_empty() {
            // A command without a schema prints no document.
            assert!(output.status != 0 || name.is_none(), "{self:?} printed no document: {output:#?}");
            return;
        }
        let name = name.unwrap_or_else(|| panic!("no schema for what {self:?} printed: {}", output.stdout));
        validate(&name, &output.stdout);
    }

    /// Whether lines of its standard error may be something else than its log.
    fn may_print_text(&self, output: &Output) -> bool {
        let has = |option: &str| self.arguments.iter().any(|one| one.starts_with(option));
        // Wrong usage is reported before the log begins.
        let is_wrong_usage = output.status == 2;
        let is_broken = output.status >= 128 || output.stderr.contains("panicked at");
        // An operator's commands write where they like, and forget asks for the cluster's name.
        let has_hook = has("--pre-command") || has("--post-command");
        let asks = self.arguments.iter().any(|one| one == "forget") && !has("--yes");
        !self.is_direct || is_wrong_usage || is_broken || has_hook || asks || has("--log-format")
    }
}

/// What a command printed with `--json` where both of its outputs are in one log: its document, which begins and ends with lines of
/// their own, and all other lines.
pub fn printed(log: &str) -> (String, String) {
    let (mut document, mut others, mut is_inside) = (String::new(), String::new(), false);
    for line in log.split_inclusive('\n') {
        is_inside |= line == "{\n";
        if is_inside {
            document += line;
        } else {
            others += line;
        }
        is_inside &= line != "}\n";
    }
    (document, others)
}

/// The name of the schema for a command, which is the one of its manual page, or of the command above it.
fn of_command(program: &str, arguments: &[String]) -> Option<String> {
    let exists = |name: &String| directory().join(format!("{name}.json")).exists();
    (0..arguments.len()).find_map(|at| {
        let one = format!("{program}-{}", arguments[at]);
        let two = arguments.get(at + 1).map(|next| format!("{one}-{next}"));
        two.filter(exists).or_else(|| Some(one).filter(exists))
    })
}

/// Panics if a document is not what a schema describes. Readers ignore members that they do not know; here they are errors, except in
/// the log.
#[track_caller]
pub fn validate(name: &str, document: &str) {
    let mut schema = read(name);
    forbid_unknown(&mut schema, name != "log");
    let location = format!("https://walpoint.invalid/{name}.json");
    let (mut schemas, mut compiler) = (Schemas::new(), Compiler::new());
    compiler.enable_format_assertions();
    compiler.add_resource(&location, schema).unwrap_or_else(|e| panic!("{name}: {e:#}"));
    let index = compiler.compile(&location, &mut schemas).unwrap_or_else(|e| panic!("{name}: {e:#}"));
    let document: Value =
        document.parse().unwrap_or_else(|e| panic!("{name}: what was printed is not JSON: {e}\n{document}"));
    if let Err(error) = schemas.validate(&document, index) {
        panic!("what was printed is not what docs/schema/{name}.json describes: {error:#}\n{document:#}");
    }
}

/// Forbids members that the schema does not have: where a value is described, and not in what only is a part of its description.
fn forbid_unknown(schema: &mut Value, value: bool) {
    let Some(object) = schema.as_object_mut() else { return };
    for (keyword, inner) in object.iter_mut() {
        match (keyword.as_str(), inner) {
            ("properties", Value::Object(members)) => {
                members.values_mut().for_each(|one| forbid_unknown(one, true))
            }
            ("$defs", Value::Object(parts)) => parts.values_mut().for_each(|one| forbid_unknown(one, false)),
            ("items" | "additionalProperties", inner) => forbid_unknown(inner, true),
            ("oneOf" | "anyOf" | "allOf", Value::Array(parts)) => {
                parts.iter_mut().for_each(|one| forbid_unknown(one, false));
            }
            _ => {}
        }
    }
    if value {
        object.insert("unevaluatedProperties".to_owned(), Value::Bool(false));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn refused(name: &str, document: &str, why: &str) {
        let name = name.to_owned();
        let document = document.to_owned();
        let panic = std::panic::catch_unwind(move || validate(&name, &document)).expect_err("an error");
        let text = panic.downcast_ref::<String>().expect("a text");
        assert!(text.contains(why), "{text}");
    }

    #[test]
    fn what_a_schema_does_not_describe_is_refused() {
        let hold = r#""number": 1, "reason": "x", "start_time": "2026-11-24T10:00:00Z", "placed_by": "me", "state": "in-force""#;
        let holds = |hold: &str| {
            format!(
                r#"{{"cluster": "main", "repositories": [{{"repository": "main", "holds": [{{{hold}}}]}}]}}"#
            )
        };
        validate("archive-agent-hold", &holds(hold));
        refused("archive-agent-hold", &holds(&format!(r#"{hold}, "colour": "red""#)), "colour");
        refused("archive-agent-hold", &holds(&hold.replace("in-force", "in_force")), "state");
        refused("archive-agent-hold", &holds(&hold.replace("2026-11-24T10", "2026-11-24 10")), "start_time");
        refused("archive-agent-hold", &holds(r#""number": 1"#), "reason");
        refused("archive-agent-hold", r#"{"cluster": "main"}"#, "repositories");
        refused("archive-agent-hold", "{", "not JSON");
        let line = r#"{"timestamp": "2026-11-24T10:00:00.5Z", "level": "INFO", "message": "x", "repository": "main"}"#;
        validate("log", line);
        refused("log", &line.replace("INFO", "LOUD"), "level");
    }

    #[track_caller]
    fn checked(arguments: &[&str], status: i32, stdout: &str, stderr: &str) -> Result<(), String> {
        let arguments = arguments.iter().map(|&one| one.to_owned()).collect();
        let command = JsonCommand { program: "archive-agent".to_owned(), arguments, is_direct: true };
        let (stdout, stderr) = (stdout.to_owned(), stderr.to_owned());
        let output = Output { status, stdout, stderr, took: std::time::Duration::ZERO };
        std::panic::catch_unwind(move || command.check(&output))
            .map_err(|panic| panic.downcast_ref::<String>().expect("a text").clone())
    }

    #[test]
    fn a_command_that_succeeds_prints_its_document() {
        let refused = checked(&["status", "--json"], 0, "", "").unwrap_err();
        assert!(refused.contains("no document"), "{refused}");
        checked(&["status", "--json"], 1, "", "").unwrap();
        checked(&["run", "--once", "--json"], 0, "\n", "").unwrap();
    }

    #[test]
    fn what_a_command_logs_is_json() {
        let refused = checked(&["run", "--json"], 1, "", "Error: no such file\n").unwrap_err();
        assert!(refused.contains("not JSON: Error: no such file"), "{refused}");
        checked(&["run", "--json"], 2, "", "error: unexpected argument\n\nUsage: archive-agent run\n")
            .unwrap();
        checked(&["forget", "main", "--json"], 1, "", "Type main to delete all of this for good: ").unwrap();
        checked(&["forget", "main", "--json", "--yes"], 1, "", "Type main\n").unwrap_err();
        checked(&["run", "--json"], 101, "", "thread 'main' panicked at src/main.rs:1:1:\nno\n").unwrap();
    }

    #[test]
    fn a_document_is_found_between_lines_of_the_log() {
        let (document, log) =
            printed("{\"level\": \"INFO\"}\n{\n  \"a\": {\n  }\n}\n{\"level\": \"WARN\"}\n");
        assert_eq!(document, "{\n  \"a\": {\n  }\n}\n");
        assert_eq!(log, "{\"level\": \"INFO\"}\n{\"level\": \"WARN\"}\n");
    }

    #[test]
    fn each_command_has_the_schema_of_its_manual_page() {
        let name = |program: &str, arguments: &[&str]| {
            of_command(program, &arguments.iter().map(|&one| one.to_owned()).collect::<Vec<_>>())
        };
        assert_eq!(name("archive-agent", &["--json", "status"]).as_deref(), Some("archive-agent-status"));
        assert_eq!(
            name("archive-agent", &["key", "list", "--json"]).as_deref(),
            Some("archive-agent-key-list")
        );
        assert_eq!(name("archive-agent", &["key", "rotate", "--json"]).as_deref(), Some("archive-agent-key"));
        assert_eq!(name("archive-agent", &["run", "--json"]), None);
    }
}
