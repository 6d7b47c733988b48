"""Default values of settings, and the sizes on which all nodes of an overlay must agree."""

RUN_DIR = "/run/zlayer-cni"
"""Sockets and records, which do not survive a reboot. cni/plugin/client.py repeats this value and the next, because it
imports nothing."""
DATA_DIR = "/var/lib/zlayer-cni"
POLICIES = "/etc/zlayer-cni/policies.d"
"""Identity and settings."""
METRICS_SOCKET = "metrics.sock"
"""The socket of the metrics, in the run directory."""
BIN_DIR, CONF_DIR = "/opt/cni/bin", "/etc/cni/net.d"
"""The directories in which container runtimes look for plugins and for network lists."""
NETWORK = "zlayer"
"""The name of the network in the network list that `install` writes."""
PROGRAM_DIR = "/opt/zlayer-cni"
"""Where `install` puts the program, a directory for each version."""

BRIDGE, ROUTED = "bridge", "routed"
ATTACH_KINDS = (BRIDGE, ROUTED)
"""How the containers of a service are attached: to a bridge, or each by a veth that the node routes to."""

WG_PORT = 51420
"""UDP port of a node's device (contract 3.4)."""
FIRST_PORT, LAST_PORT = 51421, 51676
"""UDP ports of the devices of services in mode dedicated (contract 6.5); independent of the node's own port."""
CONNECTIVITY_PORT = 9474
"""TCP port at a node's address, for the connectivity tests of other nodes."""
DNS_PORT = 53
"""Port of a DNS server, UDP and TCP (RFC 1035, 4.2)."""
KEEPALIVE = 25
"""Seconds between keepalive packets: NAT and firewalls remove only entries that have been idle for longer."""
SLOT_PREFIX = {4: 26, 6: 120}
"""Length of the ranges into which a cluster's range is cut, by IP version."""
