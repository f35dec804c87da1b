#!/usr/bin/env python3
"""Writes the comparison in README.md from bench/RESULTS.md: of its targets, those that were measured beside another tool.

  readme-figures.py           writes the table
  readme-figures.py --check   fails if the table is not that of the results

`make bench` writes it after the results, `make lint` checks it.
"""

import pathlib
import re
import sys

TOP = pathlib.Path(__file__).resolve().parents[2]
BEGIN = "<!-- figures: written by tests/setup/readme-figures.py from bench/RESULTS.md -->\n"
END = "<!-- end of figures -->\n"
# What a row of the results is called here. A row that is not named here is not shown.
ROWS = {
    "archive, local filesystem": "archive to a directory",
    "archive, local filesystem: one command, p50": "one `archive_command`, median",
    "archive, S3 on SeaweedFS": "archive to S3",
    "archive, S3: CPU seconds per GB": "CPU time for each GB archived to S3",
    "requests for each archived segment": "requests to S3 for each segment",
    "fetch from S3, unpaced": "fetch WAL from S3",
    "fetch paced at 30 ms: p50": "one `restore_command` during replay, median",
    "fetch paced at 30 ms: p99": "the slowest 1 % of them",
    "full backup, local filesystem": "full backup",
    "restore, local filesystem": "restore",
}


def rows(results):
    """The cells of each row of the targets."""
    section = results.split("\n## Targets\n", 1)[1].split("\n## ", 1)[0]
    for line in section.splitlines():
        if line.startswith("| ") and not line.startswith("|---"):
            yield [cell.strip() for cell in line.strip("|").split("|")]


def table(results):
    version = re.search(r"pgBackRest ([0-9.]+)", results).group(1).rstrip(".")
    lines = [f"| work | Walpoint | pgBackRest {version} |\n", "|---|---|---|\n"]
    found = []
    for work, ours, other, *_ in rows(results):
        compared = re.fullmatch(r"(.+?) \(pgbackrest.*\)", other)
        if compared and work in ROWS:
            found.append(work)
            lines.append(f"| {ROWS[work]} | {ours} | {compared.group(1)} |\n")
    wrong = [f'no row "{work}" that compares with pgBackRest' for work in ROWS if work not in found]
    wrong += [f'several rows "{work}"' for work in ROWS if found.count(work) > 1]
    if wrong:
        sys.exit(f"error: bench/RESULTS.md has {', '.join(wrong)}")
    return "\n" + "".join(lines) + "\n"


def main():
    readme = TOP / "README.md"
    text = readme.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    written = before + BEGIN + table((TOP / "bench/RESULTS.md").read_text(encoding="utf-8")) + END + after
    if "--check" not in sys.argv[1:]:
        readme.write_text(written, encoding="utf-8")
    elif written != text:
        print("error: figures: README.md does not have those of bench/RESULTS.md: run tests/setup/readme-figures.py", file=sys.stderr)
        return True
    else:
        print("figures: README.md has those of bench/RESULTS.md")
    return False


if __name__ == "__main__":
    sys.exit(main())
