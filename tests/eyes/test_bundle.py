"""The bundle on a node on which secrets are everywhere: none is in it, and what should be in it is."""

from __future__ import annotations

import json
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cni.cli import bundle
from cni.host import wg_engine
from tests.mesh.fleet import Fleet, Node, fleet

MARK = "zltSECRETmark"
"""Begins each planted secret."""


@pytest.fixture
def made() -> Iterator[Fleet]:
    with fleet("b") as whole:
        yield whole


def plant(node: Node) -> dict[str, str]:
    """Secrets wherever a node may have one, by where they are."""
    planted = {
        place: f"{MARK}{place}"
        for place in ("password", "passwordfile", "user", "keyfile", "certfile", "cafile", "env", "args", "label")
    }
    files = {}
    for name in ("passwordfile", "keyfile", "certfile", "cafile"):
        files[name] = node.directory / name
        files[name].write_text(planted[name])
    node.settings["cluster"] = {
        "etcd": {
            "endpoints": ["https://127.0.0.1:1"],
            "user": planted["user"],
            "password_file": str(files["passwordfile"]),
            "ca_file": str(files["cafile"]),
            "cert_file": str(files["certfile"]),
            "key_file": str(files["keyfile"]),
        }
    }
    return planted


def keys_of(node: Node) -> set[str]:
    """The private keys and tokens in the node's files."""
    found: set[str] = set()

    def gather(value: object) -> None:
        if isinstance(value, dict):
            for key, each in value.items():
                if isinstance(each, str) and ("private" in key or "secret" in key or "seed" in key):
                    found.add(each)
                gather(each)
        elif isinstance(value, list):
            for each in value:
                gather(each)

    for path in (node.directory / "data").rglob("*.json"):
        gather(json.loads(path.read_bytes()))
    return {key for key in found if len(key) > 20}


def contents(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as archive:
        return {
            member.name.partition("/")[2]: file.read()
            for member in archive.getmembers()
            if (file := archive.extractfile(member)) is not None
        }


@pytest.mark.skipif(not wg_engine.find(), reason="no WireGuard engine here (apt-get install wireguard-go)")
def test_no_secret_is_in_it(made: Fleet) -> None:
    node = made.node(1, start=False)
    node.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZLT_SECRET", f"{MARK}env")
        patch.setenv("WG_TOKEN", f"{MARK}env")
        box = node.container(args={"cni": {"labels": [{"key": "token", "value": f"{MARK}label"}]}})
        node.end()
        planted = plant(node)
        (node.directory / "data").mkdir(mode=0o700, exist_ok=True)
        (node.directory / "data/overlayd.yaml").write_bytes(node.write().read_bytes())
        node.start()
        token = node.cli("peer", "token", "--json", "--run-dir", str(node.directory / "run")).stdout
        path = node.directory / "bundle.tar.gz"
        words = ["--run-dir", str(node.directory / "run"), "--data-dir", str(node.directory / "data")]
        sleeper = subprocess.Popen(["sh", "-c", f"sleep 60 # {planted['args']}"])
        try:
            done = node.cli("bundle", "--output", str(path), *words)
            shown = node.cli("bundle", "--show", *words).stdout
        finally:
            sleeper.kill()
            sleeper.wait()
    assert done.returncode == 0, done.stderr
    assert path.stat().st_mode & 0o777 == 0o600
    files = contents(path)
    secrets = set(planted.values()) | keys_of(node)
    if token.strip().startswith("{"):
        secrets.add(json.loads(token)["token"])
    assert len(keys_of(node)) >= 2  # WireGuard's and the signer's
    for text in (*files.values(), shown.encode(), path.read_bytes()):
        assert MARK.encode() not in text
        for secret in secrets:
            assert secret.encode() not in text
    manifest = json.loads(files["manifest.json"])
    names = {entry["name"] for entry in manifest["files"]}
    assert names | {"manifest.json"} == {*files} and names == {each.name for each in bundle.COLLECTORS}
    assert all("missing" not in entry for entry in manifest["files"]), manifest
    assert json.loads(files["attachments.json"])[0]["container_id"] == box.name
    assert "cluster" in json.loads(files["settings.json"])["keys"]
    assert "cluster" not in json.loads(files["settings.json"])["values"]


def test_without_a_daemon_it_has_the_rest(tmp_path: Path) -> None:
    """A node that is broken is what a bundle is made for."""
    path = tmp_path / "out.tar.gz"
    words = ["--run-dir", str(tmp_path / "none"), "--data-dir", str(tmp_path / "data"), "--output", str(path)]
    from cni.cli.main import main

    assert main(["bundle", *words]) == 0
    files = contents(path)
    manifest = json.loads(files["manifest.json"])
    missing = {entry["name"]: entry.get("missing") for entry in manifest["files"]}
    assert missing["status.json"] == "NoDaemon" and missing["machine.json"] is None
    assert {"machine.json", "doctor.json", "manifest.json"} <= {*files}
    assert main(["bundle", *words]) == 1  # it does not overwrite an archive
