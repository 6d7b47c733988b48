"""If no daemon answers: validates the call, then starts our daemon, returns an error, or queues the deletion.

An invalid call never starts a daemon. STATUS starts a daemon too, because a runtime that waits for STATUS would never
call ADD. A DEL always succeeds, and is never lost while its entry can be written.
"""

import _socket
import errno
import os
import time

from cni import plugin_protocol, proc
from cni.errors import InvalidConfig, InvalidEnvironment, NotAvailable, TryAgainLater, UndecodableContent
from cni.plugin import client, config
from cni.plugin.client import SUPPORTED_VERSIONS, Location, PluginCall

_MARGIN = 3.0  # seconds that are left for the call itself, when a container's daemon has been replaced
_STEP = 0.05  # seconds between two attempts
_NAME_CHARACTERS = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
_REQUIRED = {
    b"ADD": (b"CNI_CONTAINERID", b"CNI_NETNS", b"CNI_IFNAME"),
    b"CHECK": (b"CNI_CONTAINERID", b"CNI_NETNS", b"CNI_IFNAME"),
    b"DEL": (b"CNI_CONTAINERID", b"CNI_IFNAME"),
    b"GC": (b"CNI_PATH",),
}
_SINCE = {b"CHECK": "0.4.0", b"GC": "1.1.0", b"STATUS": "1.1.0"}
_VERBS = (b"ADD", b"CHECK", b"DEL", b"GC", b"STATUS")


def connect_or_start(call: PluginCall, place: Location, why: str) -> _socket.socket:
    """A connection to our daemon, which is started if the configuration allows it.

    Raises CniError for a call that no daemon would accept, client.Closed if there is no daemon and none can be
    started, client.OutOfTime if the daemon does not listen in time.
    """
    validate(call)
    if os.geteuid() != 0:
        raise client.Closed(f"zlayer-cni needs root and runs as user {os.geteuid()}: {why}")
    if not place.autostart:
        successor = _successor(call, place)
        if successor is not None:
            return successor
        from cni import last_words

        last_error = last_words.read(place.run_dir)
        failed = f"; its last start failed: {last_error}" if last_error else ""
        raise client.Closed(f"no overlay daemon: {why} (autostart is off){failed}")
    from cni.plugin import autostart

    return autostart.connect_or_start(place, call.waiter)


def _successor(call: PluginCall, place: Location) -> "_socket.socket | None":
    """A connection to the daemon that takes the place of one that is being replaced; None if none is, or it does not
    come in the time of the call. DEL does not wait, because it is queued, nor does STATUS."""
    note = os.path.join(place.run_dir, plugin_protocol.COMES_BACK)
    while call.command in (b"ADD", b"CHECK") and os.path.exists(note) and call.waiter.left() > _MARGIN:
        call.waiter.pause(_STEP)
        try:
            return client.connect(place.run_dir, call.waiter)
        except client.Closed:
            continue
    return None


def queue_or_fail(call: PluginCall, place: Location, why: str) -> tuple[int, bytes, bytes]:
    """The answer to a call that no daemon carried out, for the reason `why`.

    DEL is queued and succeeds with a note on stderr. STATUS raises NotAvailable (50), every other verb TryAgainLater
    (11).
    """
    if call.command == b"STATUS":
        raise NotAvailable(why)
    if call.command != b"DEL":
        raise TryAgainLater(why)
    validate(call)
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


def answer_failed_delete(
    call: PluginCall, place: Location, answer: tuple[int, bytes, bytes]
) -> tuple[int, bytes, bytes]:
    """The answer to a DEL that the daemon could not carry out: the error if the request itself is wrong, else success,
    and the deletion is queued. A runtime would only repeat a failed DEL, and its pod would not end meanwhile.
    """
    from cni.plugin import delete_queue

    try:
        error = config.parse(answer[1])
    except UndecodableContent:
        error = {}
    if error.get("code") in delete_queue.PERMANENT_ERRORS:
        return answer
    return queue_or_fail(
        call, place, f"the overlay daemon could not delete it now: {error.get('msg', 'no reason given')}"
    )


def _remove_link(key: tuple[str, str, str]) -> str:
    """Remove the container's link at once, before the queued deletion is carried out; returns the result for stderr.

    The alias of the link names its owner: the name is a hash that another attachment may share. A link without an alias
    was created by an older version; a daemon of this version sets the alias when it starts. An overlay daemon runs in
    the same network namespace as its plugins.
    """
    from cni import naming
    from cni.host import links, netlink

    name = naming.attachment_veth(*key)
    try:
        with netlink.Netlink(timeout=1.0) as socket:
            link = links.find_link(socket, name)
            if link is not None and link.alias.startswith(naming.OWNER) and link.alias != naming.owner_mark(*key):
                return f"the link {name} is another attachment's and stays"
            links.remove_link(socket, name)
    except OSError as error:
        return f"its link {name} could not be removed: {error.strerror or error}"
    return f"its link {name} is gone"


