#!/usr/bin/env python3
"""Makes the initrd: a zstd-compressed cpio archive with the first stage and the modules that it needs.

Equal inputs give an equal file. Format: "newc", Linux, Documentation/driver-api/early-userspace/buffer-format.rst.
"""

import argparse
import subprocess
from pathlib import Path

FOLDER, LINK, PROGRAM, FILE = 0o040755, 0o120777, 0o100755, 0o100644
INDEXES = ["modules.builtin"]


def module_name(path: str) -> str:
    """The module in a file: to the kernel, dashes and underscores are the same."""
    return path.rsplit("/", 1)[-1].partition(".ko")[0].replace("-", "_")


def listed(path: Path) -> set[str]:
    """The names in a list with comments."""
    lines = (line.partition("#")[0].strip() for line in path.read_text().splitlines())
    return {module_name(line) for line in lines if line}


def needed(dependencies: list[str], names: set[str]) -> dict[str, str]:
    """The lines of modules.dep of these modules and of all that they depend on, by the module's file."""
    lines = {}
    for line in dependencies:
        path, _, others = line.partition(":")
        lines[path] = others.split()
    have = {module_name(path) for path in lines}
    missing = names - have
    if missing:
        raise SystemExit(f"the kernel package has no module {', '.join(sorted(missing))}")
    # A line names all dependencies, also the indirect ones (depmod(8)).
    wanted = {path for path in lines if module_name(path) in names}
    wanted |= {other for path in wanted for other in lines[path]}
    return {path: f"{path}: {' '.join(lines[path])}".rstrip() for path in sorted(wanted)}


class Archive:
    """A cpio archive in memory."""

    def __init__(self) -> None:
        self.content = bytearray()
        self.entries = 0
        self.folders: set[str] = set()

    def add(self, name: str, mode: int, data: bytes = b"") -> None:
        """Adds an entry, after the folders that it lies in."""
        parent = name.rpartition("/")[0]
        if parent and parent not in self.folders:
            self.add(parent, FOLDER)
        if mode == FOLDER:
            self.folders.add(name)
        self.entries += 1
        # inode, mode, uid, gid, links, mtime, size, device and special device numbers, name's length, check.
        fields = [self.entries, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0]
        self.content += b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
        self.pad()
        self.content += data
        self.pad()

    def pad(self) -> None:
        self.content += b"\0" * (-len(self.content) % 4)


def build(init: Path, modules: Path, names: set[str]) -> bytes:
    """The archive's content."""
    archive = Archive()
    for folder in ["dev", "proc", "run", "sys", "sysroot"]:
        archive.add(folder, FOLDER)
    archive.add("init", PROGRAM, init.read_bytes())
    archive.add("lib", LINK, b"usr/lib")

    place = f"usr/lib/modules/{modules.name}"
    lines = needed((modules / "modules.dep").read_text().splitlines(), names)
    for path in lines:
        archive.add(f"{place}/{path}", FILE, (modules / path).read_bytes())
    kept = {module_name(path) for path in lines}
    aliases = (modules / "modules.alias").read_text().splitlines()
    # The last word of "alias PATTERN MODULE".
    aliases = [line for line in aliases if line.rpartition(" ")[2].replace("-", "_") in kept]
    archive.add(f"{place}/modules.dep", FILE, "".join(f"{line}\n" for line in lines.values()).encode())
    archive.add(f"{place}/modules.alias", FILE, "".join(f"{line}\n" for line in aliases).encode())
    for index in INDEXES:
        archive.add(f"{place}/{index}", FILE, (modules / index).read_bytes())
    archive.add("TRAILER!!!", 0)
    return bytes(archive.content)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--init", required=True, type=Path, help="the static program that becomes /init")
    parser.add_argument("--modules", required=True, type=Path, help="usr/lib/modules/VERSION with depmod's indexes")
    parser.add_argument("--list", required=True, type=Path, help="names of modules, one a line")
    parser.add_argument("--output", required=True, type=Path, help="the file to write")
    options = parser.parse_args()
    content = build(options.init, options.modules, listed(options.list))
    subprocess.run(["zstd", "-19", "-q", "-f", "-o", options.output], input=content, check=True)


if __name__ == "__main__":
    main()
