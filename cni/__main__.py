"""The entry point: selects the plugin, the daemon or the operator's tool, and imports only the selected one.

| how it is started                             | what runs                                 |
| --------------------------------------------- | ----------------------------------------- |
| `CNI_COMMAND` set and not empty, no arguments | the plugin: one verb, then exit           |
| `zlayer-cni overlayd [...]`                   | the daemon                                |
| `relay-forwarder SOCKET`, by the daemon       | the forwarder for relays in user space    |
| `zlayer-cni COMMAND [...]`                    | the operator's tool                       |
| no arguments, no `CNI_COMMAND`                | a short description on stderr, exit 0     |

Every import in this module is on the path of a plugin call. The module imports only what the interpreter has already
loaded: `posix` instead of `os`, because importing `os` takes a tenth of a call.
"""

import posix
import sys


def main(argv: list[str] | None = None) -> int:
    """Run what the environment and `argv` (without the program's name) select; returns the exit code."""
    argv_given = sys.argv[1:] if argv is None else argv
    if not argv_given:
        if posix.environ.get(b"CNI_COMMAND"):
            from cni.plugin import main as plugin

            return plugin.main()
        return _greet()
    if argv_given == ["--version"]:
        return _version()
    if getattr(sys, "frozen", False):
        from cni import unpack

        if unpack.is_single_file():
            return unpack.exec_program(argv_given)
        unpack.forget_start()
    from cni import inherited

    inherited.reset()
    return _run(argv_given)


def _run(argv: list[str]) -> int:
    """Run the role that is no plugin."""
    if argv[0] == "overlayd":
        from cni.daemon.main import main as daemon

        return daemon(argv[1:])
    if argv[0] == "relay-forwarder":
        from cni.daemon.nat.forwarder import main as forwarder

        return forwarder(argv[1:])
    from cni.cli.main import main as tool

    return tool(argv)


def _greet() -> int:
    """Print a description for a start by hand. The CNI plugin skeleton does the same for an empty verb."""
    from cni import __version__
    from cni.plugin import client
    from cni.plugin import main as plugin

    text = (
        f"zlayer-cni {__version__}: a CNI plugin that attaches containers to a WireGuard overlay, and its daemon\n"
        f"CNI protocol versions supported: {', '.join(client.SUPPORTED_VERSIONS)}\n"
        "A container runtime runs it with CNI_COMMAND set; people run `zlayer-cni --help`.\n"
    )
    plugin.write_all(2, text.encode())
    return 0


def _version() -> int:
    from cni import __version__
    from cni.plugin import main as plugin

    about = "CNI plugin, overlay daemon and operator's tool for containers on a WireGuard overlay"
    text = f"zlayer-cni {__version__}\n{about}\n"
    return 0 if plugin.write_all(1, text.encode()) else 1


if __name__ == "__main__":
    code = main()
    if not sys.argv[1:]:
        # The plugin writes to the descriptors directly, so nothing is left to flush. Finalising the interpreter takes
        # a tenth of a call.
        posix._exit(code)
    sys.exit(code)
