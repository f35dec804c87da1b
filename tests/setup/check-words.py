#!/usr/bin/env python3
"""Finds words that read like a translation, or say nothing precise, in what users read, and messages that hide a hint in a line.

That is the README, the pages, the notes for those who join, manual pages, and of the programs every text of more than one word
(string literals) and the help of every option (the doc comments of items that clap derives from). Comments for readers of the code
are not checked. Prints each with its place, and fails if there is one.

A message has its details and its hints on lines of their own, as whole sentences (shared/base/src/diagnostic.rs): what takes messages
apart, for logs and documents, would not find them elsewhere.
"""

import importlib.util
import pathlib
import re
import sys

TOP = pathlib.Path(__file__).resolve().parents[2]
WORDS = re.compile(
    r"\b(nobody|somebody|whoever|tells?|told|go(?:es|ing)? on with|gone on with|mend(?:s|ed|ing)?|begun anew|given up|passed over"
    r"|a repository beside|goes away|if it likes|stands? in no|hears?|the same of|shall)\b",
    re.IGNORECASE,
)
CLAP = re.compile(r"derive\([^)]*\b(?:Args|Parser|Subcommand|ValueEnum)\b")
# What puts details and hints on lines, and takes them from there.
DESIGN = TOP / "shared/base/src/diagnostic.rs"
# A detail or a hint in a string literal: what stands before it, its word, and its text up to the next line.
PART = re.compile(r"^(.*?)(?<![A-Z_])(DETAIL|HINT):(.*?)(?:\\n(.*))?$", re.DOTALL)
# A whole sentence. What is put in may begin or end it; an option, a setting, a function or a command may begin it.
SENTENCE = re.compile(r"^ (?:[A-Z{(]|\\\"|--|(?:archive|restore)-|\w+_\w+|conninfo|pgdata|select|systemd).*(?:[.…}]|\.\))$", re.DOTALL)
# A name in braces is no word of the text.
ARGUMENT = re.compile(r"\{[a-z_.]*(?::[^}]*)?\}")


def spelling():
    """The reader of string literals that check-spelling.py has."""
    spec = importlib.util.spec_from_file_location("spelling", TOP / "tests/setup/check-spelling.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pages():
    """Each line of the pages: its file, its number, its text."""
    names = ["README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"]
    files = [TOP / name for name in names] + sorted((TOP / "docs").glob("*.md"))
    files += sorted(TOP.glob("*-agent/*/*.1"))
    for file in files:
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            yield file, number, line


def is_product(path):
    parts = path.parts
    test = path.stem.endswith("tests") or {"tests", "testing", "model", "worlds", "target"} & set(parts)
    return not test and parts[0] in ("archive-agent", "restore-agent", "shared")


def help_lines(lines):
    """The doc comments inside of items that clap derives from."""
    inside = False
    for number, line in enumerate(lines, 1):
        inside = inside or bool(CLAP.search(line))
        if inside and line.strip().startswith("///"):
            yield number, line.strip()
        inside = inside and line != "}"


def texts(shown=lambda literal: ARGUMENT.sub("{}", literal)):
    """Each text of the programs: its file, its line, itself."""
    literals = spelling().literals
    for file in sorted(TOP.rglob("*.rs")):
        if not is_product(file.relative_to(TOP)):
            continue
        text = file.read_text(encoding="utf-8").split("#[cfg(test)]\nmod tests {")[0]
        for offset, literal in literals(text):
            if " " in literal:
                yield file, text.count("\n", 0, offset) + 1, shown(literal)
        for number, line in help_lines(text.splitlines()):
            yield file, number, line


def misplaced():
    """Each text that has a detail or a hint which is no line of its own, or no whole sentence: its file, its line, itself."""
    for file, line, text in texts(str):
        if file == DESIGN:
            continue
        rest, first = text, True
        while part := PART.match(rest):
            before, _, sentence, rest = part.groups()
            alone = before.endswith("\\n") or first and not before
            if not alone or not SENTENCE.match(sentence):
                yield file, line, text
                break
            # What is left began a line.
            rest, first = f"\\n{rest}" if rest else "", False


def main():
    found = [(file, line, text) for file, line, text in [*pages(), *texts()] if WORDS.search(text)]
    for file, line, text in found:
        word = WORDS.search(text).group(0)
        print(f"error: words: {file.relative_to(TOP)}:{line}: \"{word}\" in: {text.strip()[:160]}", file=sys.stderr)
    parts = list(misplaced())
    for file, line, text in parts:
        what = "a detail or a hint has to be a line of its own and a whole sentence"
        print(f"error: words: {file.relative_to(TOP)}:{line}: {what}: {text.strip()[:300]}", file=sys.stderr)
    if not found and not parts:
        print("words: none to avoid in pages, messages and help; details and hints are lines of their own")
    return bool(found or parts)


if __name__ == "__main__":
    sys.exit(main())
