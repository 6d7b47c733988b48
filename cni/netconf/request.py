"""One call, whole: environment and standard input, judged in the order in which the reference judges them."""

from collections.abc import Mapping

from cni.errors import CniError
from cni.netconf.configuration import NetConf, decode_document, interpret
from cni.netconf.decode import Fields, decode_json
from cni.netconf.environment import Call, parse_call, validate_call
from cni.netconf.versions import NEWEST, OLDEST, check_version


def read_request(env: Mapping[str, str], stdin: bytes) -> tuple[Call, NetConf]:
    """The call and its configuration, for any verb but VERSION, which has no configuration to judge.

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
    """The `cniVersion` to answer in, whatever else is wrong; our newest if it cannot be told.

    May be a version we do not speak: `render_error` knows what to do with it.
    """
    try:
        raw = decode_json(stdin)
        return (Fields(raw).text("cniVersion") or OLDEST) if isinstance(raw, dict) else NEWEST
    except CniError:
        return NEWEST
