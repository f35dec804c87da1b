#!/usr/bin/env python3
"""No two folders of one crate import each other in a circle, directly or by way of others.

Read are the paths in the sources: `use` and paths in the code that begin with `crate`, `super` or `self`. What is built for
tests only is left out. A circle of single files is no error: a folder is a room, and its files may know each other.
"""

import pathlib
import re
import sys

TOP = pathlib.Path(__file__).resolve().parents[2]
ONLY_TESTS = re.compile(r"#\[cfg\(test\)\]\s*(?:pub(?:\([^)]*\))? )?mod (\w+);")
USE = re.compile(r"\buse ((?:crate|super|self)\b[^;]*);")
PATH = re.compile(r"\b(?:crate|super|self)(?:::\w+)+")
FACE = re.compile(r"(?m)^pub(?:\([^)]*\))? use (?:crate::|self::)?([^;]*);")


def crates():
    """The source folders of all crates of the workspace."""
    members = re.search(r"members = \[(.*?)\]", (TOP / "Cargo.toml").read_text(), re.S).group(1)
    return [TOP / member / "src" for member in re.findall(r'"([^"]+)"', members)]


def leaves(tree, prefix=()):
    """The paths that a tree of a `use` names."""
    tree = tree.strip()
    head, brace, rest = tree.partition("{")
    if not brace:
        yield prefix + tuple(re.sub(r" as \w+$", "", tree).split("::"))
        return
    prefix += tuple(part for part in head.strip().split("::") if part)
    depth, begin = 0, 0
    rest = rest[: rest.rindex("}")] + ","
    for at, char in enumerate(rest):
        depth += (char == "{") - (char == "}")
        if char == "," and depth == 0:
            if rest[begin:at].strip():
                yield from leaves(rest[begin:at], prefix)
            begin = at + 1


def code(file):
    """A source without comments, text and its unit tests."""
    text = file.read_text()
    text = re.sub(r"//[^\n]*", "", text)
    text = re.sub(r'"(?:\\.|[^"\\])*"', '""', text, flags=re.S)
    return re.split(r"#\[cfg\(test\)\]\s*mod \w+ \{", text)[0]


def modules(source):
    """Each module of a crate, as a path, with its code."""
    found, skipped = {}, set()
    for file in sorted(source.rglob("*.rs")):
        path = file.relative_to(source).with_suffix("").parts
        if path[-1] in ("mod", "lib", "main"):
            path = path[:-1]
        found[path] = code(file)
        skipped |= {path + (name,) for name in ONLY_TESTS.findall(file.read_text())}
    return {p: t for p, t in found.items() if not any(p[: len(s)] == s for s in skipped)}


def arrows(found):
    """Which module names which, by the module that what it names is in."""
    known = {path[:length] for path in found for length in range(len(path) + 1)}
    faces = {}
    for tree in FACE.findall(found.get((), "")):
        for path in leaves(tree):
            faces[path[-1]] = path[:-1]

    def resolve(at, path):
        path = list(path)
        base = list(at)
        if path[0] == "crate":
            base, path = [], path[1:]
        elif path[0] == "self":
            path = path[1:]
        while path and path[0] == "super":
            base, path = base[:-1], path[1:]
        if not base and path and path[0] in faces:
            path = list(faces[path[0]])
        whole = tuple(base + path)
        while whole not in known:
            whole = whole[:-1]
        return whole

    for at, text in found.items():
        named = [path for tree in USE.findall(text) for path in leaves(tree)]
        named += [tuple(path.split("::")) for path in PATH.findall(USE.sub("", text))]
        for path in named:
            yield at, resolve(at, path), "::".join(path)


def rings(graph):
    """The sets of nodes that reach each other."""
    reach = {}
    for node in graph:
        seen, todo = set(), [node]
        while todo:
            new = graph.get(todo.pop(), set()) - seen
            seen |= new
            todo += new
        reach[node] = seen
    return {frozenset(n for n in graph if n in reach[node] and node in reach[n]) for node in graph} - {frozenset()}


def main():
    failed = False
    for source in crates():
        found = modules(source)
        folders = {path[:length] for path in found for length in range(1, len(path))}
        levels = {}
        for at, to, name in arrows(found):
            common = 0
            while common < min(len(at), len(to)) and at[common] == to[common]:
                common += 1
            if common < min(len(at), len(to)):
                ends = (at[: common + 1], to[: common + 1])
                levels.setdefault(at[:common], {}).setdefault(ends, set()).add(f"{'/'.join(at)}: {name}")
        for level in levels.values():
            graph = {}
            for begin, end in level:
                graph.setdefault(begin, set()).add(end)
            for ring in rings(graph):
                if sum(node in folders for node in ring) < 2:
                    continue
                failed = True
                names = ", ".join(sorted("/".join(node) for node in ring))
                print(f"error: {source.relative_to(TOP)}: a circle of {names}", file=sys.stderr)
                for (begin, end), names in sorted(level.items()):
                    if begin in ring and end in ring:
                        print(f"  {'/'.join(begin)} -> {'/'.join(end)}: {sorted(names)[0]} ({len(names)})", file=sys.stderr)
    if not failed:
        print("circles: none between folders of a crate")
    return failed


if __name__ == "__main__":
    sys.exit(main())
