"""The doctor's checks, over values: what is fine, what is not, and that whatever is not fine says what to do."""

import stat
from pathlib import Path

import msgspec
import pytest

from cni.cli import checks_install as installed
from cni.cli import checks_machine as machine
from cni.daemon.api import tool
from cni.daemon.model.records import Node
from cni.daemon.settings import Settings

ALL = sum(1 << number for _, number, _ in machine.CAPABILITIES)
CLUSTER = ["10.200.0.0/16", "fd00:200::/48"]


def level(*findings):
    """The worst of them; whatever is not ok must say what to do."""
    found = [each for some in findings for each in (some if isinstance(some, list) else [some])]
    assert all(each.fix for each in found if each.level == "fail")
    return next((name for name in ("fail", "warn", "ok") if name in {each.level for each in found}), "nothing")


@pytest.mark.parametrize(
    ("effective", "expected"),
    [(ALL, "ok"), ((1 << 41) - 1, "ok"), (ALL & ~(1 << 12), "fail"), (ALL & ~(1 << 19), "warn"), (0, "fail")],
)
def test_privileges(effective, expected):
    assert level(machine.privileges("the daemon", 0, effective)) == expected


def test_kernel_features():
    good = dict.fromkeys((*machine.LINKS, *machine.NFTABLES, *machine.OPTIONAL), "")
    assert level(machine.kernel(good)) == "ok"
    assert len(machine.kernel(good)) == len(good)
    (bad,) = [each for each in machine.kernel(good | {"veth": "Operation not supported"}) if each.level == "fail"]
    assert "veth" in bad.text
    assert "CONFIG_VETH" in bad.fix
    (feature,) = machine.OPTIONAL
    (lacking,) = [each for each in machine.kernel(good | {feature: "No such file"}) if each.level != "ok"]
    assert lacking.level == "warn"
    assert "CONFIG_NFT_BRIDGE_META" in lacking.fix
    assert machine.kernel({}) == []


@pytest.mark.parametrize(
    ("said", "engines", "expected"),
    [("", [], "ok"), ("no", ["wireguard-go"], "ok"), ("no", [], "warn"), (None, [], "nothing")],
)
def test_wireguard(said, engines, expected):
    assert level(machine.wireguard(said, engines)) == expected


@pytest.mark.parametrize(
    ("state", "expected"),
    [((False, False), "ok"), ((True, True), "ok"), ((True, False), "fail"), ((False, False, "locked"), "warn")],
)
def test_forward_policy(state, expected):
    assert level(machine.forward_policy(*state)) == expected


def test_foreign_chains():
    assert level(machine.foreign_chains([], [])) == "ok"
    assert level(machine.foreign_chains([], ["inet x in"])) == "warn"
    assert level(machine.foreign_chains(["the nftables chain inet x y drops"], ["inet x in"])) == "fail"


def test_rules_that_drop_on_a_condition_are_named_and_the_rest_counted():
    assert machine.conditional_drops([]) == []
    rules = [f"iptables -A DOCKER-USER -d 192.0.2.{n}/32 -j DROP" for n in range(20)]
    told = machine.conditional_drops(rules)
    assert level(told) == "warn"
    assert rules[0] in told[0].text
    assert "12 more rules" in told[-1].text


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["-P INPUT ACCEPT"], "ok"),
        (["-P INPUT DROP", "-A INPUT -i lo -j ACCEPT"], "warn"),
        (
            ["-P INPUT ACCEPT", "-A INPUT -i lo -j ACCEPT", "-A INPUT -j REJECT --reject-with icmp-host-prohibited"],
            "warn",
        ),
        (["-P INPUT ACCEPT", "-A INPUT -j DROP", "-A INPUT -i lo -j ACCEPT"], "ok"),
        ([], "ok"),
    ],
)
def test_input_policy(lines, expected):
    assert level(machine.input_policy({"iptables": lines})) == expected


@pytest.mark.parametrize(
    ("chain", "name"),
    [
        (("inet", "firewalld", "filter_FWD"), "firewalld"),
        (("ip", "filter", "ufw-user-input"), "ufw"),
        (("ip", "filter", "DOCKER-USER"), "docker"),
        (("ip", "nat", "KUBE-SERVICES"), "kube-proxy"),
    ],
)
def test_others_are_recognised(chain, name):
    (found,) = machine.recognised({chain, ("inet", "zlayer_cni", "forward")})
    assert name in found.text
    assert machine.recognised({("inet", "zlayer_cni", "forward"), ("ip", "filter", "FORWARD")}) == []


