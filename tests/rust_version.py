"""Checks that no dependency of the published packages needs a newer Rust than they claim.

Reads the output of `cargo metadata --all-features` from standard input. Development dependencies do
not count: a user of the packages does not compile them.
"""

import json
import sys


def parsed(version):
    parts = [int(part) for part in version.split(".")]
    return tuple(parts + [0] * (3 - len(parts)))


metadata = json.load(sys.stdin)
packages = {package["id"]: package for package in metadata["packages"]}
nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}
published = [
    package["id"]
    for package in packages.values()
    if package["id"] in metadata["workspace_members"] and package["publish"] is None
]
oldest = min(parsed(packages[id]["rust_version"]) for id in published)

needed, waiting = set(), list(published)
while waiting:
    id = waiting.pop()
    if id not in needed:
        needed.add(id)
        for dependency in nodes[id]["deps"]:
            if any(kind["kind"] != "dev" for kind in dependency["dep_kinds"]):
                waiting.append(dependency["pkg"])

newer = [
    f"{package['name']} {package['version']} needs Rust {package['rust_version']}"
    for package in map(packages.get, needed)
    if package["rust_version"] and parsed(package["rust_version"]) > oldest
]
claimed = ".".join(map(str, oldest))
if newer:
    sys.exit(f"`rust-version` is {claimed}, but " + "; ".join(sorted(newer)))
print(f"Rust {claimed} is new enough for {len(needed)} packages")
