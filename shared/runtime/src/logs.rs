//! Logs on standard error: text for a person, JSON for a machine.
//!
//! A message that has details and hints ([`Diagnostic`]) is taken apart here. In text they follow on lines of their own, as in
//! PostgreSQL's log; in JSON they are the members `detail` and `hint`. What collects a daemon's standard error takes each line for a
//! record, so there a record is one line.

use std::fmt;
use std::io::{self, IsTerminal, Write};

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;
use walpoint_base::Diagnostic;

use crate::args::{CommonArgs, LogFormat};

/// A line of the log on standard error, in JSON. A line may have further members: what it is about, such as `repository`.
#[derive(Debug, Serialize, JsonSchema)]
pub struct LogLine {
    /// When it was written.
    timestamp: Timestamp,
    /// Its level.
    level: LogLevel,
    /// What happened.
    message: String,
    /// Facts about it, as full sentences; several are lines.
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
    /// What to do about it, as full sentences; several are lines.
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<String>,
}

/// How severe it is.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum LogLevel {
    /// The command failed, or a part of its task.
    Error,
    /// The operator should know.
    Warn,
    /// Progress.
    Info,
    /// With `-v`.
    Debug,
    /// With `-vv`.
    Trace,
}

crate::document!(LogLine, "log");

/// Starts logging as the options ask; `$WALPOINT_LOG` refines it in `tracing`'s filter syntax. Later calls do nothing.
pub fn start(args: &CommonArgs, process: Process) {
    let ours = match (args.quiet, args.verbose) {
        (true, _) => "warn",
        (false, 0) => "info",
        (false, 1) => "debug",
        (false, _) => "trace",
    };
    let others = if args.verbose > 1 { "debug" } else { "warn" };
    let default = format!(
        "{others},walpoint_base={ours},walpoint_pg={ours},walpoint_plan={ours},walpoint_storage={ours},walpoint_repo={ours},walpoint_runtime={ours},archive_agent={ours},restore_agent={ours}"
    );
    let filter = EnvFilter::try_from_env("WALPOINT_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    let terminal = io::stderr().is_terminal();
    let form = match (args.log_format(), terminal, process) {
        (LogFormat::Json, ..) => Form::Json,
        (LogFormat::Text, true, _) => Form::Terminal,
        (LogFormat::Text, false, Process::Command) => Form::Lines,
        (LogFormat::Text, false, Process::Daemon) => Form::OneLine,
    };
    let builder = tracing_subscriber::fmt().with_writer(|| Unfailing(io::stderr())).with_env_filter(filter);
    // What could not be logged would be reported by eprintln!, which panics where standard error cannot be written.
    let builder = builder.log_internal_errors(false);
    let format = RecordFormat { form, targets: args.verbose > 0 };
    let started = builder.with_ansi(form == Form::Terminal).event_format(format).try_init();
    // A second subscriber is refused; the first one goes on.
    started.ok();
}

/// A writer whose errors are lost: no work fails because its log cannot be written.
struct Unfailing<W>(W);

impl<W: Write> Write for Unfailing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write_all(bytes).ok();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush().ok();
        Ok(())
    }
}

/// What logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Process {
    /// A command, whose end its caller waits for.
    Command,
    /// A process that stays.
    Daemon,
}

/// How a record is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// An object in one line.
    Json,
    /// For a person who is watching: the level, the message, a line for each detail and hint.
    Terminal,
    /// The time before the same.
    Lines,
    /// The time, and all of the message in one line.
    OneLine,
}

struct RecordFormat {
    form: Form,
    targets: bool,
}

impl<S, N> FormatEvent<S, N> for RecordFormat
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut fields = EventFields::default();
        event.record(&mut fields);
        let mut record = Record {
            level: *event.metadata().level(),
            target: self.targets.then(|| event.metadata().target().to_owned()),
            diagnostic: Diagnostic::new(&fields.message),
            fields: fields.others,
        };
        if let Some(target) = fields.target.filter(|_| self.targets) {
            record.target = Some(target);
        }
        let ansi = writer.has_ansi_escapes();
        writeln!(writer, "{}", record.shown(self.form, Timestamp::now(), ansi))
    }
}

/// What an event has: its message, and the rest in order.
#[derive(Default)]
struct EventFields {
    message: String,
    /// Where a record of the `log` crate comes from.
    target: Option<String>,
    others: Vec<(&'static str, FieldValue)>,
}

/// A value, as JSON has it, and in text.
struct FieldValue {
    json: Value,
    text: String,
}

impl EventFields {
    fn add(&mut self, field: &Field, json: Value, text: String) {
        match (field.name(), json) {
            ("message", Value::String(message)) => self.message = message,
            ("log.target", Value::String(target)) => self.target = Some(target),
            (name, _) if name.starts_with("log.") => {}
            (name, json) => self.others.push((name, FieldValue { json, text })),
        }
    }
}

impl Visit for EventFields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let text = format!("{value:?}");
        self.add(field, Value::String(text.clone()), text);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, Value::String(value.to_owned()), format!("{value:?}"));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field, value.into(), value.to_string());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field, value.into(), value.to_string());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.add(field, value.into(), value.to_string());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field, value.into(), value.to_string());
    }
}

