"""Chooses the face: the runtime's plugin, the daemon, or the operator's tool; imports only the one that is asked for.

| how it is started                           | what it is                                  |
| ------------------------------------------- | ------------------------------------------- |
| `CNI_COMMAND` set and not empty, no words   | the plugin: one verb, then gone             |
| `zlayer-cni overlayd [...]`                 | the daemon                                  |
| `zlayer-cni WORD [...]`                     | the operator's tool                         |
| nothing                                     | a greeting on stderr, exit 0                |

A plugin call pays for every import here, so there is nothing but what the interpreter has loaded anyway: `posix`, and
not `os`, which adds to it what no call needs and takes a tenth of its time.
"""

import posix
import sys


def main(argv: list[str] | None = None) -> int:
    """Run the face that the environment and `argv` (without the program's name) ask for; returns the exit code."""
    words = sys.argv[1:] if argv is None else argv
    if not words:
        if posix.environ.get(b"CNI_COMMAND"):
            from cni.plugin import main as plugin

            return plugin.main()
        return _greet()
    if words == ["--version"]:
        return _version()
    if getattr(sys, "frozen", False):
        from cni import unpack

        if unpack.is_single_file():
            return unpack.become_program(words)
        unpack.forget_start()
    if words[0] == "overlayd":
        from cni.daemon.main import main as daemon

        return daemon(words[1:])
    from cni.cli.main import main as tool

    return tool(words)


def _greet() -> int:
    """What this is, for someone who ran it by hand (conformance: the skeleton does the same for an empty verb)."""
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
        # The plugin writes to the descriptors itself: nothing is left to flush, and finalising the interpreter is
        # a tenth of what a call costs.
        posix._exit(code)
    sys.exit(code)
