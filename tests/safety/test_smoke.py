"""The harness of this part: a node that is well says so."""

from collections.abc import Callable

from tests.mesh.fleet import Node


def test_a_good_node_has_no_problem(frozen: Callable[..., Node]) -> None:
    node = frozen(1)
    node.container("web")
    status = node.tool("status")
    assert status["problems"] == []
    assert status["problem_details"] == []
    assert node.cli("status", "--run-dir", str(node.directory / "run")).returncode == 0
