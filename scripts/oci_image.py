"""Writes an image of one layer, an OCI layout in a tar archive, from a directory.

    oci_image.py DIRECTORY NAME:TAG OUTPUT

The same files make the same bytes: names are sorted, and times, owners and the archive's own headers are fixed.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import platform
import sys
import tarfile
from pathlib import Path
from typing import Any

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
ENTRY = ["/usr/bin/zlayer-cni"]
SEARCH_PATH = "PATH=/usr/sbin:/usr/bin:/sbin:/bin"


def layer(root: Path) -> bytes:
    """The directory as a tar archive whose bytes depend on names, modes and contents alone."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for path in sorted(root.rglob("*")):
            info = tar.gettarinfo(path, str(path.relative_to(root)))
            info.mtime = info.uid = info.gid = 0
            info.uname = info.gname = ""
            if info.islnk():  # each file stands for itself
                info.type, info.linkname, info.size = tarfile.REGTYPE, "", path.stat().st_size
            if info.isreg():
                with path.open("rb") as file:
                    tar.addfile(info, file)
            else:
                tar.addfile(info)
    return archive.getvalue()


def image(content: bytes, name: str) -> dict[str, bytes]:
    """The files of the OCI layout, by name, of an image with one layer."""
    files: dict[str, bytes] = {}

    def blob(data: bytes, kind: str) -> dict[str, Any]:
        digest = hashlib.sha256(data).hexdigest()
        files[f"blobs/sha256/{digest}"] = data
        return {"mediaType": f"application/vnd.oci.image.{kind}", "digest": f"sha256:{digest}", "size": len(data)}

    config = {
        "architecture": ARCHITECTURES.get(platform.machine(), platform.machine()),
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(content).hexdigest()}"]},
        "config": {"Entrypoint": ENTRY, "Env": [SEARCH_PATH]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": blob(_json(config), "config.v1+json"),
        "layers": [blob(gzip.compress(content, 6, mtime=0), "layer.v1.tar+gzip")],
    }
    entry = blob(_json(manifest), "manifest.v1+json")
    entry["annotations"] = {"io.containerd.image.name": name, "org.opencontainers.image.ref.name": name}
    files["index.json"] = _json({"schemaVersion": 2, "manifests": [entry]})
    files["oci-layout"] = _json({"imageLayoutVersion": "1.0.0"})
    return files


def write(files: dict[str, bytes], output: Path) -> None:
    """The files as a tar archive, in place of the one before."""
    fresh = output.with_name(f"{output.name}.new")
    with tarfile.open(fresh, "w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    fresh.replace(output)


def _json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


if __name__ == "__main__":
    write(image(layer(Path(sys.argv[1])), sys.argv[2]), Path(sys.argv[3]))
