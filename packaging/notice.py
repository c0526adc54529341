#!/usr/bin/env python3
"""Writes NOTICE: every crate that is in the binary, its licence, and each licence text once.

    packaging/notice.py --features cuda > NOTICE

Reads `cargo metadata` and the sources that cargo has; dials nobody. Crates that only tests or builds use are left out.
"""

import collections
import hashlib
import json
import pathlib
import re
import subprocess
import sys

TEXTS = re.compile(r"^(LICEN[CS]E|COPYING|COPYRIGHT|NOTICE|UNLICENSE)", re.IGNORECASE)


def metadata(arguments):
    command = ["cargo", "metadata", "--locked", "--format-version", "1"]
    command += ["--filter-platform", "x86_64-unknown-linux-gnu", *arguments]
    return json.loads(subprocess.check_output(command))


def in_the_binary(meta):
    """Ids of the packages that `hearth` is linked from."""
    nodes = {node["id"]: node for node in meta["resolve"]["nodes"]}
    root = next(p["id"] for p in meta["packages"] if p["name"] == "hearth" and p["source"] is None)
    seen, waiting = set(), [root]
    while waiting:
        at = waiting.pop()
        if at in seen:
            continue
        seen.add(at)
        for dep in nodes[at]["deps"]:
            if any(kind["kind"] is None for kind in dep["dep_kinds"]):
                waiting.append(dep["pkg"])
    return seen


def texts(package):
    folder = pathlib.Path(package["manifest_path"]).parent
    files = [f for f in sorted(folder.iterdir()) if f.is_file() and TEXTS.match(f.name)]
    return [f.read_text(encoding="utf-8", errors="replace").strip() for f in files]


def main():
    meta = metadata(sys.argv[1:])
    linked = in_the_binary(meta)
    others = [p for p in meta["packages"] if p["id"] in linked and p["source"] is not None]
    others.sort(key=lambda p: (p["name"], p["version"]))
    users, found = collections.defaultdict(list), {}
    for package in others:
        for text in texts(package):
            digest = hashlib.sha256(" ".join(text.split()).encode()).hexdigest()
            found.setdefault(digest, text)
            users[digest].append(f"{package['name']} {package['version']}")
    print("Hearth\n======\n\nLicensed under the Apache License, Version 2.0; see the file copyright beside this one.\n")
    print(f"The binary contains the Rust standard library (MIT OR Apache-2.0) and these {len(others)} crates:\n")
    for package in others:
        print(f"  {package['name']} {package['version']}: {package['license'] or 'see its text below'}")
    for digest, text in sorted(found.items(), key=lambda item: (users[item[0]][0], item[0])):
        print(f"\n{'-' * 78}\n{', '.join(users[digest])}\n{'-' * 78}\n\n{text}")


if __name__ == "__main__":
    main()
