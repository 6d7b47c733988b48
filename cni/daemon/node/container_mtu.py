"""The MTU that a new container gets."""

from __future__ import annotations

from cni.daemon.model import sizes
from cni.daemon.state.state import State
from cni.host.kernel import Kernel


class ContainerMtu:
    """The MTU of one node's containers."""

    def __init__(self, state: State, kernel: Kernel, configured: int | None) -> None:
        """`configured`: the `mtu` of the YAML, in bytes; None to follow the underlay."""
        self._state, self._kernel, self._configured = state, kernel, configured

    def current(self) -> int:
        """The MTU in bytes: the YAML's, else what fits into a tunnel over the underlay."""
        return self._configured or sizes.inside(self._kernel.underlay_mtu(), 6 in self._state.versions())

    @property
    def is_fixed(self) -> bool:
        """Whether the YAML sets it."""
        return self._configured is not None
