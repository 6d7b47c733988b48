"""What the cluster says of a pod that is attached, from the objects that are followed: the API server is not asked.

A pod of which the daemon has not heard is not attached by defaults that may be wrong: ADD is answered with 11, and the
kubelet tries again. The runtime's own word for the pod's annotations is preferred, as it needs no API server.
"""

from __future__ import annotations

from cni.daemon.kubernetes.follower import ResourceFollower
from cni.daemon.kubernetes.policies import ClusterPolicies
from cni.daemon.model.kubernetes import ClusterPolicy, Namespace, Pod
from cni.errors import TryAgainLater
from cni.netconf.environment import Call
from cni.netconf.policy import ClusterWords

RETRY = "the daemon has not heard of it from the API server yet, and the kubelet tries again"


class ClusterDirectory:
    """The Namespaces, Pods and network policies of the cluster. Any thread may use it."""

    def __init__(
        self,
        namespaces: ResourceFollower[Namespace],
        pods: ResourceFollower[Pod],
        network_policies: ResourceFollower[ClusterPolicy],
        policies: ClusterPolicies,
    ) -> None:
        """`policies` puts in force what the three followers report."""
        self._namespaces, self._pods = namespaces, pods
        self._network_policies, self._policies = network_policies, policies

    def start(self) -> None:
        """Start following. What is recorded is in force before the fence is loaded; raises FenceFailed where that is
        refused."""
        self._policies.take_in()
        self._namespaces.start()
        self._network_policies.start()
        self._pods.start()
        self._policies.start()

    def stop(self) -> None:
        """Stop following."""
        self._policies.stop()
        self._namespaces.stop()
        self._network_policies.stop()
        self._pods.stop()

    def refusal(self) -> str:
        """Why no pod can be attached; "" if pods can."""
        if self._namespaces.is_complete or self._namespaces.all():
            return ""
        return "the API server of Kubernetes has not told of any Namespace since the daemon's start"

    def words(self, call: Call, has_annotations: bool) -> ClusterWords:
        """What the cluster says of the pod of a call; nothing of a container that is no pod. `has_annotations`: the
        runtime has passed the pod's annotations. Raises TryAgainLater for a pod or Namespace that is unknown yet."""
        name = call.args.get("K8S_POD_NAMESPACE", "")
        if not name:
            return ClusterWords()
        namespace = self._namespaces.get(name)
        if namespace is None:
            raise TryAgainLater(f"the Namespace {name} is unknown", RETRY)
        pod = call.args.get("K8S_POD_NAME", "")
        annotations = {} if has_annotations else self._annotations(f"{name}/{pod}", call)
        return ClusterWords(name, namespace.annotations, annotations, pod)

    def _annotations(self, key: str, call: Call) -> dict[str, str]:
        pod, uid = self._pods.get(key), call.args.get("K8S_POD_UID", "")
        if pod is None or (uid and pod.uid != uid):
            raise TryAgainLater(f"the Pod {key} is unknown", RETRY)
        return pod.annotations
