#!/usr/bin/env python3
"""Packs one static program as a container image: an OCI layout in a tar file.

Equal inputs give an equal file. containerd imports it under the given name.
Specifications: OCI image-spec 1.1 (image-layout, config, manifest).
"""

import argparse
import hashlib
import io
import json
import tarfile
from pathlib import Path

# The user that the program runs as: nobody.
USER = "65534:65534"


def entry(archive: tarfile.TarFile, name: str, data: bytes, mode: int) -> None:
    """Adds a file that bears no trace of the building host."""
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(data), mode
    archive.addfile(info, io.BytesIO(data))


def tar(files: dict[str, tuple[bytes, int]]) -> bytes:
    """An uncompressed archive of files, name -> (content, mode)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, (data, mode) in files.items():
            entry(archive, name, data, mode)
    return buffer.getvalue()


def image(name: str, program: Path, arguments: list[str]) -> bytes:
    """The image as a tar file's content."""
    blobs: dict[str, tuple[bytes, int]] = {}

    def blob(data: bytes, media_type: str) -> dict[str, object]:
        digest = hashlib.sha256(data).hexdigest()
        blobs[f"blobs/sha256/{digest}"] = (data, 0o644)
        return {"mediaType": f"application/vnd.oci.image.{media_type}", "digest": f"sha256:{digest}", "size": len(data)}

    def document(value: dict[str, object]) -> bytes:
        return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()

    path = f"/{program.name.removeprefix('garboard-')}"
    # Uncompressed: the root partition's compression sees through it.
    layer = blob(tar({path.lstrip("/"): (program.read_bytes(), 0o755)}), "layer.v1.tar")
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Entrypoint": [path], "Cmd": arguments, "User": USER},
        "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": blob(document(config), "config.v1+json"),
        "layers": [layer],
    }
    described = blob(document(manifest), "manifest.v1+json")
    described["annotations"] = {
        "io.containerd.image.name": name,
        "org.opencontainers.image.ref.name": name.rpartition(":")[2],
    }
    index = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [described],
    }
    return tar(
        {
            "oci-layout": (document({"imageLayoutVersion": "1.0.0"}), 0o644),
            "index.json": (document(index), 0o644),
            **blobs,
        }
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", required=True, help="name and tag, as in garboard.dev/pause:0.1.0")
    parser.add_argument("--program", required=True, type=Path, help="the static program")
    parser.add_argument("--output", required=True, type=Path, help="the tar file to write")
    parser.add_argument("arguments", nargs="*", help="the program's default arguments")
    options = parser.parse_args()
    options.output.write_bytes(image(options.name, options.program, options.arguments))


if __name__ == "__main__":
    main()