def test_forwarding():
    assert level(machine.forwarding({4: True, 6: True}, [], daemon=True)) == "ok"
    assert level(machine.forwarding({4: True, 6: False}, [], daemon=True)) == "fail"
    assert level(machine.forwarding({4: False}, [], daemon=False)) == "warn"
    (shut,) = machine.forwarding({4: True}, ["eth0"], daemon=True)
    assert shut.level == "fail" and "net.ipv4.conf.eth0.forwarding=1" in shut.fix
    assert level(machine.forwarding({6: True}, ["eth0"], daemon=True)) == "ok"


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"all": 0, "eth0": 0}, "ok"),
        ({"all": 0, "eth0": 1}, "ok"),
        ({"all": 1, "eth0": 0, "eth1": 0}, "warn"),
        ({"all": 1, "eth0": 2, "eth1": 2}, "ok"),
        ({"all": 2, "eth0": 1, "eth1": 1}, "ok"),
        ({"all": 0, "eth0": 0, "zl-z-0-g": 1}, "warn"),
    ],
)
def test_reverse_path_filter(values, expected):
    assert level(machine.rp_filter(values)) == expected


def test_overlapping_ranges():
    assert level(machine.overlaps(CLUSTER, [])) == "ok"
    assert level(machine.overlaps(CLUSTER, ["the overlay's range 10.200.0.0/16 overlaps 10.0.0.0/8"])) == "fail"


# --- what is installed ----------------------------------------------------------------------------------------------


def test_runtimes():
    assert level(installed.runtimes({})) == "warn"
    assert level(installed.runtimes({"/run/crio/crio.sock": False})) == "warn"
    found = installed.runtimes({"/run/containerd/containerd.sock": True, "/run/crio/crio.sock": True})
    assert found.text == "containerd and CRI-O listens"


@pytest.mark.parametrize(
    ("first", "expected"),
    [
        (None, "fail"),
        (installed.Conflist("/x/10-zlayer.conflist", ("zlayer-cni", "portmap")), "ok"),
        (installed.Conflist("/x/05-calico.conflist", ("calico",)), "fail"),
        (installed.Conflist("/x/05-broken.conflist", (), broken="this is not JSON"), "fail"),
        (installed.Conflist("/x/10-zlayer.conflist", ("zlayer-cni",), ("mtu: 1 is too small",)), "fail"),
    ],
)
def test_conflist(first, expected):
    assert level(installed.conflist("/x", first)) == expected


@pytest.mark.parametrize(
    ("said", "expected"), [(None, "fail"), ("zlayer-cni 1.2", "ok"), ("zlayer-cni 1.1", "warn"), ("", "warn")]
)
def test_plugin(said, expected):
    assert level(installed.plugin("/opt/cni/bin/zlayer-cni", said, "1.2")) == expected


def test_chained_plugins():
    assert level(installed.chained(("zlayer-cni", "portmap"), (), "/b")) == "nothing"
    assert level(installed.chained(("zlayer-cni",), (), "/b")) == "warn"
    assert level(installed.chained(("zlayer-cni", "portmap"), ("portmap",), "/b")) == "fail"


@pytest.mark.parametrize(
    ("mode", "uid", "expected"),
    [
        (stat.S_IFDIR | 0o755, 0, "ok"),
        (stat.S_IFDIR | 0o775, 0, "fail"),
        (stat.S_IFDIR | 0o700, 1000, "fail"),
        (stat.S_IFREG | 0o600, 0, "ok"),
        (stat.S_IFREG | 0o640, 0, "fail"),
        (stat.S_IFSOCK | 0o600, 0, "ok"),
        (stat.S_IFSOCK | 0o666, 0, "fail"),
    ],
)
def test_permissions(mode, uid, expected):
    assert level(installed.permissions([installed.File("/x", mode, uid)])) == expected


PLENTY = 1 << 30


@pytest.mark.parametrize(
    ("disk", "expected"),
    [
        (installed.Disk("/d", PLENTY, 1000, False, False), "ok"),
        (installed.Disk("/d", PLENTY, None, False, False), "ok"),
        (installed.Disk("/d", PLENTY, 0, False, False), "fail"),
        (installed.Disk("/d", 0, 1000, False, False), "fail"),
        (installed.Disk("/d", installed.TIGHT - 1, 1000, False, False), "warn"),
        (installed.Disk("/d", PLENTY, 1000, True, False), "fail"),
        (installed.Disk("/d", PLENTY, 1000, False, True), "fail"),
    ],
)
def test_disk(disk, expected):
    assert level(installed.disk([disk], unpacks=True)) == expected


def test_noexec_does_not_matter_to_an_installed_program():
    assert level(installed.disk([installed.Disk("/d", PLENTY, 1000, False, True)], unpacks=False)) == "ok"


