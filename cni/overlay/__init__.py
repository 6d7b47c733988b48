"""ZLayer's overlay protocol: the types, the codec, and a client that drives an overlayd.

`from cni.overlay import OverlayManager` is all that most programs need; the rest is in the modules. The plugin comes
by here in every call, so nothing is imported before it is asked for.
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
