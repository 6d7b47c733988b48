"""One node's service layer on the fake kernel: the daemon without its doors, restarted at will on the same records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cni import naming
from cni.daemon.attachments.attach import AttachRequest
from cni.daemon.attachments.overlay import OverlayService
from cni.daemon.model.records import Attachment
from cni.daemon.reconcile.node import Reconciler
from cni.daemon.settings import Settings
from cni.daemon.state.state import State
from cni.daemon.state.store import Store
from tests.fakes.kernel import FakeKernel

NET = "blue"
NOTHING: dict[str, list[Any]] = {"records": [], "veths": [], "inside": [], "admitted": [], "held": []}


class Node:
    """A daemon's state and services over a `FakeKernel`, with its records at `path`."""

    def __init__(self, path: Path, **settings: Any) -> None:
        self.path = path
        self.settings = Settings(**{"cluster_cidr": "10.9.0.0/23", "address_cooldown": 0.0, **settings})
        self.kernel = FakeKernel()
        self.store: Store | None = None
        self.restart()

    def restart(self, **settings: Any) -> None:
        """Another daemon on the same records and the same kernel, started as main() starts one."""
        if self.store is not None:
            self.store.close()
        self.settings = Settings(**{k: settings.get(k, getattr(self.settings, k)) for k in Settings.__struct_fields__})
        self.kernel.heal()
        self.store = Store(self.path, "boot")
        self.state = State(self.store, self.settings)
        self.service = OverlayService(self.settings, self.state, self.kernel, self.kernel)  # type: ignore[arg-type]
        self.keeper = Reconciler(self.service, alone=lambda: True)
        self.service.start()
        self.kernel.log.clear()

    def request(self, container: str = "c1", fd: int = 11, ifname: str = "eth0", **more: Any) -> AttachRequest:
        """What the service would ask of the attacher for this container."""
        space = self.kernel.space(fd)
        return AttachRequest(
            **{
                "network": NET,
                "container": container,
                "ifname": ifname,
                "netns_fd": fd,
                "netns": space.id,
                "sandbox": f"/run/netns/{fd}",
                "service": "web",
                "mode": "auto",
                "host_veth": naming.attachment_veth(NET, container, ifname),
                "forbidden": frozenset({self.kernel.own}),
                **more,
            }
        )

    def add(self, *args: Any, **kwargs: Any) -> Attachment:
        return self.service.attacher.attach(self.request(*args, **kwargs))

    def delete(self, container: str = "c1", ifname: str = "eth0") -> None:
        self.service.detach(NET, container, ifname)

    def ips(self) -> list[str]:
        """The addresses of all attachments."""
        return sorted(held.ip for each in self.state.snapshot() for held in each.addresses)

    def left(self) -> dict[str, list[Any]]:
        """What there is of any attachment: records, host ends, container ends, admitted ports, held addresses."""
        return {
            "records": [each.key for each in self.state.snapshot()],
            "veths": sorted(self.kernel.veths()),
            "inside": [name for space in self.kernel.spaces.values() for name in space.links],
            "admitted": sorted(self.kernel.admitted),
            "held": self.ips(),
        }

    def close(self) -> None:
        if self.store is not None:
            self.store.close()
