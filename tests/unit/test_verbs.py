"""The verbs: what a call becomes on the overlay, and what comes back becomes on stdout.

The overlay here is a fake that keeps its attachments: the daemon's own service is tested in test_attach.py, and an
overlay of someone else's in the manager's tests.
"""

import json
import logging
import os

import pytest

from cni.errors import AttachFailed, CheckFailed, CleanupFailed, NotAvailable, TryAgainLater
from cni.netconf.policy import ClusterWords
from cni.netconf.types import DNS, IP
from cni.netconf.versions import SUPPORTED
from cni.verbs import Attached, serve

NETNS = "/run/netns/c1"
ENV = {"CNI_CONTAINERID": "c1", "CNI_NETNS": NETNS, "CNI_IFNAME": "eth0", "CNI_PATH": "/opt/cni/bin"}
OURS = ("10.9.0.66/26", "10.9.0.65")


class FakeOverlay:
    """An overlay that attaches whatever it is asked to, or fails as it is told."""

    def __init__(self, *, error=None, addresses=(OURS,)):
        self.attachments = {}
        self.error = error
        self.addresses = addresses
        self.calls = []

    def _called(self, *what):
        self.calls.append(what)
        if self.error is not None and what[0] in (self.error[0], "*"):
            raise self.error[1]

    def cluster_words(self, call, has_annotations):
        return ClusterWords()

    def attach(self, asked, wish, target):
        self._called("attach", asked, wish, target)
        self.attachments[asked.conf.name, asked.call.container_id, asked.call.ifname] = wish
        return Attached(
            bridge="zl-br",
            bridge_mac="02:00:00:00:00:01",
            host_veth="zl-port-v",
            host_mac="02:00:00:00:00:02",
            mac="0a:58:0a:09:00:42",
            mtu=1420,
            addresses=self.addresses,
            routes=(("0.0.0.0/0", "10.9.0.65"),) if self.addresses else (),
            dns=DNS(nameservers=("10.9.0.53",)),
        )

    def detach(self, network, container, ifname):
        self._called("detach", network, container, ifname)
        self.attachments.pop((network, container, ifname), None)

    def check(self, call, network, previous, target):
        self._called("check", call, network, previous, target)

    def collect(self, network, valid):
        self._called("collect", network, valid)
        return ["GC: eth0 of c9 is not listed but alive, kept"]

    def ready(self, service, mode):
        self._called("ready", service, mode)
        return ["no way to other nodes"] if service == "alone" else []

    def made(self):
        """The names of the methods called."""
        return [call[0] for call in self.calls]


@pytest.fixture
def fd():
    """A namespace's descriptor: that of the test's own, which anybody may open."""
    opened = os.open("/proc/self/ns/net", os.O_RDONLY)
    yield opened
    os.close(opened)


def conf(**members):
    return {"cniVersion": "1.1.0", "name": "blue", "type": "zlayer-cni", **members}


def run(verb, overlay, fd=None, env=(), *, stdin=None, wanted=lambda: True, **members):
    stdin = json.dumps(conf(**members)).encode() if stdin is None else stdin
    return serve({**ENV, "CNI_COMMAND": verb, **dict(env)}, stdin, fd, overlay, wanted)


def error_of(spoken):
    assert spoken.code == 1
    assert spoken.stdout.endswith("}\n")
    return json.loads(spoken.stdout)


def result_of(spoken):
    assert spoken.code == 0, spoken.stdout
    return json.loads(spoken.stdout)


# --- ADD ---


