"""A real API server and its etcd on the underlay of a fleet, and nodes that have it as their cluster's store.

The controller manager runs with the garbage collector alone: it deletes what a deleted Node owns.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any, ClassVar

from tests.mesh.etcds import EtcdServer, certificates
from tests.mesh.fleet import ROOT, Fleet, Node, run, wait_for

KUBERNETES = "1.34.4"
PROGRAM = Path(
    os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"), f"zlayer-cni/reference/kubernetes-{KUBERNETES}"
)
ADDRESS = "198.51.100.254"  # of the API server, on the underlay
SERVER = f"https://{ADDRESS}:6443"
DEFINITIONS = ROOT / "conf/kubernetes/definitions.yaml"
LEASE, GRACE = 10, 4  # seconds; so that a node's end can be watched
ADMIN = "zlt-admin"


class ControlPlane(Fleet):
    """A fleet with an API server on its underlay."""

    USERS: ClassVar[dict[str, tuple[str, str]]] = {}  # by the token of each: the user and its group
    NAMES = ""  # further names of the API server in its certificate, as openssl writes them

    def __init__(self, tag: str) -> None:
        super().__init__(tag)
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self.token_file = self.directory / "token"
        self.definitions = DEFINITIONS
        self.files = certificates(self.directory, ",".join(filter(None, (ADDRESS, self.NAMES))))
        run("openssl", "genrsa", "-out", str(self.directory / "accounts.key"), "2048")
        users = {ADMIN: ("admin", "system:masters"), **self.USERS}
        lines = [f'{token},{user},{token},"{group}"' for token, (user, group) in users.items()]
        (self.directory / "tokens.csv").write_text("\n".join(lines) + "\n")
        self.etcd = EtcdServer(self.directory, "127.0.0.1", self.underlay)
        run("ip", "-n", self.underlay, "link", "set", "lo", "up")
        self.etcd.start()
        self.serve()
        self.kubectl("apply", "-f", str(DEFINITIONS))
        wait_for(
            lambda: self.kubectl("get", "zlayernodes,zlayerclaims,zlayernames", "-o", "name") == "",
            "the definitions",
            20,
            0.2,
        )

    # --- the programs ------------------------------------------------------------------------------------------------

    def serve(self) -> None:
        """Start the API server, and wait until it is ready."""
        key = str(self.directory / "accounts.key")
        self._start(
            "kube-apiserver",
            *("--etcd-servers", "http://127.0.0.1:2379", "--advertise-address", ADDRESS, "--bind-address", ADDRESS),
            *(
                "--secure-port",
                "6443",
                "--service-cluster-ip-range",
                "10.96.0.0/16",
                "--authorization-mode",
                "Node,RBAC",
                "--kubelet-preferred-address-types",
                "InternalIP",
            ),
            *("--tls-cert-file", self.files["server.pem"], "--tls-private-key-file", self.files["server.key"]),
            *("--client-ca-file", self.files["ca.pem"], "--token-auth-file", str(self.directory / "tokens.csv")),
            *("--service-account-issuer", "https://zlt", "--service-account-key-file", key),
            *("--service-account-signing-key-file", key, "--cert-dir", str(self.directory)),
        )
        wait_for(lambda: self.try_kubectl("get", "--raw", "/readyz").returncode == 0, "the API server", 60, 0.5)

    def collect_garbage(self) -> None:
        """Start the controller manager with the garbage collector, which deletes what a deleted Node owned."""
        self.control("garbage-collector-controller")

    def control(self, *controllers: str) -> None:
        """Start the controller manager with these controllers."""
        self._start(
            "kube-controller-manager",
            *("--kubeconfig", str(self.kubeconfig()), "--controllers", ",".join(controllers)),
            *("--leader-elect=false", "--bind-address", "127.0.0.1"),
            *("--service-account-private-key-file", str(self.directory / "accounts.key")),
            *("--root-ca-file", self.files["ca.pem"], "--use-service-account-credentials=false"),
        )

    def stop(self, program: str, number: int = signal.SIGTERM) -> None:
        """End one of the programs by a signal."""
        process = self._processes.pop(program)
        process.send_signal(number)
        process.wait(30)

    def _start(self, program: str, *words: str) -> None:
        with (self.directory / f"{program}.log").open("ab") as log:
            self._processes[program] = subprocess.Popen(
                ["ip", "netns", "exec", self.underlay, str(PROGRAM), program, *words],
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def kubeconfig(self) -> Path:
        path = self.directory / "kubeconfig"
        path.write_text(json.dumps(self.kubeconfig_of(ADMIN)))
        return path

    def kubeconfig_of(self, token: str) -> dict[str, Any]:
        """The access of one user."""
        authority = base64.b64encode(Path(self.files["ca.pem"]).read_bytes()).decode()
        cluster = {"server": SERVER, "certificate-authority-data": authority}
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "zlt", "cluster": cluster}],
            "users": [{"name": "user", "user": {"token": token}}],
            "contexts": [{"name": "zlt", "context": {"cluster": "zlt", "user": "user"}}],
            "current-context": "zlt",
        }

    def try_kubectl(self, *words: str, seconds: float = 60) -> subprocess.CompletedProcess[str]:
        command = [
            "ip",
            "netns",
            "exec",
            self.underlay,
            str(PROGRAM),
            "kubectl",
            "--kubeconfig",
            str(self.kubeconfig()),
        ]
        return subprocess.run([*command, *words], capture_output=True, text=True, timeout=seconds, check=False)

    def kubectl(self, *words: str, seconds: float = 60) -> str:
        done = self.try_kubectl(*words, seconds=seconds)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def apply(self, body: dict[str, Any]) -> None:
        """Create or change one object."""
        path = self.directory / "object.json"
        path.write_text(json.dumps(body))
        self.kubectl("apply", "-f", str(path))

    def objects(self, kind: str) -> dict[str, Any]:
        """The objects of a kind, by name."""
        return {item["metadata"]["name"]: item for item in json.loads(self.kubectl("get", kind, "-o", "json"))["items"]}

    def objects_in(self, kind: str) -> dict[str, Any]:
        """The objects of a kind in the namespace of zlayer-cni, by name."""
        items = json.loads(self.kubectl("get", kind, "-n", "zlayer-cni", "-o", "json"))["items"]
        return {item["metadata"]["name"]: item for item in items}

    # --- nodes -------------------------------------------------------------------------------------------------------

    def token(self) -> Path:
        """A token of the service account, in a file; a new one each time."""
        self.token_file.write_text(self.kubectl("create", "token", "zlayer-cni", "-n", "zlayer-cni"))
        return self.token_file

    def external(self, number: int) -> Node:
        """A machine that is no Node, by its ZLayerExternalNode `edge<number>`, which need not exist; not started."""
        node = self.member(number, registered=False, start=False)
        token = self.directory / "token-external"
        token.write_text(self.kubectl("create", "token", "zlayer-cni-external", "-n", "zlayer-cni"))
        where = node.settings["cluster"]["kubernetes"]
        del where["node_name"]
        where |= {"external_node": f"edge{number}", "token_file": str(token)}
        return node

    def permit(self, number: int) -> None:
        """Create the ZLayerExternalNode of a machine."""
        body = {"apiVersion": "zlayer.io/v1alpha1", "kind": "ZLayerExternalNode"}
        self.apply({**body, "metadata": {"name": f"edge{number}"}, "spec": {"description": "podman"}})

    def member(self, number: int, registered: bool = True, start: bool = True, **settings: Any) -> Node:
        """A node of the cluster. `registered`: it is a Node of Kubernetes, whose kubelet does not run."""
        if registered:
            self.register(number)
        where = {
            "server": SERVER,
            "ca_file": self.files["ca.pem"],
            "token_file": str(self.token()),
            "node_name": f"node{number}",
            "lease": LEASE,
            "grace": GRACE,
        }
        made = {"deployment": f"m{os.getpid() % 100000}{self.tag}", "instance_id": str(number), **settings}
        node = Node(self, number)
        node.settings = {**made, "cluster": {"kubernetes": where}}
        self.wire(node)
        if start:
            node.start()
        return node

    def register(self, number: int) -> None:
        """Create the Node, as a kubelet would."""
        self.apply({"apiVersion": "v1", "kind": "Node", "metadata": {"name": f"node{number}"}})

    @staticmethod
    def kill(pid: int) -> None:
        """End a process of a node, as a power cut does."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    def clean(self) -> None:
        for process in self._processes.values():
            process.kill()
            process.wait()
        self.etcd.end(signal.SIGKILL)
        super().clean()
