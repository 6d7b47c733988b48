"""docs/protocol.md, 3.4: a row for each public name of ZLayer's client, held to the signatures and to what is sent.

The calls are made against the stateful fake; tests/safety/test_client.py makes the same calls on a real daemon.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cni import naming
from cni.overlay import manager as module
from cni.overlay.manager import OverlayManager
from tests.fakes.client_calls import CALLS, KEY, PEER, SLICE, Stage, set_up
from tests.unit.fake_overlayd import FakeOverlayd
from tests.unit.test_protocol_table import Row, code, table

NAMES = """
make_interface_name resolve_isolation_network new with_slice with_overlay_port with_nat_config with_relay_credential
with_uapi_sock_dir with_data_dir with_local_node_id with_host_adapter_mandatory set_local_node_id set_local_wg_pubkey
service_count nat_enabled nat_config start_nat_traversal nat_maintenance_tick nat_status_snapshot set_dns_config
with_dns_config dns_server_addr dns_domain setup_global_overlay setup_service_overlay attach_container
attach_container_guest detach_container_guest write_scoped_resolver remove_scoped_resolver attach_container_host_shared
detach_container_host_shared attach_container_hcn detach_container_hcn detach_container prune_orphan_bridges
service_bridge_name teardown_service_overlay cleanup node_ip deployment global_interface overlay_port
has_global_transport service_bridge_count add_global_peer add_global_peer_with_candidates add_service_peer
remove_service_peer overlay_cidr slice_cidr cluster_cidr persist_ipam_state restore_ipam_state ip_alloc_stats
""".split()  # noqa: SIM905
"""The public functions of ZLayer's overlay_manager, in its order."""

ROWS = table("name")
OVERLAY = Path(module.__file__).parent


def named(name: str) -> Callable[..., Any]:
    """What a program gets under that name."""
    found: Callable[..., Any] = getattr(module if name in module.__all__ else OverlayManager, name)
    return found


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[tuple[FakeOverlayd, Stage]]:
    fake = FakeOverlayd(tmp_path / "o.sock", "zlayer-cni/1.0", windows=False).start()
    manager = OverlayManager("prod", "42", slice_cidr=SLICE, socket=fake.path)
    set_up(manager)
    manager.add_global_peer(PEER)  # and with it the question which daemon this is
    manager.remove_global_peer(KEY)
    pids = iter(range(4242, 5000))
    (tmp_path / "empty").mkdir()
    yield fake, Stage(manager, lambda: next(pids), tmp_path / "empty", naming.service_bridge("prod", "42", "web"))
    manager.close()
    fake.stop()


def test_there_is_a_row_and_a_call_for_every_name() -> None:
    assert len(NAMES) == 55
    assert list(ROWS) == NAMES
    assert sorted(CALLS) == sorted(NAMES)


@pytest.mark.parametrize(("name", "row"), ROWS.items(), ids=ROWS)
def test_the_parameters_are_those_of_the_row(name: str, row: Row) -> None:
    parameters = list(inspect.signature(named(name)).parameters.values())
    written = [p.name + "=" * (p.default is not p.empty) for p in parameters if p.name not in ("self", "cls")]
    assert ", ".join(written) == "".join(code(row["parameters"]))


@pytest.mark.parametrize("name", NAMES)
def test_every_name_is_a_function_with_a_docstring(name: str) -> None:
    """Accessors are methods, as in ZLayer's client."""
    assert inspect.isfunction(named(name)) or inspect.ismethod(named(name))
    assert named(name).__doc__


@pytest.mark.parametrize("name", NAMES)
def test_the_call_sends_what_the_row_says(stage: tuple[FakeOverlayd, Stage], name: str) -> None:
    fake, made = stage
    CALLS[name].prepare(made)
    fake.ops()
    CALLS[name].run(made)
    sent = fake.ops()
    # What `check` asks afterwards is not the call's own.
    expected = code(ROWS[name]["sends"])
    assert sent[: len(expected)] == expected
    assert all(op == "status" for op in sent[len(expected) :]), sent
    CALLS[name].undo(made)


def test_the_manager_is_composed() -> None:
    """It inherits from no part, and no method of it or of a part stores a parameter outside of a constructor."""
    assert OverlayManager.__bases__ == (object,)
    for path in sorted(OVERLAY.glob("*.py")):
        for method in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(method, ast.FunctionDef) and method.name not in ("__init__", "__post_init__"):
                names = {argument.arg for argument in (*method.args.args, *method.args.kwonlyargs)}
                stored = [
                    ast.unparse(each)
                    for each in ast.walk(method)
                    if isinstance(each, ast.Assign)
                    and isinstance(each.value, ast.Name)
                    and each.value.id in names
                    and any(isinstance(target, ast.Attribute) for target in each.targets)
                ]
                assert stored == [], f"{path.name}: {method.name}"