@pytest.mark.parametrize("version", SUPPORTED)
def test_add_answers_in_the_version_it_was_asked_in(fd, version):
    overlay = FakeOverlay()
    result = result_of(run("ADD", overlay, fd, cniVersion=version))
    assert result["cniVersion"] == version
    if version in ("0.1.0", "0.2.0"):
        assert result["ip4"]["ip"] == "10.9.0.66/26"
        return
    assert [(i["name"], i.get("sandbox", "")) for i in result["interfaces"]] == [
        ("zl-br", ""),
        ("zl-port-v", ""),
        ("eth0", NETNS),
    ]
    (ip,) = result["ips"]
    assert (ip["address"], ip["gateway"], ip["interface"]) == ("10.9.0.66/26", "10.9.0.65", 2)
    assert result["routes"] == [{"dst": "0.0.0.0/0", "gw": "10.9.0.65"}]


def test_add_hands_the_whole_call_over(fd):
    overlay = FakeOverlay()
    wanted = object()
    env = {"ATTEMPT": "a1", "OWN_NETNS": "4:77", "CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAME=web-0"}
    run("ADD", overlay, fd, env, wanted=wanted, service="web", mode="isolated")
    ((_, asked, wish, target),) = overlay.calls
    assert (asked.attempt, asked.caller_waits, asked.call.args["K8S_POD_NAME"]) == ("a1", wanted, "web-0")
    assert (wish.service, wish.mode, wish.isolation_network) == ("web", "isolated", "web")
    assert (target.fd, target.path, target.forbidden) == (fd, NETNS, {(4, 77)})


@pytest.mark.parametrize("own", ["", "4", "4:", ":7", "a:b", "-4:7", "4:7:9"])
def test_a_plugin_that_does_not_say_where_it_runs_forbids_nothing(fd, own):
    overlay = FakeOverlay()
    result_of(run("ADD", overlay, fd, {"OWN_NETNS": own}))
    assert overlay.calls[0][3].forbidden == set()


def test_an_override_forbids_nothing(fd):
    overlay = FakeOverlay()
    result_of(run("ADD", overlay, fd, {"OWN_NETNS": "4:77", "CNI_NETNS_OVERRIDE": "TRUE"}))
    assert overlay.calls[0][3].forbidden == set()


def test_the_configurations_dns_goes_before_the_nodes(fd):
    assert result_of(run("ADD", FakeOverlay(), fd))["dns"] == {"nameservers": ["10.9.0.53"]}
    own = {"nameservers": ["192.0.2.53"], "search": ["blue"]}
    assert result_of(run("ADD", FakeOverlay(), fd, dns=own))["dns"] == own


@pytest.mark.parametrize(("verb", "env"), [("ADD", {}), ("CHECK", {})])
@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("ENOENT", "No such file"),
        ("EACCES", "Permission denied"),
        ("EINVAL", "no network namespace"),
        ("", "no network namespace"),
    ],
)
def test_without_a_namespace_there_is_nothing_to_attach_to(verb, env, said, words):
    overlay = FakeOverlay()
    members = {"prevResult": {"cniVersion": "1.1.0"}} if verb == "CHECK" else {}
    error = error_of(run(verb, overlay, None, {**env, "NETNS_ERROR": said}, **members))
    assert (error["code"], overlay.calls) == (8, [])
    assert NETNS in error["msg"]
    assert words in error["msg"]


def test_a_route_that_could_not_be_made_is_told(fd):
    routes = [{"dst": "0.0.0.0/0"}, {"dst": "2001:DB8:0::/32"}]
    spoken = run("ADD", FakeOverlay(), fd, routes=routes)
    assert spoken.code == 0
    assert [line for line in spoken.stderr.splitlines() if "left out" in line] == [
        "zlayer-cni: routes: 2001:DB8:0::/32: left out, there is no address of its family, or such a route already"
    ]


def test_a_namespace_that_was_lost_on_the_way_is_no_fault_of_the_callers():
    """The kernel drops descriptors that the daemon has no room for (unix(7), SCM_RIGHTS)."""
    overlay = FakeOverlay()
    error = error_of(run("ADD", overlay, None, {"NETNS_FD": "1"}))
    assert (error["code"], overlay.calls) == (11, [])


