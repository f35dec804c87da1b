//! What the help of every command has in common: the headings of its options, examples, and a width.

use clap::Command;
use clap::builder::Styles;

/// The heading of the options that every command takes.
pub const GLOBAL: &str = "Global options";
/// The heading of what says where in a cluster's history something is.
pub const TARGET: &str = "Target";
/// The heading of the options each of which overrides one refusal.
pub const OVERRIDES: &str = "Overrides";

/// Columns of the help, however wide the terminal is; `max_term_width` of both programs.
pub const WIDTH: usize = 80;

/// How the section of examples begins, in plain text.
const EXAMPLES: &str = "Examples:";

/// The section below the long help of a command: what each example does, and its command line, or several lines of them. A line that
/// ends with a backslash is continued in the next. For `after_long_help`.
pub fn examples(examples: &[(&str, &str)]) -> String {
    let styles = Styles::styled();
    let header = styles.get_header();
    let mut text = format!("{header}{EXAMPLES}{header:#}");
    for (n, (what, line)) in examples.iter().enumerate() {
        let before = if n == 0 { "\n" } else { "\n\n" };
        text += &format!("{before}  {what}:");
        let mut indent = "      ";
        for line in line.lines().map(str::trim) {
            text += &format!("\n{indent}{line}");
            indent = if line.ends_with('\\') { "          " } else { "      " };
        }
    }
    text
}

/// The same section for a manual page, in roff; nothing if the command has none.
pub(crate) fn examples_in_roff(command: &Command) -> String {
    let text = command.get_after_long_help().map(ToString::to_string).unwrap_or_default();
    let Some(examples) = text.strip_prefix(EXAMPLES) else { return String::new() };
    let mut page = ".SH EXAMPLES\n.nf\n".to_owned();
    for line in examples.trim_start_matches('\n').lines() {
        let line = line.strip_prefix("  ").unwrap_or(line).replace('\\', "\\e").replace('-', "\\-");
        let guard = if line.starts_with(['.', '\'']) { "\\&" } else { "" };
        page += &format!("{guard}{line}\n");
    }
    page + ".fi\n"
}

/// What is wrong with the help of a program's commands that are not hidden, for a test: each has to say what it does, as a person is
/// asked to do something, describe each option, show examples, and fit the width.
pub fn lint(program: Command) -> Vec<String> {
    let mut program = program.disable_help_subcommand(true);
    program.build();
    let mut problems = Vec::new();
    lint_command(&mut program, &mut problems);
    problems
}

fn lint_command(command: &mut Command, problems: &mut Vec<String>) {
    let name = command.get_bin_name().unwrap_or_else(|| command.get_name()).to_owned();
    let about = command.get_about().map(ToString::to_string).unwrap_or_default();
    let verb = about.split(' ').next().unwrap_or_default();
    if ["A", "An", "The", "Everything"].contains(&verb)
        || !verb.starts_with(char::is_uppercase)
        || (verb.ends_with('s') && !verb.ends_with("ss"))
    {
        problems.push(format!("{name}: \"{about}\" does not begin with a verb in the imperative"));
    }
    if command.has_subcommands() {
        for below in command.get_subcommands_mut().filter(|below| !below.is_hide_set()) {
            lint_command(below, problems);
        }
    } else if command.get_after_long_help().is_none() {
        problems.push(format!("{name}: no examples"));
    }
    for argument in command.get_arguments().filter(|argument| !argument.is_hide_set()) {
        if argument.get_help().is_none() {
            problems.push(format!("{name}: {argument} is not described"));
        }
    }
    let help = [command.render_help(), command.render_long_help()].map(|help| help.to_string());
    for line in help.iter().flat_map(|help| help.lines()).filter(|line| line.chars().count() > WIDTH) {
        problems.push(format!("{name}: wider than {WIDTH} columns: {line}"));
    }
}

#[cfg(test)]
mod tests {
    use clap::Arg;

    use super::*;

    #[test]
    fn examples_are_a_section_of_help_and_manual() {
        let text = examples(&[("Do it", "agent do \\\n--it\nagent undo"), ("Do 'that', .too", ".agent do")]);
        let command = Command::new("do").about("Do it").after_long_help(text);
        let help = command.clone().render_long_help().to_string();
        let shown = "Examples:\n  Do it:\n      agent do \\\n          --it\n      agent undo\n\n  Do 'that', .too:\n      .agent do\n";
        assert!(help.ends_with(shown), "{help}");
        assert!(
            !command.clone().render_help().to_string().contains("Examples"),
            "only the long help has them"
        );
        let page = examples_in_roff(&command);
        assert_eq!(
            page,
            ".SH EXAMPLES\n.nf\nDo it:\n    agent do \\e\n        \\-\\-it\n    agent undo\n\nDo 'that', .too:\n    .agent do\n.fi\n"
        );
        assert_eq!(examples_in_roff(&Command::new("do")), "");
    }

    #[test]
    fn what_a_help_lacks_is_named() {
        let good = Command::new("good").about("Pass it on").after_long_help(examples(&[("Do", "x")]));
        let bad = Command::new("bad").about("Does it").arg(Arg::new("x").long("x"));
        let hidden = Command::new("hidden").hide(true);
        let wide = "w".repeat(90);
        let wide = Command::new("wide").about("Widen").after_long_help(examples(&[("Do", &wide)]));
        let program = Command::new("agent").about("Do things").max_term_width(WIDTH);
        assert_eq!(lint(program.clone().subcommand(good)), [""; 0]);
        let problems = lint(program.subcommands([bad, hidden, wide])).join("\n");
        for expected in
            ["agent bad: \"Does it\"", "agent bad: no examples", "--x", "agent wide: wider than 80"]
        {
            assert!(problems.contains(expected), "{expected}: {problems}");
        }
        assert!(!problems.contains("hidden"), "{problems}");
    }
}
