"""The CNI_* variables of one call (CNI 1.1.0, section 2, and the reference's `pkg/skel` and `pkg/utils`).

Reading and validation are separate steps, because the configuration is validated in between: first missing variables,
then the configuration on standard input, then the values, then the verb.
"""

from collections.abc import Iterable, Mapping

import msgspec

from cni.errors import InvalidEnvironment

ALNUM = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789")
NAME_CHARACTERS = "".join(sorted(ALNUM)) + "_.-"

ATTACHMENT = ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME")
REQUIRED = {
    "ADD": ATTACHMENT,
    "CHECK": ATTACHMENT,
    "DEL": ("CNI_CONTAINERID", "CNI_IFNAME"),
    "GC": ("CNI_PATH",),
}
"""The variables that the specification requires for each verb, in the order of its table.

The reference requires CNI_PATH for every verb but VERSION. The specification requires it for GC only: it names the
directories of delegated plugins, and zlayer-cni delegates to none.
"""

VERBS = ("ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION")
IFNAME_LIMIT = 15  # bytes: IFNAMSIZ without the closing zero

KNOWN_ARGS = frozenset(
    {
        "IgnoreUnknown",
        "IP",
        "MAC",
        "K8S_POD_NAMESPACE",
        "K8S_POD_NAME",
        "K8S_POD_INFRA_CONTAINER_ID",
        "K8S_POD_UID",
    }
)


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """One call by a runtime, as read from its environment."""

    command: str
    container_id: str = ""
    netns: str = ""  # a path, as given: results repeat it to the letter
    ifname: str = ""
    args: dict[str, str] = {}  # the well-formed pairs of CNI_ARGS; `check_args` judges the rest
    raw_args: str = ""
    path: str = ""
    override: bool = False  # CNI_NETNS_OVERRIDE: the plugin's own namespace is a fair target


def parse_call(env: Mapping[str, str]) -> Call:
    """The call in `env`; raises `InvalidEnvironment` naming every required variable missing or empty."""
    command = env.get("CNI_COMMAND", "")
    required = REQUIRED.get(command, ()) if command else ("CNI_COMMAND",)
    missing = [name for name in required if not env.get(name)]
    if missing:
        raise InvalidEnvironment(f"required env variables [{','.join(missing)}] missing")
    raw_args = env.get("CNI_ARGS", "")
    return Call(
        command=command,
        container_id=env.get("CNI_CONTAINERID", ""),
        netns=env.get("CNI_NETNS", ""),
        ifname=env.get("CNI_IFNAME", ""),
        args=dict(pair.split("=") for pair in raw_args.split(";") if pair.count("=") == 1),
        raw_args=raw_args,
        path=env.get("CNI_PATH", ""),
        override=env.get("CNI_NETNS_OVERRIDE", "").upper() in ("TRUE", "1"),
    )


def validate_call(call: Call) -> None:
    """Validate the values of the variables that the verb requires, then the verb; raises `InvalidEnvironment`."""
    required = REQUIRED.get(call.command, ())
    if "CNI_CONTAINERID" in required and not is_plain_name(call.container_id):
        raise InvalidEnvironment("CNI_CONTAINERID: invalid characters in containerID", call.container_id)
    if "CNI_IFNAME" in required:
        check_ifname(call.ifname)
        if call.command == "ADD":
            check_new_ifname(call.ifname)
    if "CNI_NETNS" in required and not is_utf8(call.netns):
        raise InvalidEnvironment("CNI_NETNS: the path is not UTF-8", ascii(call.netns))
    if call.command not in VERBS:
        raise InvalidEnvironment(f"unknown CNI_COMMAND: {call.command}")


def check_ifname(name: str) -> None:
    """Refuse interface names that the kernel refuses, with the reference's error texts."""
    if len(name.encode(errors="surrogateescape")) > IFNAME_LIMIT:
        details = f"at most {IFNAME_LIMIT} bytes: {name}"
        raise InvalidEnvironment("CNI_IFNAME: interface name is too long", details)
    if name in (".", ".."):
        raise InvalidEnvironment("CNI_IFNAME: interface name is . or ..", name)
    if any(char in "/:" or char.isspace() for char in name):
        raise InvalidEnvironment("CNI_IFNAME: interface name contains / or : or whitespace characters", ascii(name))
    if not is_utf8(name):
        raise InvalidEnvironment("CNI_IFNAME: interface name is not UTF-8", ascii(name))


def check_new_ifname(name: str) -> None:
    """Refuse names with a special meaning to the kernel, for a new interface.

    With `%d` the kernel chooses a number, so the interface would have another name than the runtime expects; `all` and
    `default` are not interfaces in /proc/sys/net/*/conf. The other verbs accept them: no such interface exists.
    """
    if "%" in name or name in ("all", "default"):
        raise InvalidEnvironment("CNI_IFNAME: interface name has a meaning of its own to the kernel", name)


def check_args(call: Call, used: Iterable[str] = ()) -> None:
    """Validate CNI_ARGS: `K=V;K=V`, with known keys only unless `IgnoreUnknown` is set.

    `used` are keys besides KNOWN_ARGS that the configuration uses. Raises `InvalidEnvironment`; not called for DEL.
    """
    if not call.raw_args:
        return
    pairs = call.raw_args.split(";")
    for pair in pairs:
        if pair.count("=") != 1:
            raise InvalidEnvironment(f'CNI_ARGS: ARGS: invalid pair "{pair}"')
    ignore = call.args.get("IgnoreUnknown", "0").lower()
    if ignore not in ("0", "1", "true", "false"):
        raise InvalidEnvironment(f'CNI_ARGS: ARGS: IgnoreUnknown must be 0, 1, true or false, not "{ignore}"')
    meant = KNOWN_ARGS.union(used)
    unknown = [pair for pair in pairs if pair.split("=")[0] not in meant]
    for pair in pairs:
        if pair not in unknown and not is_utf8(pair):
            raise InvalidEnvironment("CNI_ARGS: ARGS: a value is not UTF-8", ascii(pair))
    if unknown and ignore in ("0", "false"):
        listed = " ".join(f'"{pair}"' for pair in unknown)
        raise InvalidEnvironment(f"CNI_ARGS: ARGS: unknown args [{listed}]")


def is_plain_name(text: str) -> bool:
    """Whether `text` is a valid container id or network name: all of it matches `[a-zA-Z0-9][a-zA-Z0-9_.-]*`."""
    return text[:1] in ALNUM and not text.strip(NAME_CHARACTERS)


def is_utf8(text: str) -> bool:
    """Whether `text` was valid UTF-8; Python represents other bytes of the environment as surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
