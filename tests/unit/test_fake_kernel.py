"""The fake kernel has the methods of the real one and of the fence's parts, with the same parameters."""

import inspect

import pytest

from cni.daemon.fence.drop_rules import DropRules
from cni.daemon.fence.enforcement import FenceEnforcement
from cni.daemon.fence.members import FenceMembers
from cni.daemon.fence.other_firewalls import OtherFirewalls
from cni.daemon.fence.status import FenceStatus
from cni.host.kernel import Kernel
from tests.fakes.kernel import FakeKernel


def methods(cls):
    return {n: m for n, m in inspect.getmembers(cls, inspect.isfunction) if not n.startswith("_")}


@pytest.mark.parametrize("real", [Kernel, FenceEnforcement, FenceMembers, FenceStatus, DropRules, OtherFirewalls])
def test_the_fake_has_the_methods_of_the_real_one(real):
    fake = methods(FakeKernel)
    missing = {name for name in methods(real) if name not in fake}
    assert missing == set()
    for name, method in methods(real).items():
        assert list(inspect.signature(method).parameters) == list(inspect.signature(fake[name]).parameters), name
