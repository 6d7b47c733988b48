"""The problems of the node's DNS server."""

from __future__ import annotations

from cni.problems.kind import ProblemKind

KINDS = (
    ProblemKind(
        "dns-not-served",
        "node",
        "error",
        "The node's DNS server does not answer at an address of the node, and no result names that address. The text"
        " has the reason: mostly another server has the port, on every address of the host (dnsmasq, named, a pod with"
        " the host's network).",
        "Bind the other server to its own addresses (dnsmasq: `bind-interfaces` or `listen-address`; named:"
        " `listen-on`), or turn the node's server off: `dns: {serve: false}`.",
    ),
    ProblemKind(
        "dns-port-closed",
        "node",
        "error",
        "A firewall of this node drops what containers send to port 53 of the node: they cannot ask its DNS server.",
        "Allow the port for the overlay's devices; the text has the command. It is looked at once a minute.",
    ),
    ProblemKind(
        "dns-host-not-set",
        "node",
        "warning",
        "`dns: {host: true}` is not in force: systemd-resolved does not run, or refuses the setting of its link, or the"
        " host's programs do not ask it. The text has the reason. Containers are not concerned.",
        "Start systemd-resolved and let /etc/resolv.conf name it (127.0.0.53), or put `resolve` into the hosts line of"
        " nsswitch.conf; or take `dns: {host: true}` out of the YAML. The daemon changes neither file.",
    ),
    ProblemKind(
        "dns-not-intercepted",
        "node",
        "error",
        "`dns: {intercept: true}` is not in force: the sockets or the nftables table for containers' DNS questions"
        " could not be made. Containers ask the servers of their resolv.conf, which do not know the overlay's names.",
        "Follow the text: it has the reason of the kernel or of nftables. The daemon tries again by itself.",
    ),
    ProblemKind(
        "dns-no-upstream",
        "node",
        "warning",
        "A container asks for a name outside the overlay, and no server is named: neither `dns.upstreams` nor the"
        " host's resolv.conf has one. The node refuses such names; it asks no server that no file names.",
        "Name servers in `dns.upstreams`, or in the host's /etc/resolv.conf, which is followed; `dns: {upstreams: []}`"
        " says that refusing is meant.",
    ),
    ProblemKind(
        "dns-upstreams-silent",
        "node",
        "warning",
        "None of the servers for other names answers, by UDP or by TCP: three questions in a row had no answer in 4 s."
        " Containers get answers that are kept, up to an hour beyond their time, and SERVFAIL for the rest.",
        "Look for the servers and the way to them from the host (`dig @SERVER example.org`); name others in"
        " `dns.upstreams` or the host's resolv.conf.",
    ),
    ProblemKind(
        "dns-forward-loop",
        "node",
        "warning",
        "A server for other names is this node itself, or asks this node: such questions cannot be answered. Each is"
        " sent once.",
        "Take the node's own address out of `dns.upstreams`, the host's resolv.conf, or the settings of the server in"
        " between; for the overlay's zone alone, use `dns: {host: true}` or a conditional zone there.",
    ),
)
