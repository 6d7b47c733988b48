"""The keys that the runtime adds to a configuration for one call: `runtimeConfig` and `args` (CNI's CONVENTIONS.md).

Only implemented keys are read, with their types checked. Values with several sources are validated in
`cni.netconf.intent`, which decides on the source.
"""

import msgspec

from cni.errors import InvalidConfig
from cni.netconf.decode import Fields, as_object, fold, wrong_type
from cni.netconf.types import DNS
from cni.netconf.values import read_runtime_dns

ANNOTATIONS = "io.kubernetes.cri.pod-annotations"

ALIASES = "aliases"
IMPLEMENTED = ("ips", "mac", "dns", ALIASES, ANNOTATIONS)
"""The capabilities a configuration may declare for us, spelled as the runtimes do."""

_CHAINED = "chain its plugin"
WITHOUT_EFFECT = {
    "portMappings": _CHAINED,
    "bandwidth": _CHAINED,
    "ipRanges": _CHAINED,
    "deviceID": _CHAINED,
    "infinibandGUID": _CHAINED,
}
"""Capabilities that are not implemented, each with the reason its warning gives. Any value is accepted, unread."""

RUNTIME_KEYS = fold(*IMPLEMENTED, *WITHOUT_EFFECT, "cgroupPath", "io.kubernetes.cri.pod-labels")


class RuntimeConfig(msgspec.Struct, frozen=True):
    """`runtimeConfig`. `ips` is None if it was not sent, () if it requests no particular address."""

    ips: tuple[str, ...] | None = None
    mac: str | None = None
    dns: DNS = DNS()
    annotations: dict[str, str] = {}
    aliases: object = None  # unread: `aliases_of` takes what is of a known shape
    without_effect: tuple[str, ...] = ()


class ConventionArgs(msgspec.Struct, frozen=True):
    """`args.cni`."""

    ips: tuple[str, ...] | None = None
    mac: str | None = None
    labels: dict[str, str] = {}


def read_runtime_config(fields: Fields) -> RuntimeConfig:
    """`runtimeConfig`; raises `UndecodableContent` for a wrong type, `InvalidConfig` for wrong DNS."""
    dns = fields.inner("dns")
    return RuntimeConfig(
        ips=fields.texts("ips"),
        mac=fields.text("mac"),
        dns=read_runtime_dns(dns) if dns else DNS(),
        annotations=fields.mapping(ANNOTATIONS),
        aliases=fields.get(ALIASES) or None,
        without_effect=tuple(key for key in WITHOUT_EFFECT if fields.get(key)),
    )


def aliases_of(value: object, network: str) -> tuple[str, ...] | None:
    """The names in the capability `aliases`: a list, or lists by network, as podman sends them. None for another
    shape, which is no error, because runtimes differ."""
    if isinstance(value, dict):
        value = value.get(network, [])
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        return None
    return tuple(value)


def read_args(fields: Fields) -> ConventionArgs:
    """The member `cni` of `args`; raises `UndecodableContent` for a wrong type."""
    cni = fields.inner("cni")
    if cni is None:
        return ConventionArgs()
    return ConventionArgs(ips=cni.texts("ips"), mac=cni.text("mac"), labels=_labels(cni))


def _labels(fields: Fields) -> dict[str, str]:
    """The labels: a list of {key, value} by the conventions; a plain object is accepted too."""
    value = fields.get("labels")
    if isinstance(value, dict):
        return fields.mapping("labels")
    labels = {}
    for index, item in enumerate(fields.items("labels") or []):
        where = f"{fields.where('labels')}[{index}]"
        label = as_object(item, where)
        if label is None:
            raise wrong_type(where, "an object", item)
        key = label.text("key")
        if not key:
            raise InvalidConfig(f"{where}: a label needs a key")
        labels[key] = label.text("value") or ""
    return labels
