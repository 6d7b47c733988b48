"""When no daemon answers: judge the call first, then start our daemon, or say so, or write the deletion down.

Design 3: an obviously invalid call never starts a daemon; STATUS starts one too, since a runtime that waits for
STATUS would never call ADD; a DEL always succeeds, and is never lost while there is a place to write to.
"""

import _socket
import errno
import os
import time

from cni import proc
from cni.errors import InvalidConfig, InvalidEnvironment, NotAvailable, TryAgainLater, UndecodableContent
from cni.plugin import client as plugin_door
from cni.plugin import config
from cni.plugin.client import SUPPORTED_VERSIONS, Location, PluginCall

_NAME_CHARACTERS = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
_REQUIRED = {
    b"ADD": (b"CNI_CONTAINERID", b"CNI_NETNS", b"CNI_IFNAME"),
    b"CHECK": (b"CNI_CONTAINERID", b"CNI_NETNS", b"CNI_IFNAME"),
    b"DEL": (b"CNI_CONTAINERID", b"CNI_IFNAME"),
}
_SINCE = {b"CHECK": "0.4.0", b"GC": "1.1.0", b"STATUS": "1.1.0"}
_VERBS = (b"ADD", b"CHECK", b"DEL", b"GC", b"STATUS")


def open_door(call: PluginCall, place: Location, why: str) -> _socket.socket:
    """Our daemon's door, after starting it if we may.

    Raises CniError for a call that no daemon would accept, plugin_door.Closed when there is no daemon and none can
    be started, plugin_door.OutOfTime when it did not open its door in time.
    """
    judge(call)
    if os.geteuid() != 0:
        raise plugin_door.Closed(f"zlayer-cni needs root and runs as user {os.geteuid()}: {why}")
    if not place.autostart:
        from cni import last_words

        said = last_words.read(place.run_dir)
        failed = f"; its last start failed: {said}" if said else ""
        raise plugin_door.Closed(f"no overlay daemon: {why} (autostart is off){failed}")
    from cni.plugin import autostart

    return autostart.open_door(place, call.waiter)


def without_answer(call: PluginCall, place: Location, why: str) -> tuple[int, bytes, bytes]:
    """What the runtime hears when nobody carried out the call, and `why`.

    DEL succeeds with a note on stderr, and is queued; STATUS raises NotAvailable (50), everything else
    TryAgainLater (11).
    """
    if call.command == b"STATUS":
        raise NotAvailable(why)
    if call.command != b"DEL":
        raise TryAgainLater(why)
    judge(call)
    from cni.plugin import delete_queue

    what = attachment(call)
    try:
        name = delete_queue.add(place.run_dir, what, _queued_body(call))
    except (OSError, delete_queue.QueueFull) as error:
        reason = getattr(error, "strerror", None) or error
        note = f"it could not be queued ({reason}): garbage collection will release what it held"
    else:
        note = f"the deletion is queued as {name} and done when the daemon is back"
    return 0, b"", f"zlayer-cni: {why}; {note}; {_remove_link(what)}\n".encode()


def never_fails(call: PluginCall, place: Location, answer: tuple[int, bytes, bytes]) -> tuple[int, bytes, bytes]:
    """What the runtime hears of a DEL that the daemon could not carry out: what is wrong with the request itself, else
    success. A runtime would only repeat it, and its pod would not end meanwhile; the queue and the daemon do better.
    """
    from cni.plugin import delete_queue

    try:
        said = config.parse(answer[1])
    except UndecodableContent:
        said = {}
    if said.get("code") in delete_queue.HOPELESS:
        return answer
    return without_answer(
        call, place, f"the overlay daemon could not delete it now: {said.get('msg', 'no reason given')}"
    )


def _remove_link(what: tuple[str, str, str]) -> str:
    """Take the container off the network now, whenever the rest will be done; what became of it, for stderr.

    The link says itself whose it is: its name is a hash that another attachment may have too. One that says nothing was
    made by an older version, whose daemon marks it as soon as this one starts. An overlay daemon runs in the namespace
    that its plugins run in.
    """
    from cni import naming
    from cni.host import links, netlink

    name = naming.attachment_veth(*what)
    try:
        with netlink.Netlink(timeout=1.0) as socket:
            link = links.find_link(socket, name)
            if link is not None and link.alias.startswith(naming.OWNER) and link.alias != naming.owner_mark(*what):
                return f"the link {name} is another attachment's and stays"
            links.remove_link(socket, name)
    except OSError as error:
        return f"its link {name} could not be removed: {error.strerror or error}"
    return f"its link {name} is gone"


