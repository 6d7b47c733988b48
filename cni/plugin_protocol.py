"""The protocol of the CNI socket, between a daemon and the plugin or the operator's tool (docs/cni-socket.md).

Every plugin call imports this module, so it holds constants alone and imports nothing. The names on the wire never
change: plugin and daemon may be of different versions.
"""

COMES_BACK = "comes-back"
"""A file in the run directory, of a daemon in a container that was told to end: another one takes its place."""
SOCKET_NAME = "cni.sock"
"""The socket's name in the run directory."""
MAGIC = b"zcni1"
"""The first bytes of a request's body."""
LARGEST = 8 << 20
"""The largest body of a request or an answer, in bytes."""
CONFIRMATION = b"+"
"""The byte with which a plugin confirms that its runtime has the result."""

VARIABLES = (
    b"CNI_COMMAND",
    b"CNI_CONTAINERID",
    b"CNI_NETNS",
    b"CNI_IFNAME",
    b"CNI_ARGS",
    b"CNI_PATH",
    b"CNI_NETNS_OVERRIDE",
)
"""The variables of the plugin's environment that a request passes on."""

# Keys that the plugin adds to them.
ATTEMPT = "ATTEMPT"
CONFIRMS = "TELLS"
RUNTIME_PROCESS = "WHOSE"
EXTRACTION = "UNPACKED"
LAUNCHER = "LAUNCHER"
OWN_NETNS = "OWN_NETNS"
NETNS_FD = "NETNS_FD"
NETNS_ERROR = "NETNS_ERROR"

# Keys of a queued deletion (cni/plugin/delete_queue.py).
QUEUED_NS = "QUEUED_NS"
BOOT_ID = "BOOT_ID"

# Keys of a request of the tool: which request, and its arguments.
TOOL = "TOOL"
SRC = "SRC"
DST = "DST"
PORT = "PORT"
DRY_RUN = "DRY_RUN"
PEER = "PEER"
NEW_LOG_LEVEL = "NEW_LOG_LEVEL"
TOKEN = "TOKEN"
READER = "READER"
CURSOR = "CURSOR"
