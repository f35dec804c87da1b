#!/usr/bin/env python3
"""No source file is longer than a reader takes in: 500 lines, 600 for tests, and no function longer than 80.

All lines count, comments and blank ones too: clippy's own limits do not. A test file is one in a folder `tests`, or whose
name is or ends in `tests`.
"""

import pathlib
import re
import sys

TOP = pathlib.Path(__file__).resolve().parents[2]
FILE, TEST_FILE, FUNCTION = 500, 600, 80
FN = re.compile(r"^(\s*)(?:pub(?:\([^)]*\))? )?(?:const |async |unsafe )*fn (\w+)")


def sources():
    """All sources but those that are built."""
    for file in sorted(TOP.rglob("*.rs")):
        path = file.relative_to(TOP)
        if "target" not in path.parts and not any(part.startswith(".") for part in path.parts):
            yield path, file.read_text().splitlines()


def is_test(path):
    return "tests" in path.parts or path.stem.endswith("tests")


def functions(lines):
    """Each function that has lines of its own: its name, the line it begins in, and how many it has."""
    for begin, line in enumerate(lines):
        found = FN.match(line)
        if found and not line.endswith((";", "}")):
            # A trait's method without a body ends with its arguments.
            close = next((line for line in lines[begin:] if line.startswith(found.group(1) + ")")), "")
            if line.endswith("(") and close.endswith(";"):
                continue
            end = lines.index(found.group(1) + "}", begin) if found.group(1) + "}" in lines[begin:] else begin
            yield found.group(2), begin + 1, end - begin + 1


def main():
    long = []
    for path, lines in sources():
        limit = TEST_FILE if is_test(path) else FILE
        if len(lines) > limit:
            long.append(f"{path} has {len(lines)} lines, and {limit} are allowed")
        for name, begin, length in functions(lines):
            if length > FUNCTION:
                long.append(f"{path}:{begin}: {name} has {length} lines, and {FUNCTION} are allowed")
    for one in long:
        print(f"error: length: {one}", file=sys.stderr)
    if not long:
        print("lengths: no file and no function is too long")
    return bool(long)


if __name__ == "__main__":
    sys.exit(main())
