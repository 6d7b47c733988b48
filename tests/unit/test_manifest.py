"""What scripts/manifest prints: objects that can be read, and no more rights than are meant."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from cni.daemon import settings_reader
from cni.daemon.settings import Settings

ROOT = Path(__file__).resolve().parents[2]


def objects(*options: str) -> dict[str, Any]:
    """The objects of the manifest, by kind and name."""
    done = subprocess.run(
        [ROOT / "scripts/manifest", *options], capture_output=True, text=True, timeout=60, check=True, cwd="/"
    )
    assert "@" not in done.stdout
    return {f"{each['kind']}/{each['metadata']['name']}": each for each in yaml.safe_load_all(done.stdout)}


@pytest.fixture(scope="module")
def manifest() -> dict[str, Any]:
    return objects("--cluster-cidr", "10.44.0.0/16", "--service-cidr", "10.96.0.0/12", "--image", "r.example/z:1")


def test_no_container_is_privileged(manifest: dict[str, Any]) -> None:
    granted = {}
    for name in ("zlayer-cni", "zlayer-cni-engine"):
        spec = manifest[f"DaemonSet/{name}"]["spec"]["template"]["spec"]
        assert not spec.get("hostPID") and not spec.get("hostIPC")
        for container in (*spec.get("initContainers", ()), *spec["containers"]):
            context = container["securityContext"]
            assert "privileged" not in context and context["capabilities"]["drop"] == ["ALL"]
            assert context["allowPrivilegeEscalation"] is False and container["image"] == "r.example/z:1"
            granted[container["name"]] = context["capabilities"].get("add", [])
    assert granted == {"install": [], "overlayd": ["NET_ADMIN", "NET_RAW", "SYS_ADMIN"], "engine": ["NET_ADMIN"]}


def test_every_volume_is_mounted_and_the_other_way_round(manifest: dict[str, Any]) -> None:
    for name in ("zlayer-cni", "zlayer-cni-engine"):
        spec = manifest[f"DaemonSet/{name}"]["spec"]["template"]["spec"]
        containers = (*spec.get("initContainers", ()), *spec["containers"])
        mounted = {mount["name"] for container in containers for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in spec["volumes"]}
    (netns,) = [
        mount
        for mount in manifest["DaemonSet/zlayer-cni"]["spec"]["template"]["spec"]["containers"][0]["volumeMounts"]
        if mount["name"] == "netns"
    ]
    assert netns["mountPropagation"] == "HostToContainer"


def test_the_daemon_accepts_its_settings(manifest: dict[str, Any], tmp_path: Path) -> None:
    data = manifest["ConfigMap/zlayer-cni"]["data"]
    (tmp_path / "overlayd.yaml").write_text(data["overlayd.yaml"])
    settings: Settings = settings_reader.find(str(tmp_path / "overlayd.yaml"), None)
    assert settings.cluster_cidr == "10.44.0.0/16" and settings.engine_host
    assert settings.isolation.reach == ("10.96.0.1:443/tcp", "10.96.0.10:53/udp", "10.96.0.10:53/tcp")
    listed = json.loads(data["10-zlayer.conflist"])
    assert listed["plugins"][0]["autostart"] is False
    assert Path(settings.network_list.target).name == "10-zlayer.conflist"


def test_no_right_is_for_every_object(manifest: dict[str, Any]) -> None:
    rules = [rule for kind in ("ClusterRole", "Role") for rule in manifest[f"{kind}/zlayer-cni"]["rules"]]
    assert "*" not in {word for rule in rules for key in ("apiGroups", "resources", "verbs") for word in rule[key]}
    core = {(tuple(rule["resources"]), tuple(rule["verbs"])) for rule in rules if rule["apiGroups"] == [""]}
    assert core == {(("nodes",), ("get",)), (("namespaces", "pods"), ("list", "watch"))}


def test_leaving_is_a_daemonset_in_place_of_the_daemons() -> None:
    (name, body), *others = objects("--remove").items()
    assert name == "DaemonSet/zlayer-cni" and not others
    spec = body["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    assert container["command"][1:] == ["pod", "remove"] and "initContainers" not in spec
    assert not container.keys() & {"livenessProbe", "readinessProbe"}
    assert {"plugins", "programs"} <= {mount["name"] for mount in container["volumeMounts"]}


def test_a_dual_stack_cluster_gets_both_ranges_and_the_openings_of_both(tmp_path: Path) -> None:
    ranges = ("--cluster-cidr", "10.44.0.0/16,fd00:44::/48", "--service-cidr", "10.96.0.0/12,fd00:96::/112")
    (tmp_path / "overlayd.yaml").write_text(objects(*ranges)["ConfigMap/zlayer-cni"]["data"]["overlayd.yaml"])
    settings = settings_reader.find(str(tmp_path / "overlayd.yaml"), None)
    assert settings.cidrs == ("10.44.0.0/16", "fd00:44::/48")
    assert settings.isolation.reach[0] == "10.96.0.1:443/tcp"
    assert settings.isolation.reach[3:] == ("[fd00:96::1]:443/tcp", "[fd00:96::a]:53/udp", "[fd00:96::a]:53/tcp")


def test_a_cluster_of_ipv6_alone(tmp_path: Path) -> None:
    ranges = ("--cluster-cidr", "fd00:44::/48", "--service-cidr", "fd00:96::/112")
    (tmp_path / "overlayd.yaml").write_text(objects(*ranges)["ConfigMap/zlayer-cni"]["data"]["overlayd.yaml"])
    assert settings_reader.find(str(tmp_path / "overlayd.yaml"), None).cidrs == ("fd00:44::/48",)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--cluster-cidr", "10.44.0.0"),
        ("--cluster-cidr", "10.44.0.0/16,10.45.0.0/16"),
        ("--cluster-cidr", "fd00:44::/48,10.44.0.0/16"),
        ("--service-cidr", "10.96.0.1/12"),
    ],
)
def test_ranges_that_are_none_are_refused(option: str, value: str) -> None:
    done = subprocess.run([ROOT / "scripts/manifest", option, value], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and option in done.stderr and "kind:" not in done.stdout