/// One record of the log.
struct Record {
    level: Level,
    target: Option<String>,
    diagnostic: Diagnostic,
    fields: Vec<(&'static str, FieldValue)>,
}

impl Record {
    fn shown(&self, form: Form, now: Timestamp, ansi: bool) -> String {
        match form {
            Form::Json => self.json(now),
            Form::Terminal => format!("{}{}", self.level_word(ansi), self.text()),
            Form::Lines => format!("{now:.6} {:>5} {}", self.level, self.text()),
            Form::OneLine => {
                format!("{now:.6} {:>5} {}", self.level, Diagnostic::new(self.text()).line())
            }
        }
    }

    /// The level as it stands before a message on a terminal.
    fn level_word(&self, ansi: bool) -> String {
        let (word, color) = match self.level {
            Level::ERROR => ("error: ", "31;1"),
            Level::WARN => ("warning: ", "33;1"),
            Level::INFO => return String::new(),
            Level::DEBUG => ("debug: ", "2"),
            Level::TRACE => ("trace: ", "2"),
        };
        if ansi { format!("\u{1b}[{color}m{word}\u{1b}[0m") } else { word.to_owned() }
    }

    /// The message, the fields behind its first part, then details and hints. What could control a terminal is escaped.
    fn text(&self) -> String {
        let target = self.target.iter().map(|target| format!("{target}: ")).collect::<String>();
        let fields: String =
            self.fields.iter().map(|(name, value)| format!(" {name}={}", value.text)).collect();
        let first = Diagnostic::new(format!("{target}{}{fields}", self.diagnostic.message()));
        let first = self.diagnostic.details().iter().fold(first, Diagnostic::detail);
        let all = self.diagnostic.hints().iter().fold(first, Diagnostic::hint).to_string();
        let escaped = |c: char| match c.is_control() && !matches!(c, '\n' | '\t') {
            true => c.escape_default().to_string(),
            false => c.to_string(),
        };
        all.chars().map(escaped).collect()
    }

    fn json(&self, now: Timestamp) -> String {
        let mut members = vec![
            ("timestamp", Value::String(format!("{now:.6}"))),
            ("level", Value::String(self.level.to_string())),
            ("message", Value::String(self.diagnostic.message().to_owned())),
        ];
        for (name, parts) in [("detail", self.diagnostic.details()), ("hint", self.diagnostic.hints())] {
            if !parts.is_empty() {
                members.push((name, Value::String(parts.join("\n"))));
            }
        }
        members.extend(self.fields.iter().map(|(name, value)| (*name, value.json.clone())));
        let members: Vec<String> = members
            .iter()
            .map(|(name, value)| format!("{}:{value}", Value::String((*name).to_owned())))
            .collect();
        format!("{{{}}}", members.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    fn record(text: &str) -> Record {
        let value =
            |text: &str| FieldValue { json: Value::String(text.to_owned()), text: format!("{text:?}") };
        Record {
            level: Level::ERROR,
            target: None,
            diagnostic: Diagnostic::new(text),
            fields: vec![("repository", value("main"))],
        }
    }

    #[test]
    fn what_cannot_be_written_is_lost_and_nothing_else() {
        let full = || std::fs::File::options().write(true).open("/dev/full").unwrap();
        assert!(full().write_all(b"lost").is_err());
        assert!(Unfailing(full()).write_all(b"lost").is_ok());
        let format = RecordFormat { form: Form::Lines, targets: false };
        let logging = tracing_subscriber::fmt().with_writer(move || Unfailing(full())).event_format(format);
        tracing::subscriber::with_default(logging.finish(), || tracing::error!("lost"));
    }

    #[test]
    fn each_detail_and_hint_has_a_line() {
        let record = record("could not read x: \u{1b}\nHINT: Look at it.\nDETAIL: It is far.\nHINT: Wait.");
        let parts = "could not read x: \\u{1b} repository=\"main\"\nDETAIL: It is far.\nHINT: Look at it.\nHINT: Wait.";
        assert_eq!(record.shown(Form::Terminal, NOW, false), format!("error: {parts}"));
        assert_eq!(record.shown(Form::Terminal, NOW, true), format!("\u{1b}[31;1merror: \u{1b}[0m{parts}"));
        assert_eq!(
            record.shown(Form::Lines, NOW, false),
            format!("1970-01-01T00:00:00.000000Z ERROR {parts}")
        );
    }

    #[test]
    fn a_daemons_record_is_one_line() {
        assert_eq!(
            record("no answer\nHINT: Wait.\nDETAIL: It is far.").shown(Form::OneLine, NOW, false),
            "1970-01-01T00:00:00.000000Z ERROR no answer repository=\"main\" DETAIL: It is far. HINT: Wait."
        );
    }

    #[test]
    fn in_json_details_and_hints_are_members() {
        let json = record("no answer\nHINT: Wait.\nDETAIL: It is far.\nHINT: Go there.").shown(
            Form::Json,
            NOW,
            false,
        );
        assert_eq!(json.lines().count(), 1);
        let read: Value = serde_json::from_str(&json).unwrap();
        let expected = serde_json::json!({
            "timestamp": "1970-01-01T00:00:00.000000Z",
            "level": "ERROR",
            "message": "no answer",
            "detail": "It is far.",
            "hint": "Wait.\nGo there.",
            "repository": "main",
        });
        assert_eq!(read, expected);
    }
}
