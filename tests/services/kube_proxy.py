"""The real kube-proxy on the nodes of `tests/mesh/fleet.py`, in front of `fake_api.py`."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import yaml

from tests.mesh.fleet import Node, run, wait_for

from .fake_api import FakeApi

KUBE_PROXY = "1.34.4"
PROGRAM = Path(
    os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"), f"zlayer-cni/reference/kube-proxy-{KUBE_PROXY}"
)
MODES = ("nftables", "iptables-nft", "iptables-legacy")
SERVICES = "/api/v1/services"
SLICES = "/apis/discovery.k8s.io/v1/endpointslices"
TOOLS = tuple(f"{family}{rest}" for family in ("iptables", "ip6tables") for rest in ("", "-save", "-restore"))


class KubeProxy:
    """One kube-proxy, in a node's network namespace."""

    def __init__(self, node: Node, api: FakeApi, mode: str) -> None:
        self._node, self._mode = node, mode
        directory = node.directory / "kube-proxy"
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir()
        (directory / "kubeconfig").write_text(yaml.safe_dump(_kubeconfig(api.url)))
        (directory / "config").write_text(yaml.safe_dump(_config(node, directory, mode)))
        self.log = directory / "log"
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                ["ip", "netns", "exec", node.name, str(PROGRAM), "--config", str(directory / "config")],
                env={**os.environ, "PATH": f"{_tools(directory, mode)}:{os.environ['PATH']}"},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def rules(self) -> str:
        """All rules of kube-proxy's, of both families, as the tools list them."""
        at_home = ("ip", "netns", "exec", self._node.name)
        if self._mode == "nftables":
            tables = run(*at_home, "nft", "list", "tables")
            known = [words.split()[1] for words in tables.splitlines() if words.endswith(" kube-proxy")]
            return "\n".join(run(*at_home, "nft", "list", "table", family, "kube-proxy") for family in known)
        kind = self._mode.partition("-")[2]
        return "\n".join(run(*at_home, f"{tool}-{kind}-save") for tool in ("iptables", "ip6tables"))

    def wait(self, *words: str) -> None:
        """Until its rules have all these words: each a virtual address, or an endpoint's."""
        wait_for(lambda: self._alive() and all(word in self.rules() for word in words), f"rules with {words}", 30, 0.1)

    def _alive(self) -> bool:
        assert self._process.poll() is None, self.log.read_text()[-3000:]
        return True

    def end(self) -> None:
        """End it; its rules stay."""
        self._process.kill()
        self._process.wait()


def _kubeconfig(url: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {"server": url}}],
        "users": [{"name": "u", "user": {}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }


def _config(node: Node, directory: Path, mode: str) -> dict[str, Any]:
    sync = {"syncPeriod": "30s", "minSyncPeriod": "0s"}
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": mode.partition("-")[0],
        "hostnameOverride": name_of(node),
        "bindAddress": node.underlay,
        "healthzBindAddress": "127.0.0.1:10256",
        "metricsBindAddress": "127.0.0.1:10249",
        "clusterCIDR": "10.200.0.0/16,fd00:200::/48",
        "clientConnection": {
            "kubeconfig": str(directory / "kubeconfig"),
            "contentType": "application/json",
            "acceptContentTypes": "application/json",
        },
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
        "iptables": sync,
        "nftables": sync,
    }


def _tools(directory: Path, mode: str) -> Path:
    """A directory in which the names of iptables lead to the kind that the mode wants."""
    place = directory / "bin"
    place.mkdir()
    if mode.startswith("iptables-"):
        for tool in TOOLS:
            family, dash, rest = tool.partition("-")
            found = shutil.which(f"{family}-{mode.partition('-')[2]}{dash}{rest}")
            assert found is not None, f"no {tool} of the kind that {mode} wants (apt-get install iptables)"
            (place / tool).symlink_to(found)
    return place


def name_of(node: Node) -> str:
    """The node's name for kube-proxy and the API."""
    return f"node{node.number}"
