"""What holds where no setting says otherwise, and the sizes that all nodes of an overlay must agree on."""

RUN_DIR = "/run/zlayer-cni"
"""Sockets and records, which end with the boot. cni/plugin/client.py repeats this and the next: it imports nothing."""
DATA_DIR = "/var/lib/zlayer-cni"
"""Identity and settings."""
BIN_DIR, CONF_DIR = "/opt/cni/bin", "/etc/cni/net.d"
"""Where container runtimes look for plugins and for network lists."""

WG_PORT = 51420
"""UDP port of a node's device (contract 3.4)."""
FIRST_PORT, LAST_PORT = 51421, 51676
"""UDP ports of the devices of services in mode dedicated (contract 6.5), whatever the node's own port is."""
KEEPALIVE = 25
"""Seconds between packets that keep a way open: what NAT and firewalls forget last is older."""
SLOT_PREFIX = {4: 26, 6: 120}
"""Length of the ranges into which a cluster's range is cut, by IP version."""