def test_a_bad_wish_is_refused_before_the_overlay_is_asked(fd):
    overlay = FakeOverlay()
    error = error_of(run("ADD", overlay, fd, {"CNI_ARGS": "nonsense"}))
    assert (error["code"], overlay.calls) == (4, [])


# --- ADD in a chain ---


PREVIOUS = {
    "cniVersion": "1.1.0",
    "interfaces": [
        {"name": "lo", "mac": "00:00:00:00:00:00", "sandbox": NETNS},
        {"name": "net0", "mac": "02:00:00:00:00:09", "sandbox": NETNS},
    ],
    "ips": [{"address": "172.16.0.2/24", "gateway": "172.16.0.1", "interface": 1}, {"address": "172.17.0.2/24"}],
    "routes": [{"dst": "172.18.0.0/16", "gw": "172.16.0.1"}],
    "dns": {"nameservers": ["172.16.0.53"], "domain": "first"},
}


def test_an_earlier_plugins_result_is_kept_and_ours_comes_after_it(fd):
    result = result_of(run("ADD", FakeOverlay(), fd, prevResult=PREVIOUS))
    assert [i["name"] for i in result["interfaces"]] == ["lo", "net0", "zl-br", "zl-port-v", "eth0"]
    assert [(ip["address"], ip.get("interface")) for ip in result["ips"]] == [
        ("172.16.0.2/24", 1),
        ("172.17.0.2/24", None),
        ("10.9.0.66/26", 4),
    ]
    assert [r["dst"] for r in result["routes"]] == ["172.18.0.0/16", "0.0.0.0/0"]
    assert result["dns"] == {"nameservers": ["172.16.0.53", "10.9.0.53"], "domain": "first"}


def test_a_result_that_cannot_be_read_is_refused_before_the_overlay_is_asked(fd):
    overlay = FakeOverlay()
    error = error_of(run("ADD", overlay, fd, prevResult={"cniVersion": "1.1.0", "ips": [{"address": "nonsense"}]}))
    assert (error["code"], overlay.calls) == (6, [])


# --- ADD that fails ---


@pytest.mark.parametrize("version", ["0.1.0", "0.2.0"])
def test_a_result_that_cannot_be_said_in_that_version_is_undone(fd, version):
    overlay = FakeOverlay(addresses=())
    error = error_of(run("ADD", overlay, fd, cniVersion=version))
    assert (error["code"], error["cniVersion"]) == (1, version)
    assert overlay.made() == ["attach", "detach"]
    assert overlay.attachments == {}


def test_an_attach_that_failed_is_the_overlays_to_undo(fd):
    overlay = FakeOverlay(error=("attach", AttachFailed("no veth", "because")))
    error = error_of(run("ADD", overlay, fd))
    assert error == {"cniVersion": "1.1.0", "code": 100, "msg": "no veth", "details": "because"}
    assert overlay.made() == ["attach"]


def test_an_undoing_that_fails_does_not_hide_the_error(fd):
    overlay = FakeOverlay(addresses=(), error=("detach", CleanupFailed("stuck")))
    assert error_of(run("ADD", overlay, fd, cniVersion="0.2.0"))["code"] == 1


# --- DEL ---


def test_del_detaches_and_says_nothing(fd):
    overlay = FakeOverlay()
    run("ADD", overlay, fd)
    spoken = run("DEL", overlay, fd)
    assert (spoken.code, spoken.stdout, overlay.attachments) == (0, "", {})
    assert overlay.calls[-1] == ("detach", "blue", "c1", "eth0")


@pytest.mark.parametrize("env", [{}, {"CNI_NETNS": ""}, {"NETNS_ERROR": "ENOENT"}])
def test_del_needs_no_namespace(env):
    overlay = FakeOverlay()
    assert run("DEL", overlay, None, env).code == 0
    assert overlay.made() == ["detach"]


