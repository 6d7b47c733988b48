"""The network policies of a cluster of Kubernetes, with the Pods and Namespaces that they select, put in force.

What the followers tell is gathered and given to the fence in one change. The API server and this version may know
different fields. A policy that cannot be read keeps its last good content, which is recorded as long as that is so. A
policy of which no content could be read ever isolates what it selects, and allows nothing.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
from collections.abc import Mapping

from cni.daemon.fence.members import FenceMembers
from cni.daemon.fence.port_table import PortTable
from cni.daemon.model import kubernetes
from cni.daemon.policy import objects, reader
from cni.daemon.policy.model import NAMESPACE_LABEL, NamedPort, Pod, Policy
from cni.daemon.policy.stand_in import isolating
from cni.daemon.problem_board import ProblemBoard
from cni.daemon.state.tables import Tables
from cni.errors import InvalidConfig
from cni.host.worker import IDLE, Crew, beat

log = logging.getLogger(__name__)

SETTLE = 0.02  # seconds from a change to its coming into force, so that a burst of changes is one transaction
PROBLEM = "policy-refused"
_PATIENCE = 5.0  # seconds that a running change may take when the daemon ends


class ClusterPolicies:
    """Gathers changes, and puts them in force in a thread of its own."""

    def __init__(self, fence: FenceMembers, records: Tables, node: str, board: ProblemBoard, crew: Crew) -> None:
        """`node`: the name of this node's Node."""
        self._fence, self._records, self._node, self._board = fence, records, node, board
        self._lock = threading.Lock()
        self._pods: dict[str, kubernetes.Pod | None] = {}  # what is to be taken in
        self._namespaces: dict[str, kubernetes.Namespace] = {}
        self._has_new_namespaces = self._has_new_policies = False
        self._policies: dict[str, Policy] = {}
        self._good: dict[str, kubernetes.ClusterPolicy] = dict(records.held_policies.all())  # what `_policies` is of
        self._faults: dict[str, str] = {}
        self._wake, self._ended = threading.Event(), threading.Event()
        self._worker = crew.worker("cluster-policies", self._run)

    def take_in(self) -> None:
        """Takes what is recorded, before the fence is loaded; a pod that is not known is closed from now on. Raises
        FenceFailed."""
        self.on_policies(self._records.cluster_policies.all())
        self.on_namespaces(self._records.namespaces.all())
        self._put_in_force(dict(self._records.pods.all()), whole=True)

    def start(self) -> None:
        """Starts the thread."""
        self._worker.start()

    def stop(self) -> None:
        """Ends the thread; policies stay in force."""
        self._worker.retire()
        self._ended.set()
        self._wake.set()
        self._worker.join(_PATIENCE)

    def on_pods(self, changes: Mapping[str, kubernetes.Pod | None]) -> None:
        """Pods that are new or changed; None for one that is gone."""
        with self._lock:
            self._pods.update(changes)
        self._wake.set()

    def on_namespaces(self, changes: Mapping[str, kubernetes.Namespace | None]) -> None:
        """Namespaces that are new or changed; None for one that is gone."""
        with self._lock:
            for name, namespace in changes.items():
                if namespace is None:
                    self._namespaces.pop(name, None)
                else:
                    self._namespaces[name] = namespace
            self._has_new_namespaces = True
        self._wake.set()

    def on_policies(self, changes: Mapping[str, kubernetes.ClusterPolicy | None]) -> None:
        """Policies that are new or changed; None for one that is gone. Raises InputOutput."""
        with self._lock:
            held = {key: self._take_in_policy(key, found) for key, found in changes.items()}
            before = self._records.held_policies.all()
            changed = {key: policy for key, policy in held.items() if policy != before.get(key)}
            if changed:
                self._records.held_policies.apply(changed)
            self._has_new_policies = True
        self._wake.set()

    def _take_in_policy(self, key: str, found: kubernetes.ClusterPolicy | None) -> kubernetes.ClusterPolicy | None:
        """Take in one policy. Returns its last good content if that is another one than what was found."""
        self._faults.pop(key, None)
        if found is None:
            self._policies.pop(key, None)
            self._good.pop(key, None)
            return None
        try:
            self._policies[key], self._good[key] = policy_of(found), found
            return None
        except InvalidConfig as error:
            return self._stand_in(key, found, error.msg)

    def _stand_in(self, key: str, found: kubernetes.ClusterPolicy, fault: str) -> kubernetes.ClusterPolicy | None:
        """Take in the last good content of a policy that cannot be read; what isolates, without such a content or if
        another version recorded one that cannot be read here. Returns the last good content."""
        good = self._good.get(key)
        if good is not None:
            with contextlib.suppress(InvalidConfig):
                self._policies[key] = policy_of(good)
                self._faults[key] = f"{fault}; its last good content stays in force"
                return good
        self._policies[key] = isolating(found.namespace, found.name, json.loads(found.spec))
        self._faults[key] = f"{fault}; what it selects is isolated until it can be read"
        return good

    def _run(self) -> None:
        while not self._ended.is_set():
            beat(IDLE)
            if self._wake.wait(IDLE) and not self._ended.wait(SETTLE):
                self._wake.clear()
                with self._board.step("look-incomplete", "cluster policies", "the policies could not be followed"):
                    self.take_in_changes()

    def take_in_changes(self) -> None:
        """Puts in force what has changed since the last call. Raises FenceFailed."""
        with self._lock:
            pods, self._pods = self._pods, {}
        self._put_in_force(pods)

    def _put_in_force(self, pods: dict[str, kubernetes.Pod | None], whole: bool = False) -> None:
        with self._lock:
            namespaces = self._labels() if self._has_new_namespaces else None
            policies = list(self._policies.values()) if self._has_new_policies else None
            faults = dict(self._faults)
            self._has_new_namespaces = self._has_new_policies = False
        self._board.set_all(PROBLEM, faults)
        known = {key: None if pod is None else pod_of(pod, self._node) for key, pod in pods.items()}

        def work(table: PortTable) -> None:
            if policies is not None:
                table.set_policies("kubernetes", policies)
            if whole or known or namespaces is not None:
                table.follow_cluster(namespaces, known, whole)

        self._fence.change_policies(work)

    def _labels(self) -> dict[str, Mapping[str, str]]:
        return {name: {NAMESPACE_LABEL: name, **each.labels} for name, each in self._namespaces.items()}


def policy_of(found: kubernetes.ClusterPolicy) -> Policy:
    """The value of a policy. Raises InvalidConfig."""
    metadata = {"namespace": found.namespace, "name": found.name}
    document = {"apiVersion": objects.API_VERSION, "kind": objects.KIND, "metadata": metadata}
    return reader.read_object({**document, "spec": json.loads(found.spec)})


def pod_of(pod: kubernetes.Pod, node: str) -> Pod:
    """The value of a Pod as policies see it. A Pod of `node` has the addresses of its attachment, which the fence
    knows; one with the host's network has none of its own."""
    return Pod(
        namespace=pod.namespace,
        name=pod.name,
        labels=pod.labels,
        addresses=() if pod.host_network or pod.node == node else pod.ips,
        ports=frozenset(NamedPort(port.name, port.protocol, port.port) for port in pod.ports),
        uid=pod.uid,
    )
