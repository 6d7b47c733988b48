"""No secret in an error, whatever is wrong with its file; nothing of a runtime's environment in a daemon."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from cni.daemon.mesh import joined_peers
from tests.mesh.fleet import Fleet, Node, wait_for

SECRET = "hunter2SECRET"
ETCD = "cluster:\n  etcd:\n    endpoints: [http://198.51.100.254:2379]\n    user: root\n"
FILES = {
    "in a list": f"{ETCD}    password: [{SECRET}]\n",
    "in a mapping": f"{ETCD}    password: {{a: {SECRET}}}\n",
    "as a number beside a fault": f"{ETCD}    password: 1\n    grace: {SECRET}\n",
    "without a space": f"cluster: {{etcd: {{password:{SECRET}}}}}\n",
    "without a space, in a block": f"cluster:\n  etcd:\n    user: root\n    password:{SECRET}\n",
    "on its key's level": f"cluster: {SECRET}\n",
    "one level up": f"cluster:\n  etcd: password {SECRET}\n",
    "as an alias": f"{ETCD}    password: *{SECRET}\n",
    "with a tag": f"{ETCD}    password: !{SECRET} x\n",
    "in the URL": f"cluster:\n  etcd:\n    endpoints: ['http://root:{SECRET}@198.51.100.254:2379']\n",
    "twice": f"{ETCD}    password: {SECRET}\n    password: {SECRET}\n",
    "alone": f"{SECRET}\n",
    "in a list of clusters": f"cluster:\n- etcd:\n    password: {SECRET}\n",
    "as a key": f"{ETCD}    ? {{password: {SECRET}}}\n    : x\n",
    "beside an unclosed quote": f"{ETCD}    password: '{SECRET}\n",
}


@pytest.mark.parametrize("how", FILES)
def test_a_password_is_in_no_error_about_its_file(frozen: Callable[..., Node], how: str) -> None:
    node = frozen(1, start=False)
    data, run_dir = node.directory / "data", node.directory / "run"
    data.mkdir()
    (data / "overlayd.yaml").write_text(FILES[how])
    conf = {"cniVersion": "1.1.0", "name": "n", "type": "zlayer-cni", "runDir": str(run_dir), "dataDir": str(data)}
    env = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c1", "CNI_NETNS": node.path, "CNI_IFNAME": "eth0"}
    done = subprocess.run(
        ["ip", "netns", "exec", node.name, *node.program],
        input=json.dumps(conf),
        env={**os.environ, **env, "CNI_PATH": "/opt/cni/bin"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert json.loads(done.stdout)["code"] == 11, done
    places = ("--run-dir", str(run_dir), "--data-dir", str(data))
    said = done.stdout + done.stderr + node.cli("doctor", *places).stdout + (run_dir / "overlayd.log").read_text()
    said += node.cli("overlayd", "--check", *places).stderr
    said += "".join(path.read_text() for path in run_dir.glob("overlayd.failed"))
    assert SECRET not in said, said
    assert "overlayd.yaml" in done.stdout


@pytest.fixture
def autostarted(fleet: Fleet, either_form: tuple[str, ...]) -> Iterator[tuple[Node, int]]:
    """A node whose daemon a plugin started, in a runtime's environment; and that daemon."""
    node = fleet.node(1, start=False)
    node.program = either_form
    data = node.directory / "data"
    data.mkdir()
    node.settings["peers"] = [{"public_key": "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=", "allowed_ips": []}]
    (data / "overlayd.yaml").write_text(yaml.safe_dump(node.settings))
    conf = {"cniVersion": "1.1.0", "name": "n", "type": "zlayer-cni"}
    conf |= {"runDir": str(node.directory / "run"), "dataDir": str(data)}
    runtimes = {
        "CNI_COMMAND": "STATUS",
        "CNI_PATH": "/opt/cni/bin",
        "HTTPS_PROXY": "http://proxy.example:3128",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "LD_LIBRARY_PATH": "/opt/runtime/lib",
        "PATH": "/opt/runtime/bin:/usr/bin:/bin",
        "LC_ALL": "de_DE.UTF-8",
        "PYTHONPATH": "/opt/runtime/python",
        "KUBECONFIG": "/root/.kube/config",
    }
    subprocess.run(
        ["ip", "netns", "exec", node.name, *either_form],
        input=json.dumps(conf),
        env=runtimes,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    pid = int((node.directory / "run" / "overlayd.pid").read_text())
    yield node, pid
    os.kill(pid, signal.SIGTERM)


def environment(pid: int) -> dict[str, str]:
    found = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    return dict(each.split("=", 1) for each in found if "=" in each)


def test_daemon_and_engine_have_an_environment_of_their_own(autostarted: tuple[Node, int], engine: None) -> None:
    node, pid = autostarted
    # The frozen program's own start adds where its libraries are, for this process alone.
    own = {name: value for name, value in environment(pid).items() if not name.startswith("_PYI_")}
    assert "/opt/runtime" not in own.pop("LD_LIBRARY_PATH", "")
    assert set(own) <= {"PATH", "LANG", "HOME", "TZ"}, own
    assert "/usr/sbin" in own["PATH"].split(":")
    assert "/opt/runtime/bin" not in own["PATH"]
    # A kernel with WireGuard needs no engine.
    links = [each for each in node.ip("-d", "link") if each["ifname"] == node.device]
    if links and links[0].get("linkinfo", {}).get("info_kind") == "wireguard":
        return
    found = environment(wait_for(node.engine, "an engine"))
    assert set(found) <= {"PATH", "LANG", "LOG_LEVEL", "WG_LOG_LEVEL"}, found


def test_a_token_that_is_nested_deeply_or_huge_is_refused(frozen: Callable[..., Node]) -> None:
    node = frozen(1)
    for body in (b"[" * 100_000, b'{"a":' * 50_000, b'{"name": "' + b"x" * 200_000 + b'"}'):
        token = joined_peers.PREFIX + base64.urlsafe_b64encode(body).decode()
        path = node.directory / "token"
        path.write_text(token)
        done = node.cli("join", token[:60_000], "--run-dir", str(node.directory / "run"))
        assert done.returncode == 1, done
        assert "Traceback" not in done.stderr and len(done.stderr) < 500, done.stderr
    assert node.tool("status")["problem_details"] == []
