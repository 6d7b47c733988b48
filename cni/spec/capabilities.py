"""What the runtime adds to a configuration for one call: `runtimeConfig` and `args` (CNI's CONVENTIONS.md).

Only what we implement is read, with its types checked; the values of what has several sources are judged in
`cni.spec.intent`, where it is known which source wins.
"""

import msgspec

from cni.errors import InvalidConfig
from cni.spec.decode import Fields, as_object, fold, texts_of, wrong_type
from cni.spec.types import DNS
from cni.spec.values import read_runtime_dns

ANNOTATIONS = "io.kubernetes.cri.pod-annotations"

IMPLEMENTED = ("ips", "mac", "dns", "aliases", ANNOTATIONS)
"""The capabilities a configuration may declare for us, spelled as the runtimes do."""

WITHOUT_EFFECT = ("portMappings", "bandwidth", "ipRanges", "deviceID", "infinibandGUID")
"""Capabilities for other plugins of a chain: if one arrives here, what was asked for is not done by us."""

RUNTIME_KEYS = fold(*IMPLEMENTED, *WITHOUT_EFFECT, "cgroupPath", "io.kubernetes.cri.pod-labels")


class RuntimeConfig(msgspec.Struct, frozen=True):
    """`runtimeConfig`; an `ips` of None was not sent, while () asks for nothing in particular."""

    ips: tuple[str, ...] | None = None
    mac: str | None = None
    dns: DNS = DNS()
    annotations: dict[str, str] = {}
    aliases: tuple[str, ...] = ()
    without_effect: tuple[str, ...] = ()


class ConventionArgs(msgspec.Struct, frozen=True):
    """`args.cni`."""

    ips: tuple[str, ...] | None = None
    mac: str | None = None
    labels: dict[str, str] = {}


def read_runtime_config(fields: Fields, network: str) -> RuntimeConfig:
    """`runtimeConfig` for `network`; raises `UndecodableContent` for a wrong type, `InvalidConfig` for wrong DNS."""
    dns = fields.inner("dns")
    return RuntimeConfig(
        ips=fields.texts("ips"),
        mac=fields.text("mac"),
        dns=read_runtime_dns(dns) if dns else DNS(),
        annotations=fields.mapping(ANNOTATIONS),
        aliases=_aliases(fields, network),
        without_effect=tuple(key for key in WITHOUT_EFFECT if fields.get(key)),
    )


def read_args(fields: Fields) -> ConventionArgs:
    """`args`, of which we know the member `cni`; raises `UndecodableContent` for a wrong type."""
    cni = fields.inner("cni")
    if cni is None:
        return ConventionArgs()
    return ConventionArgs(ips=cni.texts("ips"), mac=cni.text("mac"), labels=_labels(cni))


def _aliases(fields: Fields, network: str) -> tuple[str, ...]:
    """The conventions say a list; CRI-O and podman send lists by network."""
    value = fields.get("aliases")
    if isinstance(value, dict):
        by_network = Fields(value, fields.where("aliases"))
        # The keys are networks' names, so letter case counts here.
        found = by_network.raw.get(network)
        if found is None:
            return ()
        if not isinstance(found, list):
            raise wrong_type(by_network.where(network), "a list", found)
        return texts_of(found, by_network.where(network))
    return fields.texts("aliases") or ()


def _labels(fields: Fields) -> dict[str, str]:
    """The conventions say a list of {key, value}; a plain object is read too."""
    value = fields.get("labels")
    if isinstance(value, dict):
        return fields.mapping("labels")
    found = {}
    for index, item in enumerate(fields.items("labels") or []):
        where = f"{fields.where('labels')}[{index}]"
        label = as_object(item, where)
        if label is None:
            raise wrong_type(where, "an object", item)
        key = label.text("key")
        if not key:
            raise InvalidConfig(f"{where}: a label needs a key")
        found[key] = label.text("value") or ""
    return found