def test_two_daemons():
    one, two = installed.Daemon(1, "zlayer-cni overlayd"), installed.Daemon(2, "zlayer-overlayd")
    assert level(installed.daemons([])) == level(installed.daemons([one])) == "ok"
    assert level(installed.daemons([one, two])) == "warn"


@pytest.mark.parametrize(
    ("holder", "daemon", "expected"),
    [(7, 7, "ok"), (7, 8, "warn"), (None, 8, "warn"), (7, None, "warn"), (None, None, "nothing")],
)
def test_overlay_socket(holder, daemon, expected):
    assert level(installed.overlay_socket("/s", holder, daemon)) == expected


BOOT = "8b1e4d6e-8f2a-4d1c-9a35-0f2a1c3b4d5e"
NOW = 1_800_000_000.0


@pytest.mark.parametrize(
    ("now", "mtime", "boot", "expected"),
    [
        (NOW, NOW - 9, BOOT, "ok"),
        (NOW, None, BOOT, "ok"),
        (NOW, NOW + installed.SKEW + 1, BOOT, "warn"),
        (1000.0, None, BOOT, "fail"),
        (NOW, None, "", "fail"),
    ],
)
def test_clock(now, mtime, boot, expected):
    newest = None if mtime is None else installed.File("/k", stat.S_IFREG | 0o600, 0, mtime)
    assert level(installed.clock(now, newest, boot)) == expected


def test_what_the_daemon_says():
    assert level(installed.daemon_status([], "1", "1")) == "ok"
    assert level(installed.daemon_status([], "1", "2")) == "warn"
    assert level(installed.daemon_status(["the fence is not in force"], "1", "1")) == "fail"


@pytest.mark.parametrize(
    ("state", "expected"),
    [("not started", "ok"), ("not installed", "warn"), ("stopped", "fail"), ("ended", "fail"), ("failed", "fail")],
)
def test_a_daemon_that_is_not_there(state, expected):
    assert level(installed.absent_daemon(state, "text", "fix", "nothing answers")) == expected


def test_a_daemon_that_does_not_answer_is_our_own():
    assert "kill -CONT 7" in installed.silent_daemon(7, stopped=True).fix
    assert level(installed.silent_daemon(7, stopped=False)) == "fail"
    assert installed.overlay_socket("/s", holder=7, daemon=None, silent=7) == []


def test_a_broken_list_of_ours_is_not_to_be_removed():
    found = installed.conflist("/x", installed.Conflist("/x/10-zlayer.conflist", (), broken="not JSON", ours=True))
    assert "seems to be ours" in found.text
    assert "remove" not in found.fix
    assert "does not name" not in found.text
    other = installed.conflist("/x", installed.Conflist("/x/05-a.conflist", (), broken="not JSON"))
    assert "does not name" not in other.text
    assert "or remove it" in other.fix


def test_no_remedy_speaks_of_a_service_manager_that_may_not_run():
    sources = Path(installed.__file__).parent.glob("checks_*.py")
    assert [path.name for path in sources if "systemctl" in path.read_text()] == []


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["0::/system.slice/zlayer-overlayd.service"], "nothing"),
        (["0::/"], "nothing"),
        (["0::/user.slice/user-0.slice/session-3.scope"], "nothing"),
        (["0::/system.slice/containerd.service"], "warn"),
        (["9:name=systemd:/system.slice/crio.service", "0::/"], "warn"),
        (["0::/kubepods.slice/kubepods-besteffort.slice/cri-containerd-12.scope"], "warn"),
        (["nonsense"], "nothing"),
        ([], "nothing"),
    ],
)
def test_a_daemon_in_its_runtimes_control_group(lines, expected):
    found = installed.cgroup(7, lines)
    assert level(found) == expected
    assert all("install" in each.fix for each in found)


def test_yaml_that_does_not_count_is_told():
    told = Node(
        deployment="zlayer",
        instance_id="0",
        node_id=7,
        cluster_cidr="10.9.0.0/16",
        cluster_cidr6=None,
        slice_cidr="10.9.0.0/24",
        wg_port=51420,
        set_up=True,
    )
    assert tool.hidden(Settings(), told) == [], "what the YAML does not say is not hidden"
    (said,) = tool.hidden(Settings(), msgspec.structs.replace(told, set_up=False))
    assert "cluster_cidr: 10.200.0.0/16, but 10.9.0.0/16, set" in said, "no agent has set it"
    assert tool.hidden(Settings(node_id=7, cluster_cidr="10.9.0.0/16"), told) == []
    (said,) = tool.hidden(Settings(node_id=8, cluster_cidr="10.9.0.0/16"), told)
    assert "node_id: 8" in said and "but 7, set by an agent" in said
    found = installed.daemon_status([], "1", "1", [said])
    assert level(found) == "warn" and found[0].text == said
