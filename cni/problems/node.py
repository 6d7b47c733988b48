"""The problems of the node itself: its kernel settings, firewalls, sockets, threads, addresses, disk and clock."""

from __future__ import annotations

from cni.problems.kind import ProblemKind

KINDS = (
    ProblemKind(
        "forwarding-off",
        "node",
        "error",
        "The kernel does not forward packets of an address family that the overlay uses, or those from one link.",
        "Set net.ipv4.ip_forward, net.ipv6.conf.all.forwarding or the link's setting to 1; find what sets it to 0.",
    ),
    ProblemKind(
        "forward-denied-iptables",
        "node",
        "error",
        "iptables' FORWARD chain drops the containers' packets, and the daemon cannot add its rule to the chain.",
        "Accept the overlay's range in FORWARD, or repair the iptables command named in the text.",
    ),
    ProblemKind(
        "forward-denied-nftables",
        "node",
        "error",
        "A native nftables chain of another program (firewalld, nftables.conf) drops what containers send, at any hook"
        " on their way, by policy or by the rule that the text names.",
        "Accept the overlay's range in that chain: no other table can override a drop. For firewalld the text has the"
        " command: the range is made a source of the zone trusted.",
    ),
    ProblemKind(
        "kernel-setting",
        "node",
        "error",
        "A setting of `all` below net.ipv4.conf or net.ipv6.conf overrides the overlay's settings of its own links.",
        "Restore the default of the setting named in the text, or set it only on the links that need it.",
    ),
    ProblemKind(
        "overlay-range-refused",
        "node",
        "error",
        "The overlay's range overlaps a network of the host, so the daemon loads no bridge or rule: ADD fails with 7.",
        "Set cluster_cidr to a free range, the same on every node, and restart; or remove the network in the text.",
    ),
    ProblemKind(
        "overlay-range-overlap",
        "node",
        "error",
        "A network that the host joined later is inside the overlay's range. The overlay does not use that network.",
        "Change the range of that network or of the overlay: the overlay leases no subnet and reaches no peer in it.",
    ),
    ProblemKind(
        "second-daemon",
        "node",
        "warning",
        "Another overlay daemon works in the same network namespace.",
        "Stop one of them: they share tables and bridges.",
    ),
    ProblemKind(
        "overlay-socket-closed",
        "node",
        "warning",
        "The socket for ZLayer agents cannot be opened.",
        "Free the path, make its directories writable by root only, or set overlay_socket in the YAML.",
    ),
    ProblemKind(
        "metrics-closed",
        "node",
        "warning",
        "A socket of the metrics cannot be opened; everything else works.",
        "Free the path or the port, or set another metrics.listen in the YAML, and restart the daemon.",
    ),
    ProblemKind(
        "thread-ended",
        "node",
        "warning",
        "A thread of the daemon ended unexpectedly and was restarted; the problem is cleared after 60 s.",
        "Report the daemon's log of that time: it has the traceback.",
    ),
    ProblemKind(
        "thread-hangs",
        "node",
        "error",
        "A thread of the daemon does not respond. After 60 s the daemon restarts itself; traffic is not interrupted.",
        "Report the daemon's log of that time: it has the position of the thread.",
    ),
    ProblemKind(
        "look-incomplete",
        "node",
        "error",
        "A step of the periodic reconciliation with the kernel failed; the other steps are carried out.",
        "Read the text; the step is repeated every 10 s.",
    ),
    ProblemKind(
        "start-incomplete",
        "node",
        "error",
        "A step of the daemon's start failed; the other steps were carried out.",
        "Read the text, remove the cause, and restart the daemon.",
    ),
    ProblemKind(
        "node-address",
        "node",
        "error",
        "One of the node's own overlay addresses cannot be set; the other address family is unaffected.",
        "Read the text; for IPv6 check net.ipv6.conf.lo.disable_ipv6. The step is repeated every 10 s.",
    ),
    ProblemKind(
        "node-setting",
        "node",
        "error",
        "A kernel setting that the overlay needs cannot be written.",
        "Make /proc/sys writable for the daemon, or set the value named in the text.",
    ),
    ProblemKind(
        "right-missing",
        "node",
        "error",
        "The container of the daemon lacks something that it needs: a capability, a mount of the host, or a device.",
        "Add what the text names to the container; the DaemonSet of `scripts/manifest` has all of it.",
    ),
    ProblemKind(
        "service-same-bridge",
        "node",
        "warning",
        "kube-proxy or IPVS translates services here, and bridged packets pass connection tracking by: a container does"
        " not reach a container on its own bridge by a service's virtual address. Every other way works.",
        "Load br_netfilter and set net.bridge.bridge-nf-call-iptables and net.bridge.bridge-nf-call-ip6tables to 1.",
    ),
    ProblemKind(
        "service-incomplete",
        "node",
        "error",
        "The bridge of a service, or one of its gateways, cannot be set up; other services are unaffected.",
        "Read the text; the step is repeated every 10 s.",
    ),
    ProblemKind(
        "addresses-low",
        "node",
        "warning",
        "A service has taken 80 % of the addresses that it could have on this node, or more.",
        "Give the overlay a larger range (cluster_cidr, service_cidr), or spread the containers over more nodes;"
        " `zlayer-cni gc` releases what ended containers have left.",
    ),
    ProblemKind(
        "delete-queue-stuck",
        "node",
        "warning",
        "Deletions that plugins queued while no daemon ran are not carried out, though they are tried every 10 s.",
        "Read the daemon's log: it has each one's reason. Their containers keep addresses and links until then.",
    ),
    ProblemKind(
        "disk-full",
        "node",
        "error",
        "The file system of the data directory or of the run directory is full: no record can be written, so ADD fails"
        " with 5.",
        "Free space on the file system named in the text.",
    ),
    ProblemKind(
        "disk-read-only",
        "node",
        "error",
        "The data directory or the run directory is on a file system that is mounted read-only.",
        "Find in the kernel's log why it was mounted so, often an error of the disk; repair it, and mount it writable.",
    ),
    ProblemKind(
        "clock-behind",
        "node",
        "warning",
        "The node's clock is earlier than a file of its identity. WireGuard's peers refuse handshakes that are older"
        " than the last one, and certificates may not be valid yet.",
        "Set the clock, and let NTP or the like keep it.",
    ),
    ProblemKind(
        "version-differs",
        "node",
        "warning",
        "The tool is of another version than the daemon that answers it; or another node of the cluster has run another"
        " version than this one for more than an hour.",
        "`zlayer-cni restart` runs the daemon that is installed, without ending a connection; upgrade the node named in"
        " the text, or finish the upgrade that is under way.",
    ),
    ProblemKind(
        "settings-not-applied",
        "node",
        "warning",
        "The daemon's YAML has changed since the daemon started, or no daemon can start with it any more.",
        "`zlayer-cni validate FILE`, then `zlayer-cni restart`, which ends no connection; or restore the file.",
    ),
    ProblemKind(
        "network-list-shadowed",
        "node",
        "warning",
        "Another network list sorts before that of this product. The runtime uses the first by name, so new containers"
        " are attached by the other one.",
        "Remove or rename the list named in the text, on every node; containers attached by it keep their network.",
    ),
    ProblemKind(
        "network-list-not-written",
        "node",
        "error",
        "The daemon cannot put the network list of its settings (`network_list`) where the runtime looks for it.",
        "Make the directory named in the text writable for the daemon, or correct `network_list`.",
    ),
)