@pytest.mark.parametrize(
    "members",
    [{"prevResult": "garbage"}, {"prevResult": {"ips": 7}}, {"mode": "unheard-of"}, {"mtu": "1400"}, {"routes": [1]}],
)
def test_del_is_done_whatever_became_of_the_configuration(members):
    overlay = FakeOverlay()
    spoken = run("DEL", overlay, None, **members)
    assert (spoken.code, spoken.stdout, overlay.made()) == (0, "", ["detach"])
    assert next(iter(members)) in spoken.stderr


def own(fd):
    status = os.fstat(fd)
    return f"{status.st_dev}:{status.st_ino}"


def test_del_aimed_at_the_plugins_own_namespace_is_refused(fd):
    overlay = FakeOverlay()
    error = error_of(run("DEL", overlay, fd, {"OWN_NETNS": own(fd)}))
    assert (error["code"], overlay.calls) == (8, [])


def test_del_aimed_there_on_purpose_is_done(fd):
    overlay = FakeOverlay()
    assert run("DEL", overlay, fd, {"OWN_NETNS": own(fd), "CNI_NETNS_OVERRIDE": "1"}).code == 0
    assert overlay.made() == ["detach"]


def test_a_detach_that_failed_is_told():
    overlay = FakeOverlay(error=("detach", CleanupFailed("the link stays", "EBUSY")))
    error = error_of(run("DEL", overlay))
    assert (error["code"], error["msg"], error["details"]) == (106, "the link stays", "EBUSY")


# --- CHECK ---


def test_check_hands_over_what_the_runtime_kept_and_says_nothing(fd):
    overlay = FakeOverlay()
    result = result_of(run("ADD", overlay, fd))
    spoken = run("CHECK", overlay, fd, prevResult=result)
    assert (spoken.code, spoken.stdout) == (0, "")
    _, call, network, previous, target = overlay.calls[-1]
    assert (call.container_id, network, target.fd) == ("c1", "blue", fd)
    assert previous.ips == (IP("10.9.0.66/26", "10.9.0.65", 2),)


def test_check_without_a_result_is_refused(fd):
    overlay = FakeOverlay()
    error = error_of(run("CHECK", overlay, fd))
    assert (error["code"], error["msg"], overlay.calls) == (7, "Required prevResult missing", [])


def test_check_changes_nothing(fd):
    overlay = FakeOverlay(error=("check", CheckFailed("eth0 is down")))
    error = error_of(run("CHECK", overlay, fd, prevResult=PREVIOUS))
    assert (error["code"], error["msg"], overlay.made()) == (102, "eth0 is down", ["check"])


# --- GC ---


VALID = "cni.dev/valid-attachments"
GC_ENV = {**dict.fromkeys(ENV, ""), "CNI_PATH": "/opt/cni/bin"}


@pytest.mark.parametrize(
    ("members", "keep"),
    [
        ({}, None),
        ({VALID: []}, set()),
        ({VALID: None}, set()),
        ({VALID: [{"containerID": "c1", "ifname": "eth0"}]}, {("c1", "eth0")}),
        ({"cni.dev/attachments": [{"containerID": "c2", "ifname": "eth0"}]}, {("c2", "eth0")}),
        ({VALID: [], "cni.dev/attachments": [{"containerID": "c2", "ifname": "eth0"}]}, set()),
    ],
)
def test_gc_keeps_what_is_listed_and_without_a_list_judges_nothing(members, keep):
    overlay = FakeOverlay()
    spoken = run("GC", overlay, None, GC_ENV, **members)
    assert (spoken.code, spoken.stdout, overlay.calls) == (0, "", [("collect", "blue", keep)])
    assert "is not listed but alive, kept" in spoken.stderr


def test_gc_with_a_malformed_list_frees_nothing():
    overlay = FakeOverlay()
    error = error_of(run("GC", overlay, None, GC_ENV, **{VALID: [{"containerID": 7}]}))
    assert error["code"] in (6, 7)
    assert overlay.calls == []


def test_gc_that_failed_is_told():
    error = error_of(run("GC", FakeOverlay(error=("collect", CleanupFailed("2 stay"))), None, GC_ENV))
    assert error["code"] == 106


