#!/usr/bin/env python3
"""Finds options and command lines of the programs in the texts of libraries.

A library returns facts, and the programs say what to do about them: they alone know what their options are called. So no string
literal of a crate under shared/ holds an option ("--target-lsn") or a program with a command ("archive-agent verify"). Two crates
are theirs: runtime defines the options that every command takes, and words holds what both agents print.
"""

import pathlib
import re
import sys

OURS = {"runtime", "words"}
SPELLED = re.compile(r"(?<![\w-])--[a-z][a-z-]+|\b(?:archive-agent|restore-agent) [a-z]+")
# Comments are skipped; of a literal the text is group 1 (raw) or 2. A character literal may be a quote.
TOKEN = re.compile(
    r"//[^\n]*|/\*.*?\*/|'(?:\\.[^']*|[^\\'])'|\bb?r(#*)\"(.*?)\"\1|\"((?:\\.|[^\"\\])*)\"", re.DOTALL
)


def literals(text):
    """The string literals of a source file: their offset, and their text without line continuations."""
    for token in TOKEN.finditer(text):
        content = token.group(2) if token.group(2) is not None else token.group(3)
        if content is not None:
            yield token.start(), re.sub(r"\\\n\s*", "", content)


def main():
    root = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else "shared")
    failed = False
    for crate in sorted(path for path in root.iterdir() if (path / "src").is_dir() and path.name not in OURS):
        for file in sorted((crate / "src").rglob("*.rs")):
            text = file.read_text(encoding="utf-8")
            for offset, literal in literals(text):
                for spelled in SPELLED.findall(literal):
                    line = text.count("\n", 0, offset) + 1
                    print(f"error: spelling: {file}:{line}: a library must not spell \"{spelled}\"", file=sys.stderr)
                    failed = True
    return failed


if __name__ == "__main__":
    sys.exit(main())
