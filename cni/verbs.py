"""ADD, DEL, CHECK, GC, STATUS: translates a CNI call into calls on an `Overlay`, and their results into a CNI result.

The same code runs in our daemon, where `overlay` is the daemon's own service, and in the plugin's process in front of
ZLayer's overlayd.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_network
from typing import Protocol

import msgspec

from cni import plugin_protocol
from cni.errors import CniError, InvalidNetns, TryAgainLater
from cni.netconf.configuration import NetConf
from cni.netconf.environment import Call
from cni.netconf.intent import Intent, intent
from cni.netconf.policy import ClusterWords
from cni.netconf.request import read_request, version_of
from cni.netconf.result import merge, render, render_error
from cni.netconf.template import placeholders
from cni.netconf.types import DNS, IP, Interface, Result, Route

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Target:
    """The container's namespace: an open descriptor, its path as given, and the (device, inode) of the namespaces that
    are refused."""

    fd: int
    path: str
    forbidden: frozenset[tuple[int, int]] = frozenset()


class Attached(msgspec.Struct, frozen=True, kw_only=True):
    """What an attach created. Addresses: (address/prefix, gateway); routes: (destination, gateway); MTU in bytes;
    `bridge` is "" for a port on none."""

    bridge: str
    bridge_mac: str
    host_veth: str
    host_mac: str
    mac: str
    mtu: int
    addresses: tuple[tuple[str, str], ...]
    routes: tuple[tuple[str, str], ...]
    dns: DNS


@dataclass(frozen=True)
class AttachCall:
    """One call as received: the call, its configuration, the id of the attempt, and `caller_waits`, which returns
    whether the caller still waits for the answer."""

    call: Call
    conf: NetConf
    attempt: str = ""
    caller_waits: Callable[[], bool] = lambda: True


@dataclass(frozen=True)
class Recorded:
    """What an overlay has recorded of an attachment, for the log."""

    pod: str
    service: str
    isolation: str
    addresses: tuple[str, ...]


class Overlay(Protocol):
    """The operations of an overlay daemon that CNI needs. Every method raises CniError. `detach` and `check` return
    what is recorded of the attachment; None if nothing is. `cluster_words`: what the cluster says of the pod of a call,
    whose own annotations the runtime has passed or not."""

    def cluster_words(self, call: Call, has_annotations: bool) -> ClusterWords: ...
    def attach(self, asked: AttachCall, wish: Intent, target: Target) -> Attached: ...
    def detach(self, network: str, container: str, ifname: str) -> Recorded | None: ...
    def check(self, call: Call, network: str, previous: Result, target: Target) -> Recorded | None: ...
    def collect(self, network: str, valid: set[tuple[str, str]] | None) -> list[str]: ...
    def ready(self, service: str, mode: str) -> list[str]: ...


@dataclass(frozen=True)
class PluginOutput:
    """The plugin's exit code and output. `facts`: what is known of the attachment, by key, and `error`: both for the
    log."""

    code: int
    stdout: str = ""
    stderr: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)
    error: CniError | None = None


def serve(
    env: Mapping[str, str], stdin: bytes, netns_fd: int | None, overlay: Overlay, caller_waits: Callable[[], bool]
) -> PluginOutput:
    """Carry out one call. Never raises: every failure becomes a coded error on stdout."""
    facts = facts_of(env)
    try:
        call, conf = read_request(env, stdin)
        facts |= {"network": conf.name, "pod": pod_of(call)}
        warnings = list(conf.warnings) if call.command in ("ADD", "CHECK", "DEL") else []
        asked = AttachCall(call, conf, env.get(plugin_protocol.ATTEMPT, ""), caller_waits)
        stdout = _verb(asked, env, netns_fd, overlay, warnings=warnings, facts=facts)
        return PluginOutput(0, stdout, "".join(f"zlayer-cni: {line}\n" for line in warnings), facts)
    except CniError as error:
        return refused(error, stdin, facts)
    except Exception as error:
        log.exception("a call failed with an unexpected error")
        internal_error = CniError(f"internal error: {type(error).__name__}: {error}")
        return refused(internal_error, stdin, facts)


def refused(error: CniError, stdin: bytes, facts: Mapping[str, str]) -> PluginOutput:
    """The output of a call that failed with `error`."""
    return PluginOutput(1, render_error(error, version_of(stdin)) + "\n", "", facts, error)


def facts_of(env: Mapping[str, str]) -> dict[str, str]:
    """What the environment alone tells of the attachment, for the log: the call may be invalid."""
    return {"attachment": f"{env.get('CNI_CONTAINERID', '')}/{env.get('CNI_IFNAME', '')}"}


def _verb(
    asked: AttachCall,
    env: Mapping[str, str],
    netns_fd: int | None,
    overlay: Overlay,
    *,
    warnings: list[str],
    facts: dict[str, str],
) -> str:
    """The output of one verb. `warnings` and `facts` grow."""
    call, conf = asked.call, asked.conf
    if call.command == "ADD":
        return _add(asked, _target(call, env, netns_fd), overlay, warnings, facts)
    if call.command == "CHECK":
        assert conf.prev_result is not None  # the configuration was refused otherwise
        _note(overlay.check(call, conf.name, conf.prev_result, _target(call, env, netns_fd)), facts)
    elif call.command == "DEL":
        _refuse_own_netns(call, env, netns_fd)
        _note(overlay.detach(conf.name, call.container_id, call.ifname), facts)
    elif call.command == "GC":
        valid = conf.valid_attachments
        valid_keys = None if valid is None else {(attachment.container_id, attachment.ifname) for attachment in valid}
        warnings += overlay.collect(conf.name, valid_keys)
    else:
        # STATUS has no CNI_ARGS, so a name that depends on the pod is unknown; any name gives the same answer.
        named = conf.service if conf.service and not placeholders(conf.service, "service") else conf.name
        warnings += overlay.ready(named, conf.mode)
    return ""


def _note(recorded: Recorded | None, facts: dict[str, str]) -> None:
    if recorded is not None:
        facts["pod"] = facts["pod"] or recorded.pod
        facts |= {
            "service": recorded.service,
            "isolation": recorded.isolation,
            "addresses": ",".join(recorded.addresses),
        }


def pod_of(call: Call) -> str:
    """namespace/name of the pod; empty if the runtime does not pass it."""
    name = call.args.get("K8S_POD_NAME", "")
    return f"{call.args.get('K8S_POD_NAMESPACE', '')}/{name}" if name else ""


def _add(asked: AttachCall, target: Target, overlay: Overlay, warnings: list[str], facts: dict[str, str]) -> str:
    call, conf = asked.call, asked.conf
    wish = intent(conf, call, overlay.cluster_words(call, bool(conf.runtime.annotations)))
    warnings += wish.warnings
    facts |= {"service": wish.service, "isolation": wish.isolation_network or ""}
    attached = overlay.attach(asked, wish, target)
    facts["addresses"] = ",".join(address.partition("/")[0] for address, _ in attached.addresses)
    warnings += _left_out(wish, attached)
    try:
        ours = result_of(attached, call, wish)
        whole = merge(conf.prev_result, ours) if conf.prev_result is not None else ours
        return render(whole, conf.version) + "\n"
    except BaseException:
        try:
            overlay.detach(conf.name, call.container_id, call.ifname)
        except CniError:
            log.exception("could not undo the attach of %s to %s", call.container_id, conf.name)
        raise


def _left_out(wish: Intent, attached: Attached) -> list[str]:
    """A warning for each requested route that was not set, so that the operator sees the reason."""
    made = {ip_network(dst) for dst, _ in attached.routes}
    why = "there is no address of its family, or such a route already"
    return [f"routes: {route.dst}: left out, {why}" for route in wish.routes if ip_network(route.dst) not in made]


def result_of(attached: Attached, call: Call, wish: Intent) -> Result:
    """The result of an attach: bridge, if there is one, host end, container's end, in the order that other plugins
    expect."""
    on = (Interface(attached.bridge, attached.bridge_mac),) if attached.bridge else ()
    return Result(
        interfaces=(
            *on,
            Interface(attached.host_veth, attached.host_mac, mtu=attached.mtu),
            Interface(call.ifname, attached.mac, call.netns, attached.mtu),
        ),
        ips=tuple(IP(address, gateway, len(on) + 1) for address, gateway in attached.addresses),
        routes=tuple(Route(dst, gateway) for dst, gateway in attached.routes),
        dns=attached.dns if wish.dns is None else wish.dns,
    )


def _target(call: Call, env: Mapping[str, str], netns_fd: int | None) -> Target:
    """The container's namespace. Raises InvalidNetns (8) if it cannot be opened, TryAgainLater (11) if its descriptor
    did not reach the daemon."""
    if netns_fd is None and env.get(plugin_protocol.NETNS_FD):
        raise TryAgainLater(f"CNI_NETNS: {call.netns} did not reach the daemon, which has too many files open")
    if netns_fd is None:
        code = getattr(errno, env.get(plugin_protocol.NETNS_ERROR, ""), errno.EINVAL)
        reason = "it is no network namespace" if code == errno.EINVAL else os.strerror(code)
        raise InvalidNetns(f"CNI_NETNS: cannot open {call.netns}: {reason}")
    forbidden = set() if call.override else _own_netns(env)
    return Target(netns_fd, call.netns, frozenset(forbidden))


def _own_netns(env: Mapping[str, str]) -> set[tuple[int, int]]:
    """(device, inode) of the namespace that the plugin runs in, as sent by the plugin; empty if it sent none."""
    dev, _, ino = env.get(plugin_protocol.OWN_NETNS, "").partition(":")
    return {(int(dev), int(ino))} if dev.isdigit() and ino.isdigit() else set()


def _refuse_own_netns(call: Call, env: Mapping[str, str], netns_fd: int | None) -> None:
    """Refuse a DEL for the host's own network namespace (code 8), so that it does not run partially."""
    if netns_fd is None or call.override:
        return
    status = os.fstat(netns_fd)
    if (status.st_dev, status.st_ino) in _own_netns(env):
        raise InvalidNetns(
            f"CNI_NETNS: {call.netns} is the host's own network namespace", "set CNI_NETNS_OVERRIDE=1 if that is meant"
        )
