"""The ports of this node, each with the chains of the policies that isolate it. No I/O.

A port's pod is its attachment (cni/daemon/policy/attached.py), or where a Kubernetes API is followed the pod that the
runtime named. A pod of that API that is not known yet is closed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from cni.daemon.fence.from_records import port_of
from cni.daemon.fence.model import FenceNode, FencePort, PortPolicy
from cni.daemon.fence.policy_book import NONE, PolicyBook, PolicyRules
from cni.daemon.fence.policy_changes import State
from cni.daemon.model.records import Attachment
from cni.daemon.policy import attached
from cni.daemon.policy.model import Pod, Policy

_MANY = 32  # changed pods from which on all pods are taken in anew


class PortTable:
    """One thread at a time; the lock of `FenceTables` ensures that."""

    def __init__(self) -> None:
        self._book = PolicyBook()
        self._ports: dict[str, FencePort] = {}
        self._attachments: dict[str, Attachment] = {}
        self._policies: dict[str, PortPolicy] = {}  # by port, also while no port is isolated
        self._sources: dict[str, tuple[Policy, ...]] = {}
        self._active = False
        self._earlier: dict[str, FencePort] = {}  # ports that changed since `mark`, as they were
        self._of_api: dict[str, Pod] | None = None  # by "namespace/name"; None: no API is followed

    @property
    def ports(self) -> Mapping[str, FencePort]:
        """The ports by name."""
        return self._ports

    @property
    def book(self) -> PolicyBook:
        """The policies and what follows from them."""
        return self._book

    def reset(self, attachments: Iterable[Attachment]) -> None:
        """Replaces the ports by those of the records."""
        self._ports, self._attachments = {}, {a.host_veth: a for a in attachments}
        self._all_pods()
        self._judge_all()

    def add(self, attachment: Attachment) -> FencePort:
        """Records the attachment's port, in place of one of the same name."""
        port = port_of(attachment)
        self.remove(port.name)
        self._attachments[port.name] = attachment
        key, pod = self._pod(attachment)
        if pod is not None:
            self._take_in(key, self._of_same_pod(attachment))
        self._policies[port.name] = policy = self._book.port_policy(pod)
        if policy and not self._active:
            self._give_policies()  # to this port as well
        else:
            self._ports[port.name] = replace(port, policy=policy if self._active else None)
        return self._ports[port.name]

    def remove(self, name: str) -> FencePort | None:
        """Forgets a port and its addresses; None if it was not recorded."""
        attachment = self._attachments.pop(name, None)
        if attachment is not None:
            key, pod = self._pod(attachment)
            rest = self._of_same_pod(attachment)
            if pod is not None or rest:
                self._take_in(key, rest)
        self._policies.pop(name, None)
        return self._ports.pop(name, None)

    def set_policies(self, source: str, policies: Iterable[Policy]) -> None:
        """Replaces the policies of one source."""
        self._sources[source] = tuple(policies)
        self._book.set_policies(policy for of_source in self._sources.values() for policy in of_source)
        self._judge_all()

    def follow_cluster(
        self, namespaces: Mapping[str, Mapping[str, str]] | None, pods: Mapping[str, Pod | None], whole: bool = False
    ) -> None:
        """Takes in what a Kubernetes API says from now on: the labels of all namespaces, None if they are unchanged;
        and the pods that are new or changed by "namespace/name", None for one that is gone. `whole`: `pods` are all.
        """
        self._book.table.follow_cluster()
        if whole or self._of_api is None:
            self._of_api = {}
        for name, pod in pods.items():
            if pod is None:
                self._of_api.pop(name, None)
            else:
                self._of_api[name] = pod
        if namespaces is not None:
            self._book.table.set_namespaces(namespaces)
        if whole or len(pods) > _MANY:
            self._all_pods()
            self._judge_all()
        else:
            self._some_pods(pods)

    def _some_pods(self, names: Iterable[str]) -> None:
        """Takes in these pods of the API."""
        here: dict[str, list[Attachment]] = {}
        for attachment in self._attachments.values():
            here.setdefault(attachment.pod, []).append(attachment)
        for name in names:
            mine = here.get(name, [])
            elsewhere = (self._of_api or {}).get(name)
            if not mine and elsewhere is not None:
                self._book.table.set_pod(name, elsewhere)
            else:
                self._take_in(name, mine)
            for attachment in mine:  # each by its own: of an earlier pod of that name, one may not be deleted yet
                self._policies[attachment.host_veth] = self._book.port_policy(self._pod(attachment)[1])
        self._give_policies()

    def _take_in(self, key: str, attachments: Iterable[Attachment]) -> None:
        """Takes in the pod of these attachments with the addresses of all; forgets the pod if none of them is its."""
        pod = _joined(self._pod(attachment)[1] for attachment in attachments)
        if pod is None:
            self._book.table.remove_pod(key)
        else:
            self._book.table.set_pod(key, pod)

    def _of_same_pod(self, attachment: Attachment) -> list[Attachment]:
        """The recorded attachments of that attachment's pod: interfaces, sandboxes, and an earlier pod of that name."""
        if self._of_api is None or not attachment.pod:
            own = self._attachments.get(attachment.host_veth)
            return [] if own is None else [own]
        return [other for other in self._attachments.values() if other.pod == attachment.pod]

    def tidy(self) -> None:
        """Forgets chains that no port uses any more."""
        self._book.tidy(self._policies.values())

    def mark(self, node: Callable[[], FenceNode]) -> State:
        """What is before a change: the rules of policies, and those ports that the change is going to change."""
        self._earlier = {}
        return State(self.rules(node), self._earlier)

    def state(self, node: Callable[[], FenceNode]) -> State:
        """The rules of policies and the ports, as they should be now."""
        return State(self.rules(node), self._ports)

    def rules(self, node: Callable[[], FenceNode]) -> PolicyRules:
        """The rules of policies; none while they isolate no port here."""
        return self._book.rules(node()) if self._active else NONE

    def _pod(self, attachment: Attachment) -> tuple[str, Pod | None]:
        """The key and the pod of an attachment; None for a pod of the API that is not known yet."""
        if self._of_api is None or not attachment.pod:
            return "/".join(attachment.key), attached.pod_of(attachment)
        pod = self._of_api.get(attachment.pod)
        if pod is not None and attachment.pod_uid and pod.uid != attachment.pod_uid:
            pod = None  # an earlier pod of that name
        # The API tells a pod's addresses seconds later; the attachment has them now.
        return attachment.pod, replace(pod, addresses=attachment.ips) if pod is not None else None

    def _all_pods(self) -> None:
        pods = dict(self._of_api or {})
        here: dict[str, list[Pod | None]] = {}
        for key, pod in map(self._pod, self._attachments.values()):
            here.setdefault(key, []).append(pod)
        pods.update((key, joined) for key, of_key in here.items() if (joined := _joined(of_key)) is not None)
        self._book.table.set_pods(pods)

    def _judge_all(self) -> None:
        """Asks for the chains of every port again."""
        self._policies = {
            name: self._book.port_policy(self._pod(attachment)[1]) for name, attachment in self._attachments.items()
        }
        self.tidy()
        self._give_policies()

    def _give_policies(self) -> None:
        """Gives each port its chains, or none while no port is isolated."""
        self._active = any(self._policies.values())
        ports = {}
        for name, attachment in self._attachments.items():
            policy = self._policies[name] if self._active else None
            port = self._ports.get(name)
            if port is None:
                port = replace(port_of(attachment), policy=policy)
            elif port.policy != policy:
                self._earlier.setdefault(name, port)
            ports[name] = port if port.policy == policy else replace(port, policy=policy)
        self._ports = ports


def _joined(pods: Iterable[Pod | None]) -> Pod | None:
    """One pod with the addresses of all that are known; None if none is."""
    known = [pod for pod in pods if pod is not None]
    if not known:
        return None
    return replace(known[0], addresses=tuple(dict.fromkeys(address for pod in known for address in pod.addresses)))
