"""The dashboard and the alert rules in conf/ ask for metrics, labels and values that exist."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cni.daemon.call_times import VERBS
from cni.daemon.metrics import families, kinds, node
from cni.problems import REGISTRY

CONF = Path(__file__).resolve().parents[2] / "conf"
RULES = [
    rule
    for group in yaml.safe_load((CONF / "prometheus-alerts.yaml").read_text("utf-8"))["groups"]
    for rule in group["rules"]
]
DASHBOARD = json.loads((CONF / "grafana-zlayer-cni.json").read_text("utf-8"))
OF_PROMETHEUS = {"job", "instance", "le"}
"""The labels that Prometheus adds, and that of a histogram."""
VALUES = {
    "state": {"used", "cooling", "free"},
    "severity": {kind.severity for kind in REGISTRY.values()},
    "verb": set(VERBS),
    "result": {"complete", "incomplete"},
    "network": {"-"},
    "code": {"0"},
    "job": {"zlayer-cni", "$job"},
    "instance": {"$instance"},
}


def exported() -> dict[str, set[str]]:
    """The labels of each series name."""
    found = {
        f"{kinds.PREFIX}{kind.name}{end}": set(kind.labels)
        for kind in node.HISTOGRAMS
        for end in ("_count", "_sum", "_bucket")
    }
    for rows, prefix in ((families.METRICS, kinds.PREFIX), (node.PROCESS, "")):
        found |= {f"{prefix}{k.name}{'_total' * (k.kind == 'counter')}": set(k.labels) for k in rows}
    return {**found, "up": set()}


EXPORTED = exported()
SELECTOR = re.compile(r"\b((?:zlayer_cni|process)_\w+|up\b)(?:\{([^}]*)\})?")
MATCHER = re.compile(r'(\w+)\s*(?:=~|!~|!=|=)\s*"([^"]*)"')
GROUPED = re.compile(r"\b(?:by|on|ignoring|without)\s*\(([^)]*)\)")
SHOWN = re.compile(r"\{\{\s*(?:\$labels\.)?(\w+)\s*\}\}")


def faults(expression: str) -> list[str]:
    """What an expression of PromQL asks for and does not exist."""
    wrong = []
    for name, matchers in SELECTOR.findall(expression):
        if name not in EXPORTED:
            wrong.append(name)
            continue
        for label, value in MATCHER.findall(matchers):
            if label not in EXPORTED[name] | OF_PROMETHEUS:
                wrong.append(f"{name}{{{label}}}")
            elif value not in VALUES[label]:
                wrong.append(f'{name}{{{label}="{value}"}}')
    names = {name for name, _ in SELECTOR.findall(expression)}
    known = OF_PROMETHEUS.union(*(EXPORTED.get(name, set()) for name in names))
    for labels in GROUPED.findall(expression):
        wrong += [label for label in re.split(r"[,\s]+", labels) if label and label not in known]
    return wrong


def expressions() -> Iterator[tuple[str, str]]:
    """Every expression of the dashboard, with the texts that show labels."""
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            yield target["expr"], target.get("legendFormat", "")
    for each in DASHBOARD["annotations"]["list"]:
        yield each["expr"], each["titleFormat"]


@pytest.mark.parametrize(("expression", "legend"), list(expressions()))
def test_a_panel_asks_for_what_is_exported(expression: str, legend: str) -> None:
    assert faults(expression) == []
    assert SELECTOR.search(expression)
    labels = OF_PROMETHEUS.union(*(EXPORTED[name] for name, _ in SELECTOR.findall(expression)))
    assert set(SHOWN.findall(legend)) <= labels


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_an_alert_asks_for_what_is_exported(rule: dict[str, Any]) -> None:
    assert faults(rule["expr"]) == []
    assert rule["labels"]["severity"] in ("critical", "warning")
    labels = OF_PROMETHEUS.union(*(EXPORTED[name] for name, _ in SELECTOR.findall(rule["expr"])))
    for text in rule["annotations"].values():
        assert set(re.findall(r"\$labels\.(\w+)", text)) <= labels


def test_there_are_ten_alerts_and_every_panel_has_its_place() -> None:
    assert len({rule["alert"] for rule in RULES}) == len(RULES) >= 10
    taken = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        squares = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not squares & taken, panel["title"]
        taken |= squares


@pytest.mark.parametrize(
    "expression",
    [
        "zlayer_cni_atachments",
        'zlayer_cni_attachments{pod="x"}',
        'zlayer_cni_addresses{state="fre"}',
        "sum by (pod) (up)",
    ],
)
def test_what_does_not_exist_is_seen(expression: str) -> None:
    assert len(faults(expression)) == 1
