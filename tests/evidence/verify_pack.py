"""Verifies an audit pack as an auditor would: written from docs/evidence.md and shared/repo/FORMAT.md alone, with hashlib and json only.

verify_pack.py DIRECTORY [HASH:NUMBER ...]

Prints hash and number of the last record, or says what is wrong and exits 1. Each HASH:NUMBER is a head that was noted earlier.
"""

import hashlib
import json
import sys


def fail(text):
    print(text)
    sys.exit(1)


def sums(directory):
    """Every file that SHA256SUMS names has the hash that it names."""
    names = []
    with open(f"{directory}/SHA256SUMS", encoding="ascii") as file:
        for line in file:
            noted, name = line.rstrip("\n").split("  ")
            with open(f"{directory}/{name}", "rb") as content:
                if hashlib.sha256(content.read()).hexdigest() != noted:
                    fail(f"{name} is not the file that was exported")
            names.append(name)
    for name in ("records.jsonl", "report.html", "HEAD", "VERIFY.txt"):
        if name not in names:
            fail(f"SHA256SUMS does not name {name}")


def chain(directory):
    """The hashes of all records, in their order."""
    hashes = []
    with open(f"{directory}/records.jsonl", "rb") as file:
        for line in file.read().split(b"\n")[:-1]:
            record = json.loads(line)
            number = len(hashes) + 1
            if record["format"] != 1:
                fail(f"record {number} has an unknown format")
            if record["number"] != number:
                fail(f"record {number} is missing or out of place")
            if record.get("previous_hash") != (hashes[-1] if hashes else None):
                fail(f"record {number} does not continue record {number - 1}")
            hashes.append(hashlib.sha256(line).hexdigest())
    return hashes


def main():
    directory, heads = sys.argv[1], sys.argv[2:]
    sums(directory)
    hashes = chain(directory)
    with open(f"{directory}/HEAD", encoding="ascii") as file:
        heads.append(file.read().strip())
    for head in heads:
        noted, number = head.split(":")
        if int(number) > len(hashes):
            fail(f"record {number} is missing at the end")
        if hashes[int(number) - 1] != noted:
            fail(f"record {number} has another hash than was noted")
    print(f"{hashes[-1]}:{len(hashes)}")


main()
