#!/usr/bin/env python3
"""Draws docs/demo.svg: what `make demo` prints, as a terminal.

  demo-svg.py PROGRAMS         runs the demonstration with the programs of that directory, and draws it
  demo-svg.py --from FILE      draws what was printed before
  demo-svg.py --record FILE PROGRAMS   also keeps what was printed

To make the picture anew: `make build`, then `tests/setup/demo-svg.py target/release`. The picture needs nothing but itself: no fonts, no
scripts. It follows the reader's light or dark color scheme. Long answers are cut, and say so; empty lines and the log are left out.
"""

import argparse
import html
import pathlib
import re
import subprocess
import sys

TOP = pathlib.Path(__file__).resolve().parents[2]
OUT = TOP / "docs/demo.svg"
COLUMNS = 108
CELL, LINE, MARGIN, BAR = 7.8, 18, 20, 36
# Lines of an answer that are shown, by command; all of the others.
SHOWN = {"init": 3, "check": 4, "backup": 8, "status": 8, "plan": 8, "restore": 2}
TITLE = "make demo: a PostgreSQL server loses a table and gets it back"
DESCRIPTION = (
    "A terminal. A PostgreSQL server with a million accounts is given a repository, checked and backed up under load. "
    "A table is dropped. A plan shows how the second before can be recovered, and a restore brings it back: "
    "the dump taken before the accident equals the one after the recovery."
)
STYLE = """
    .screen { fill: #ffffff; stroke: #d1d9e0 } .bar { fill: #f6f8fa } .dot { fill: #d1d9e0 }
    text { font: 13px ui-monospace, SFMono-Regular, "SF Mono", Menlo, Consolas, "Liberation Mono", monospace; fill: #1f2328 }
    .head { font-weight: 700 } .command { fill: #0550ae } .cut { fill: #59636e; font-style: italic } .name { fill: #59636e }
    .good { fill: #1a7f37; font-weight: 700 } .bad { fill: #b35900 }
    @media (prefers-color-scheme: dark) {
      .screen { fill: #0d1117; stroke: #3d444d } .bar { fill: #151b23 } .dot { fill: #3d444d }
      text { fill: #e6edf3 } .command { fill: #79c0ff } .cut, .name { fill: #9198a1 } .good { fill: #56d364 } .bad { fill: #f0b072 }
    }
"""
HEADING = re.compile(r"\x1b\[1m(.*?)\x1b\[0m")
LOGGED = re.compile(r"\s*\d{4}-\d\d-\d\dT\S+Z +(?:INFO|WARN|ERROR) ")
CONTROL = re.compile(r"\x1b\[[0-9;]*[A-Za-z]|\r")


def record(programs):
    """What the demonstration prints."""
    run = subprocess.run(
        [TOP / "tests/setup/demo.sh", programs], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if run.returncode != 0:
        sys.exit(f"error: the demonstration failed with {run.returncode}:\n{run.stdout}")
    return run.stdout


def wrapped(text, indent):
    """A command in lines that fit, as a shell would take them."""
    first, *words = re.findall(r'"[^"]*"|\S+', text)
    lines, line = [], "  " + first
    for word in words:
        if len(line) + len(word) + 3 > COLUMNS:
            lines.append(line + " \\")
            line = indent + word
        else:
            line += " " + word
    return [*lines, line]


def screen(printed):
    """The lines of the terminal, each with its class."""
    printed = re.sub(r"/tmp/walpoint-demo\.\w+", "/demo", printed)
    lines, answer, shown = [], [], COLUMNS

    def flush():
        kept = answer if len(answer) <= shown + 1 else answer[:shown]
        lines.extend((kind(text), text) for text in kept)
        if len(kept) < len(answer):
            lines.append(("cut", f"    … {len(answer) - len(kept)} more lines"))
        answer.clear()

    for raw in printed.splitlines():
        heading = HEADING.search(raw)
        text = CONTROL.sub("", raw).rstrip()
        if heading:
            flush()
            lines.extend([("", ""), ("head", heading.group(1))] if lines else [("head", heading.group(1))])
            shown = COLUMNS
        elif text.startswith("  $ "):
            flush()
            lines.extend(("command", part) for part in wrapped(text.strip(), "      "))
            words = text.split()
            shown = SHOWN.get(words[2] if len(words) > 2 else "", COLUMNS)
        elif re.match(r"    \([0-9.]+ s\)$", text):
            flush()
            lines.append(("cut", text))
        elif text.strip() and not LOGGED.match(text):
            answer.append(text if len(text) <= COLUMNS else text[: COLUMNS - 1] + "…")
    flush()
    return lines


def kind(text):
    if text.startswith("    equal: "):
        return "good"
    return "bad" if "drop table" in text else ""


def drawn(lines):
    width = round(COLUMNS * CELL + 2 * MARGIN)
    height = BAR + MARGIN + len(lines) * LINE + MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" aria-labelledby="title description">',
        f'  <title id="title">{html.escape(TITLE)}</title>',
        f'  <desc id="description">{html.escape(DESCRIPTION)}</desc>',
        f"  <style>{STYLE}  </style>",
        f'  <rect class="screen" x="0.5" y="0.5" width="{width - 1}" height="{height - 1}" rx="8"/>',
        f'  <path class="bar" d="M1 {BAR}V9a8 8 0 0 1 8-8H{width - 9}a8 8 0 0 1 8 8V{BAR}z"/>',
        *(f'  <circle class="dot" cx="{20 + 18 * n}" cy="{BAR / 2:g}" r="5"/>' for n in range(3)),
        f'  <text class="name" x="{width / 2:g}" y="{BAR / 2 + 4.5:g}" text-anchor="middle">make demo</text>',
    ]
    for number, (name, text) in enumerate(lines):
        stripped = text.lstrip(" ")
        if not stripped:
            continue
        # The width of a cell is given, so columns stand below each other in every font.
        x = MARGIN + (len(text) - len(stripped)) * CELL
        y = BAR + MARGIN + (number + 0.75) * LINE
        of = f' class="{name}"' if name else ""
        fit = f'textLength="{len(stripped) * CELL:.1f}" lengthAdjust="spacingAndGlyphs"'
        parts.append(f'  <text{of} x="{x:.1f}" y="{y:g}" {fit} xml:space="preserve">{html.escape(stripped, quote=False)}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("programs", nargs="?", help="the directory with the four programs")
    parser.add_argument("--from", dest="printed", metavar="FILE", help="draw what was printed before")
    parser.add_argument("--record", metavar="FILE", help="keep what was printed")
    parser.add_argument("--out", metavar="FILE", default=OUT, help="the picture [default: docs/demo.svg]")
    args = parser.parse_args()
    if bool(args.programs) == bool(args.printed):
        parser.error("give either the directory of the programs or --from")
    printed = pathlib.Path(args.printed).read_text(encoding="utf-8") if args.printed else record(args.programs)
    if args.record:
        pathlib.Path(args.record).write_text(printed, encoding="utf-8")
    pathlib.Path(args.out).write_text(drawn(screen(printed)), encoding="utf-8")


if __name__ == "__main__":
    main()
