"""ZLayer's overlay protocol: the types, the codec, and a client that drives an overlayd.

Most programs need `from cni.overlay import OverlayManager` alone; the rest is in the modules. The plugin imports this
package in every call, so a module is imported when a name of it is first used.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni.overlay.manager import OverlayManager

__all__ = ["OverlayManager"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from cni.overlay import manager

    return getattr(manager, name)