def foreign(call: PluginCall, place: Location) -> tuple[int, bytes, bytes]:
    """Serve the call in this process, in front of ZLayer's overlayd at `place.foreign`.

    Raises InvalidConfig if this build has no such client.
    """
    from cni import unpack

    validate(call)
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


def validate(call: PluginCall) -> None:
    """Raise the CniError that any daemon would answer.

    Uses the validation of the verbs if it can be imported. The single file has only the checks below, which need no
    import; the daemon that it starts makes the other checks.
    """
    try:
        from cni.netconf.request import read_request
    except ImportError:
        _validate_without_imports(call)
    else:
        read_request({key.decode(): os.fsdecode(value) for key, value in call.env.items()}, call.stdin)


def _validate_without_imports(call: PluginCall) -> None:
    """Checks in the order of the reference: missing variables, the configuration, values, the verb."""
    missing = [name for name in _REQUIRED.get(call.command, ()) if not call.env.get(name)]
    if missing:
        raise InvalidEnvironment(f"required env variables [{b','.join(missing).decode()}] missing")
    network = _network(call.stdin)
    if not _is_plain(network.encode("utf-8", "surrogatepass")):
        raise InvalidConfig("invalid characters found in network name", network)
    if call.command in (b"ADD", b"CHECK", b"DEL"):
        _validate_attachment(call.env[b"CNI_CONTAINERID"], call.env[b"CNI_IFNAME"])
    if call.command not in _VERBS:
        raise InvalidEnvironment(f"unknown CNI_COMMAND: {_text(call.command)}")
    _validate_version(call)


def _validate_attachment(container: bytes, ifname: bytes) -> None:
    if not _is_plain(container):
        raise InvalidEnvironment("CNI_CONTAINERID: invalid characters in containerID", _text(container))
    if len(ifname) > 15:
        raise InvalidEnvironment("CNI_IFNAME: interface name is too long", f"{_text(ifname)}: at most 15 bytes")
    if ifname in (b".", b".."):
        raise InvalidEnvironment("CNI_IFNAME: interface name is . or ..", _text(ifname))
    if any(char in "/:" or char.isspace() for char in _text(ifname)):
        msg = "CNI_IFNAME: interface name contains / or : or whitespace characters"
        raise InvalidEnvironment(msg, _text(ifname))


def _validate_version(call: PluginCall) -> None:
    from cni.errors import IncompatibleVersion

    version, verb = config.version(call.stdin), _text(call.command)
    ours = " ".join(f'"{supported}"' for supported in SUPPORTED_VERSIONS)
    details = f'config is "{version}", plugin supports [{ours}]'
    since = _SINCE.get(call.command)
    if since and _numbers(version) < _numbers(since):
        needed = f'config is "{version}", {verb} needs {since} or later'
        raise IncompatibleVersion(f"config version does not allow {verb}", needed)
    if since and _numbers(version) > _numbers(SUPPORTED_VERSIONS[-1]):
        raise IncompatibleVersion(f"plugin version does not allow {verb}", details)
    if version not in SUPPORTED_VERSIONS:
        raise IncompatibleVersion("incompatible CNI versions", details)


def _numbers(version: str) -> list[int]:
    """The numbers of a version; missing ones are 0. Raises UndecodableContent."""
    parts = version.split(".")
    if len(parts) > 3 or not all(part.isascii() and part.isdigit() and len(part) < 10 for part in parts):
        raise UndecodableContent(f'cniVersion: cannot make sense of "{version}"')
    return [*map(int, parts), 0, 0][:3]


def attachment(call: PluginCall) -> tuple[str, str, str]:
    """(network, container, interface) of the attachment to delete."""
    return _network(call.stdin), _text(call.env[b"CNI_CONTAINERID"]), _text(call.env[b"CNI_IFNAME"])


def _network(stdin: bytes) -> str:
    name = config.parse(stdin).get("name")
    if name is None or name == "":
        raise InvalidConfig("missing network name")
    if not isinstance(name, str):
        raise UndecodableContent("error unmarshall network config: name: expected a string")
    return name


def _is_plain(value: bytes) -> bool:
    """Whether all of `value` matches `[a-zA-Z0-9][a-zA-Z0-9_.-]*`."""
    return value[:1].isalnum() and not value.strip(_NAME_CHARACTERS + b"_.-")


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")


def _queued_body(call: PluginCall) -> bytes:
    """The request to queue: without a descriptor, because the path may name another container's namespace later."""
    keys = {plugin_protocol.ATTEMPT: call.attempt}
    keys[plugin_protocol.NETNS_ERROR] = errno.errorcode[errno.ESTALE].encode()
    keys[plugin_protocol.QUEUED_NS] = b"%d" % time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    try:
        keys[plugin_protocol.BOOT_ID] = proc.boot_id().encode()
    except OSError:
        pass  # A run directory on a tmpfs does not survive a reboot anyway.
    return client.request(call.env, keys, call.stdin)