def foreign(call: PluginCall, place: Location) -> tuple[int, bytes, bytes]:
    """Serve the call in this process, in front of a foreign overlayd at `place.foreign`.

    Raises InvalidConfig where this build has no such client.
    """
    from cni import unpack

    judge(call)
    if unpack.is_single_file():
        try:
            unpack.exec_plugin(call.stdin, place.data_dir, place.run_dir, call.waiter)
        except OSError as error:
            raise TryAgainLater(f"the program cannot be unpacked: {error}") from error
    try:
        from cni.upstream.entry import run_foreign
    except ImportError as error:
        msg = f"overlayd.socket: {place.foreign}: this build cannot speak to a foreign overlayd"
        raise InvalidConfig(msg) from error
    return run_foreign(call.env, call.stdin, place.foreign, place.run_dir, call.waiter.left())


def judge(call: PluginCall) -> None:
    """Raise the CniError that any daemon would answer.

    The verbs' own judgement where it is at hand, which is everywhere but in the single file: that has the part of
    it that costs nothing, and leaves the rest to the daemon it starts.
    """
    try:
        from cni.netconf.request import read_request
    except ImportError:
        _judge_cheaply(call)
    else:
        read_request({key.decode(): os.fsdecode(value) for key, value in call.env.items()}, call.stdin)


def _judge_cheaply(call: PluginCall) -> None:
    """In the reference's order (conformance E1, V1 to V8): what is missing, the configuration, values, the verb."""
    missing = [name for name in _REQUIRED.get(call.command, ()) if not call.env.get(name)]
    if missing:
        raise InvalidEnvironment(f"required env variables [{b','.join(missing).decode()}] missing")
    network = _network(call.stdin)
    if not _is_plain(network.encode("utf-8", "surrogatepass")):
        raise InvalidConfig("invalid characters found in network name", network)
    if _REQUIRED.get(call.command):
        _judge_attachment(call.env[b"CNI_CONTAINERID"], call.env[b"CNI_IFNAME"])
    if call.command not in _VERBS:
        raise InvalidEnvironment(f"unknown CNI_COMMAND: {_text(call.command)}")
    _judge_version(call)


def _judge_attachment(container: bytes, ifname: bytes) -> None:
    if not _is_plain(container):
        raise InvalidEnvironment("CNI_CONTAINERID: invalid characters in containerID", _text(container))
    if len(ifname) > 15:
        raise InvalidEnvironment("CNI_IFNAME: interface name is too long", f"{_text(ifname)}: at most 15 bytes")
    if ifname in (b".", b".."):
        raise InvalidEnvironment("CNI_IFNAME: interface name is . or ..", _text(ifname))
    if any(char in "/:" or char.isspace() for char in _text(ifname)):
        msg = "CNI_IFNAME: interface name contains / or : or whitespace characters"
        raise InvalidEnvironment(msg, _text(ifname))


def _judge_version(call: PluginCall) -> None:
    from cni.errors import IncompatibleVersion

    version = config.version(call.stdin)
    known = version in SUPPORTED_VERSIONS
    since = _SINCE.get(call.command, "")
    if known and since and SUPPORTED_VERSIONS.index(version) < SUPPORTED_VERSIONS.index(since):
        raise IncompatibleVersion(f"config version does not allow {_text(call.command)}")
    if not known and not since:
        ours = " ".join(f'"{each}"' for each in SUPPORTED_VERSIONS)
        raise IncompatibleVersion("incompatible CNI versions", f'config is "{version}", plugin supports [{ours}]')


def attachment(call: PluginCall) -> tuple[str, str, str]:
    """(network, container, interface): what a deletion is about."""
    return _network(call.stdin), _text(call.env[b"CNI_CONTAINERID"]), _text(call.env[b"CNI_IFNAME"])


def _network(stdin: bytes) -> str:
    name = config.parse(stdin).get("name")
    if name is None or name == "":
        raise InvalidConfig("missing network name")
    if not isinstance(name, str):
        raise UndecodableContent("error unmarshall network config: name: expected a string")
    return name


def _is_plain(value: bytes) -> bool:
    """Whether the whole of it matches `[a-zA-Z0-9][a-zA-Z0-9_.-]*` (conformance V1, V5)."""
    return value[:1].isalnum() and not value.strip(_NAME_CHARACTERS + b"_.-")


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")


def _queued_body(call: PluginCall) -> bytes:
    """The door's request for later: no descriptor, since the path may be another container's namespace by then."""
    pairs = {**call.env, b"ATTEMPT": call.attempt, b"NETNS_ERROR": errno.errorcode[errno.ESTALE].encode()}
    pairs[b"QUEUED_NS"] = b"%d" % time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    try:
        pairs[b"BOOT_ID"] = proc.boot_id().encode()
    except OSError:
        pass  # The run directory goes with the boot anyway where it is a tmpfs.
    return plugin_door.request(pairs, call.stdin)
