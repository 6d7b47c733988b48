"""The picture of the mesh: boxes hold their text, none covers another, and it is valid SVG."""

from __future__ import annotations

import random
from itertools import combinations
from xml.etree import ElementTree

import pytest

from cni.cli.picture import LEGEND, LETTER, Spoke, drawn

NS = "{http://www.w3.org/2000/svg}"
LONG = "a-node-with-a-very-long-name.of.a.deployment.that.goes.on (node 65535)"
SIX = "fd00:200:0:14:8122:dc4f:5e29:c202/120"
Rect = tuple[float, float, float, float]


def picture(count: int) -> ElementTree.Element:
    dice = random.Random(count)
    spokes = [
        Spoke(
            (f"peer-{n}" + "x" * dice.randrange(60), f"[{SIX}]:51820", *([SIX] * dice.randrange(9))),
            dice.choice([*LEGEND]),
        )
        for n in range(count)
    ]
    return ElementTree.fromstring(drawn([LONG, f"10.200.0.1, {SIX}", "web <&> (auto) 10.0.0.0/26"], spokes))


def rects(svg: ElementTree.Element) -> list[Rect]:
    return [
        (float(r.get("x", 0)), float(r.get("y", 0)), float(r.get("width", 0)), float(r.get("height", 0)))
        for r in svg.iter(f"{NS}rect")
    ]


@pytest.mark.parametrize("count", [0, 1, 2, 7, 40, 200])
def test_every_text_is_inside_its_box_and_no_boxes_overlap(count: int) -> None:
    svg = picture(count)
    boxes = rects(svg)
    assert len(boxes) == count + 1
    for text in svg.iter(f"{NS}text"):
        x, y, width = float(text.get("x", 0)), float(text.get("y", 0)), LETTER * len(text.text or "")
        inside = [
            (left, top, w, h)
            for left, top, w, h in boxes
            if left <= x and x + width <= left + w and top <= y <= top + h
        ]
        assert len(inside) == 1 or (text.text or "").split(":")[0] in LEGEND
    for one, other in combinations(boxes, 2):
        apart = one[0] + one[2] <= other[0] or other[0] + other[2] <= one[0]
        assert apart or one[1] + one[3] <= other[1] or other[1] + other[3] <= one[1]


@pytest.mark.parametrize("count", [1, 40])
def test_everything_is_inside_the_picture(count: int) -> None:
    svg = picture(count)
    _, _, width, height = map(float, svg.get("viewBox", "").split())
    assert all(x + w <= width and y + h <= height for x, y, w, h in rects(svg))
    for text in svg.iter(f"{NS}text"):
        assert float(text.get("x", 0)) + LETTER * len(text.text or "") <= width
        assert float(text.get("y", 0)) <= height


def test_a_legend_names_the_ways_that_are_drawn_and_dark_mode_is_there() -> None:
    svg = drawn(["one"], [Spoke(("two",), "silent"), Spoke(("three",), "direct")])
    assert "silent: no handshake for 180 s" in svg and "direct: answers" in svg and "learned: answers" not in svg
    assert "prefers-color-scheme: dark" in svg
    assert set(LEGEND) == {"direct", "learned", "silent", "no device"}
