"""The problems of the cluster's store and of what other nodes publish in it."""

from __future__ import annotations

from cni.problems.kind import ProblemKind

KINDS = (
    ProblemKind(
        "cluster-step",
        "cluster",
        "error",
        "A step of the cluster's threads failed unexpectedly; the other steps are carried out.",
        "Read the text and the daemon's log of that time; the step is repeated.",
    ),
    ProblemKind(
        "policy-refused",
        "cluster",
        "error",
        "A NetworkPolicy of the cluster cannot be read by this version. Its last good content stays in force; without "
        "one, what it selects is isolated.",
        "Read the text: it names the field and its value. Change the policy, or upgrade the daemon.",
    ),
    ProblemKind(
        "store-unreachable",
        "cluster",
        "warning",
        "etcd cannot be reached. The node continues with its present subnets and peers.",
        "Check etcd, the network to it and the certificates named in the text.",
    ),
    ProblemKind(
        "store-not-etcd",
        "cluster",
        "warning",
        "What answers at etcd's endpoints is not the JSON gateway of etcd; the text has endpoint, status and type.",
        "Name etcd's client port in cluster.etcd.endpoints, with https if it has TLS; start etcd with its gateway"
        " (--enable-grpc-gateway=true), and no proxy before it that redirects, compresses or answers itself.",
    ),
    ProblemKind(
        "store-went-back",
        "cluster",
        "warning",
        "etcd has an earlier state than this node has seen: it was restored from an older backup, or lost its data."
        " Traffic goes on; the problem lasts until every node that answers has put its claims and document back.",
        "Check that the restore was meant. If the problem stays, look at `status` of the other nodes; nodes that were"
        " forgotten after the backup are to be forgotten again (`zlayer-cni peer gone`).",
    ),
    ProblemKind(
        "clock-differs",
        "cluster",
        "warning",
        "This node's clock differs by more than 30 s from that of the etcd member which answers it. Certificates, edge"
        " peers' times and WireGuard's handshakes after a change of the clock depend on it.",
        "Look which of the two is wrong, set it, and let NTP or the like keep it.",
    ),
    ProblemKind(
        "store-certificates",
        "cluster",
        "warning",
        "The certificate files for etcd cannot be used. Connections are made with those that were read before, if any.",
        "Replace the files named in the text; key and certificate must belong together. No restart is needed.",
    ),
    ProblemKind(
        "store-writes-refused",
        "cluster",
        "warning",
        "etcd answers and refuses this node's writes, so other nodes do not learn of its new subnets and members.",
        "Check for an alarm (`etcdctl alarm list`, NOSPACE), or for the permission named in the text.",
    ),
    ProblemKind(
        "kubernetes-not-followed",
        "cluster",
        "error",
        "The API server of Kubernetes does not tell of the cluster's Pods or Namespaces. The daemon works with what"
        " it was told last; Pods of a new Namespace are not attached (code 11).",
        "Give the daemon's service account the rights in the text: `kubectl apply -f` with the manifest of this"
        " version.",
    ),
    ProblemKind(
        "names-not-shared",
        "cluster",
        "warning",
        "The store refuses the records of this node's names, so containers of other nodes do not resolve them.",
        "Let the node's role write below `name/IDENTITY/` (docs/mesh.md has the command).",
    ),
    ProblemKind(
        "lease-not-renewed",
        "cluster",
        "warning",
        "This node's lease in etcd cannot be renewed. After its expiry, new nodes do not learn of this node.",
        "Check etcd and the network to it.",
    ),
    ProblemKind(
        "node-unheard",
        "cluster",
        "warning",
        "A node has no document in etcd for longer than lease and grace, but its tunnel answers, so it stays a peer.",
        "Check `zlayer-cni status` on that node: it cannot write to etcd, or its daemon does not run.",
    ),
    ProblemKind(
        "not-joined",
        "cluster",
        "error",
        "This node has not joined the cluster: a claim was refused.",
        "Read the text: it names the id, slice or key, and the node that holds it.",
    ),
    ProblemKind(
        "identity-in-use",
        "cluster",
        "error",
        "Another machine publishes under this node's identity.",
        "If one data directory is a copy of the other, remove identity.json on one of the two machines.",
    ),
    ProblemKind(
        "identity-cloned",
        "cluster",
        "error",
        "A virtual machine was cloned with its memory: two machines run as this node. One goes on and tells it for a"
        " minute; the other has no peers and publishes nothing, until the first is gone or has another identity.",
        "Stop the daemon on the machine that is to become a node of its own, remove identity.json from its data"
        " directory, and reboot it.",
    ),
    ProblemKind(
        "key-in-use",
        "cluster",
        "error",
        "Another node has claimed this node's WireGuard key, so this node publishes nothing.",
        "Make a new key: `zlayer-cni peer rotate`.",
    ),
    ProblemKind(
        "claims-lost",
        "cluster",
        "error",
        "Subnets that this node used now belong to another node.",
        "Restart the containers named in the text; they have addresses that another node may lease.",
    ),
    ProblemKind(
        "record-refused",
        "cluster",
        "warning",
        "A record in the cluster's store is unreadable or not accepted; the rest of the cluster is unaffected.",
        "Repair or remove the record named in the text; the record's key names the writer.",
    ),
    ProblemKind(
        "record-not-its-own",
        "cluster",
        "warning",
        "A record about a node was written by another node: its signature is wrong, of another key or of an older"
        " document, or it overwrites a claim. It is not accepted; the problem stays for five minutes after the repair.",
        "Find out who has the store's credentials. `zlayer-cni peer forget` releases a node that has lost its key.",
    ),
    ProblemKind(
        "word-too-long",
        "cluster",
        "warning",
        "This node has more subnets, networks or members than other nodes read, or names that they refuse.",
        "Spread the containers over more nodes, or give the networks and services shorter names.",
    ),
    ProblemKind(
        "claim-missing",
        "cluster",
        "warning",
        "A node publishes something that its claims in etcd do not cover; that part is not accepted, the rest is.",
        "Check that node: its version, its status, and who controls it.",
    ),
    ProblemKind(
        "range-differs",
        "cluster",
        "error",
        "Another node has another range of the overlay than this node. Both report it; what is in only one of the"
        " ranges is not reached by the other node.",
        "Set the same cluster_cidr and cluster_cidr6 on both nodes, and reboot the one that was wrong: the range of a"
        " node that has joined does not change before.",
    ),
    ProblemKind(
        "peer-key-conflict",
        "cluster",
        "warning",
        "Another node publishes a WireGuard key that belongs to a different node, so it is not a peer.",
        "Make a new key on that node: `zlayer-cni peer rotate`.",
    ),
)
