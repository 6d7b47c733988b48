"""One node's service layer on the fake kernel: the daemon without its doors, restarted at will on the same records."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from cni import naming
from cni.daemon import parts
from cni.daemon.attachments.request import AttachRequest
from cni.daemon.mesh.mesh import Mesh
from cni.daemon.model.records import Attachment
from cni.daemon.operations import OperationContext
from cni.daemon.parts_fence import Fence
from cni.daemon.reconcile.node import Reconciler
from cni.daemon.settings import Settings
from cni.daemon.state.store import Store
from cni.host.kernel import Kernel
from cni.host.worker import Crew
from tests.fakes.kernel import FakeKernel
from tests.fakes.mesh import FakeMesh

NET = "blue"
NOTHING: dict[str, list[Any]] = {"records": [], "veths": [], "inside": [], "admitted": [], "held": []}


class Node:
    """A daemon's state and services over a `FakeKernel`, with its records at `path`."""

    def __init__(self, path: Path, **settings: Any) -> None:
        self.path = path
        self.settings = Settings(
            **{"cluster_cidr": "10.9.0.0/23", "address_cooldown": 0.0, "data_dir": str(path.parent), **settings}
        )
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
        base = parts.build_base(self.settings, self.store, cast(Kernel, self.kernel), Crew(), lambda: True)
        fake = cast(Any, self.kernel)
        fence = Fence(enforcement=fake, members=fake, status=fake, drop_rules=fake, other_firewalls=fake)
        self.base = replace(base, fence=fence)
        self.parts = parts.build_node(self.base, None, lambda: ((), ()))
        self.state, self.overlay, self.attacher = self.base.state, self.parts.overlay, self.parts.attacher
        self.segments, self.release, self.data_path = self.parts.segments, self.parts.release, self.parts.data_path
        self.keeper = self.reconciler(lambda: True)
        self.data_path.start()
        self.kernel.log.clear()

    def reconciler(self, alone: Callable[[], bool]) -> Reconciler:
        """A reconciler of this node, not started."""
        return Reconciler(
            state=self.state,
            kernel=self.base.kernel,
            fence=self.base.fence.enforcement,
            segments=self.segments,
            release=self.release,
            attacher=self.attacher,
            conditions=self.parts.conditions,
            board=self.base.board,
            events=self.base.events,
            crew=self.base.crew,
            alone=alone,
        )

    def operations(self) -> OperationContext:
        """The context of the overlay socket's operations, without WireGuard devices."""
        mesh = cast(Mesh, FakeMesh(self.base.registry))
        traversal = parts.build_traversal(self.base, parts.build_mesh(self.base))
        return parts.build_operations(self.base, self.parts, mesh, traversal, lambda: ((), ()))

    def request(self, container: str = "c1", fd: int = 11, ifname: str = "eth0", **more: Any) -> AttachRequest:
        """The request that a socket would make for this container."""
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
        return self.attacher.attach(self.request(*args, **kwargs))

    def delete(self, container: str = "c1", ifname: str = "eth0") -> None:
        self.overlay.detach(NET, container, ifname)

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
