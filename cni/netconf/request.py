"""One complete call: environment and standard input, validated in the order of the reference."""

from collections.abc import Mapping

from cni.errors import CniError
from cni.netconf.configuration import NetConf, decode_document, interpret
from cni.netconf.decode import Fields, decode_json
from cni.netconf.environment import Call, parse_call, validate_call
from cni.netconf.versions import NEWEST, OLDEST, check_version


def read_request(env: Mapping[str, str], stdin: bytes) -> tuple[Call, NetConf]:
    """The call and its configuration, for any verb but VERSION, which has no configuration.

    Missing variables come first, then the configuration's frame, the variables' values, the verb, the version,
    and our own keys last. Raises `InvalidEnvironment`, `UndecodableContent`, `InvalidConfig` or
    `IncompatibleVersion`.
    """
    call = parse_call(env)
    document = decode_document(stdin)
    validate_call(call)
    check_version(document.version, call.command)
    return call, interpret(document, call.command)


def version_of(stdin: bytes) -> str:
    """The `cniVersion` of the answer, also to an invalid call; our newest if the version cannot be read.

    May be an unsupported version: `render_error` handles it.
    """
    try:
        raw = decode_json(stdin)
        return (Fields(raw).text("cniVersion") or OLDEST) if isinstance(raw, dict) else NEWEST
    except CniError:
        return NEWEST