# --- STATUS ---


@pytest.mark.parametrize(
    ("members", "asked"),
    [
        ({}, ("blue", "auto")),
        ({"service": "web", "mode": "shared"}, ("web", "shared")),
        ({"service": "${K8S_POD_NAMESPACE}-web"}, ("blue", "auto")),
    ],
)
def test_status_asks_about_the_service(members, asked):
    overlay = FakeOverlay()
    spoken = run("STATUS", overlay, None, dict.fromkeys(ENV, ""), **members)
    assert (spoken.code, spoken.stdout, overlay.calls) == (0, "", [("ready", *asked)])


def test_status_tells_what_keeps_no_container_from_its_work():
    spoken = run("STATUS", FakeOverlay(), None, dict.fromkeys(ENV, ""), service="alone")
    assert (spoken.code, spoken.stdout, spoken.stderr) == (0, "", "zlayer-cni: no way to other nodes\n")


def test_status_of_a_node_that_is_not_ready():
    overlay = FakeOverlay(error=("ready", NotAvailable("no address left")))
    assert error_of(run("STATUS", overlay, None, dict.fromkeys(ENV, "")))["code"] == 50


# --- errors ---


@pytest.mark.parametrize("version", SUPPORTED)
def test_an_error_is_said_in_the_version_it_was_asked_in(fd, version):
    overlay = FakeOverlay(error=("attach", TryAgainLater("not yet")))
    assert error_of(run("ADD", overlay, fd, cniVersion=version)) == {
        "cniVersion": version,
        "code": 11,
        "msg": "not yet",
    }


def test_what_nobody_foresaw_is_a_coded_error_too(fd, caplog):
    caplog.set_level(logging.CRITICAL)
    error = error_of(run("ADD", FakeOverlay(error=("attach", ZeroDivisionError("oops"))), fd))
    assert (error["code"], "ZeroDivisionError" in error["msg"]) == (999, True)


@pytest.mark.parametrize("words", ['quote " and \\ back', "line\nbreak", "Umlaut ä 漢", "\udc80 surrogate", "\0 nul"])
def test_any_words_make_one_line_of_json(fd, words):
    spoken = run("ADD", FakeOverlay(error=("attach", AttachFailed(words, words))), fd)
    assert spoken.stdout.count("\n") == 1
    assert spoken.stdout.isascii()
    assert error_of(spoken)["msg"] == words


@pytest.mark.parametrize(
    ("stdin", "code"),
    [
        (b"", 6),
        (b"[]", 6),
        (b"null", 7),
        (b"\xff\xfe{}", 6),
        (b"{" * 100_000, 6),
        (b'{"cniVersion":"1.1.0"}', 7),
        (b'{"cniVersion":"9.9.9","name":"blue"}', 1),
        (b'{"cniVersion":7,"name":"blue"}', 6),
    ],
)
@pytest.mark.parametrize("verb", ["ADD", "DEL", "CHECK", "GC", "STATUS"])
def test_a_configuration_that_is_none_is_refused(fd, stdin, code, verb):
    overlay = FakeOverlay()
    error = error_of(run(verb, overlay, fd, stdin=stdin))
    assert (error["code"], overlay.calls) == (code, [])
    assert error["cniVersion"] in SUPPORTED


@pytest.mark.parametrize(("verb", "code"), [("UPDATE", 4), ("add", 4), ("", 4)])
def test_a_verb_that_is_none_is_refused(fd, verb, code):
    overlay = FakeOverlay()
    assert error_of(run(verb, overlay, fd))["code"] == code
    assert overlay.calls == []


def test_warnings_go_to_stderr_and_not_to_stdout(fd):
    spoken = run("ADD", FakeOverlay(), fd, servise="typo")
    result_of(spoken)
    assert spoken.stderr == "zlayer-cni: servise: unknown key, ignored\n"
