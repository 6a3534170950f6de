#!/usr/bin/env python3
"""Writes release.json: what a release consists of, with sizes and digests; prints sizes against goals."""

import argparse
import hashlib
import json
from pathlib import Path

ARTIFACTS = ["garboard.raw", "garboard.qcow2", "garboard.efi", "root.erofs", "root.verity"]


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def used_bytes(path: Path) -> int:
    """The bytes of an erofs file system, without the partition's free rest.

    erofs superblock (at 1024): blkszbits is the byte at 12, blocks the 32 bits at 36.
    """
    with path.open("rb") as file:
        file.seek(1024)
        block = file.read(64)
    if block[:4] != b"\xe2\xe1\xf5\xe0":
        raise SystemExit(f"{path} is no erofs file system")
    return int.from_bytes(block[36:40], "little") << block[12]


def against(name: str, size: int, goal: int) -> str:
    verdict = "within" if size <= goal else "ABOVE"
    return f"       {name}: {size / 1e6:.1f} MB, {verdict} the goal of {goal / 1e6:.0f} MB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--version", required=True)
    parser.add_argument("--mode", required=True, choices=["quick", "release"], help="how strongly the root is compressed")
    parser.add_argument("--folder", required=True, type=Path, help="where the artifacts are and release.json goes")
    parser.add_argument("--root-hash", required=True, help="dm-verity's root hash")
    parser.add_argument("--packages", required=True, type=Path, help="the Debian packages that files are from, JSON")
    parser.add_argument("--upstream", required=True, type=Path, help="the versions of upstream's programs, JSON")
    parser.add_argument("--root-goal", required=True, type=int, help="bytes")
    parser.add_argument("--uki-goal", required=True, type=int, help="bytes")
    options = parser.parse_args()

    files = {
        name: {"size": (options.folder / name).stat().st_size, "sha256": sha256(options.folder / name)}
        for name in ARTIFACTS
    }
    root_size = used_bytes(options.folder / "root.erofs")
    release = {
        "version": options.version,
        "architecture": "x86-64",
        "compression": options.mode,
        "rootHash": options.root_hash.strip(),
        "rootSize": root_size,
        "upstream": json.loads(options.upstream.read_text()),
        "artifacts": files,
        "packages": json.loads(options.packages.read_text()),
    }
    (options.folder / "release.json").write_text(json.dumps(release, indent=2) + "\n")
    if options.mode == "release":
        print(against("root", root_size, options.root_goal))
    else:
        goal = f"the goal of {options.root_goal / 1e6:.0f} MB is for a release's compression"
        print(f"       root: {root_size / 1e6:.1f} MB in quick compression; {goal}")
    print(against("UKI", files["garboard.efi"]["size"], options.uki_goal))


if __name__ == "__main__":
    main()
