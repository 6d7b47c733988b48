"""The page itself: one HTML file without outside resources. Names of others are set as text, never as HTML."""

from __future__ import annotations

import base64
import hashlib

STYLE = """
:root { color-scheme: light dark; --line: #8886; --good: #2a8a3e; --bad: #c62828; --soft: #888; }
body { font: 14px/1.45 system-ui, sans-serif; margin: 0 auto; max-width: 76rem; padding: 1rem; }
h1 { font-size: 1.3rem; margin: 0 0 .2rem; } h2 { font-size: 1.05rem; margin: 1.6rem 0 .4rem; }
table { border-collapse: collapse; width: 100%; }
th, td { border-bottom: 1px solid var(--line); padding: .25rem .6rem .25rem 0; text-align: left; vertical-align: top; }
th { color: var(--soft); font-weight: 500; } td.number { font-variant-numeric: tabular-nums; }
.good { color: var(--good); } .bad { color: var(--bad); } .soft { color: var(--soft); }
svg { max-width: 100%; } svg text { fill: currentColor; font: 13px system-ui, sans-serif; }
svg rect { fill: none; stroke: currentColor; } svg .up { stroke: var(--good); } svg .down { stroke: var(--bad); }
svg line { stroke-width: 2; } svg .down { stroke-dasharray: 5 4; } .changed { background: #f9a82533; }
"""

SCRIPT = """
"use strict";
const $ = id => document.getElementById(id);
const element = (name, text, kind) => {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (kind) made.className = kind;
  return made;
};
const bytes = n => {
  for (const unit of ["B", "KiB", "MiB", "GiB"]) {
    if (n < 1024) return `${Math.round(n * 10) / 10} ${unit}`;
    n /= 1024;
  }
  return `${Math.round(n * 10) / 10} TiB`;
};
const span = seconds => {
  if (seconds === null) return "never";
  if (seconds < 120) return `${seconds} s`;
  if (seconds < 7200) return `${Math.round(seconds / 60)} min`;
  return `${Math.round(seconds / 3600)} h`;
};
function table(id, head, rows) {
  const made = element("table"), top = made.createTHead().insertRow(), body = made.createTBody();
  for (const each of head) top.append(element("th", each));
  for (const row of rows) {
    const line = body.insertRow();
    for (const each of row) {
      const [text, kind] = Array.isArray(each) ? each : [each];
      line.append(element("td", text, kind));
    }
  }
  $(id).replaceChildren(rows.length ? made : element("p", "none", "soft"));
}
function draw(node, peers) {
  const SPACE = "http://www.w3.org/2000/svg", HIGH = 44, WIDE = 260;
  const shape = (name, values, text) => {
    const made = document.createElementNS(SPACE, name);
    for (const [key, value] of Object.entries(values)) made.setAttribute(key, value);
    if (text !== undefined) made.textContent = text;
    return made;
  };
  const short = text => text.length > 30 ? text.slice(0, 29) + "…" : text;
  const box = (x, y, name, below) => [
    shape("rect", {x, y, width: WIDE, height: HIGH - 8, rx: 5}),
    shape("text", {x: x + 8, y: y + 15}, short(name)), shape("text", {x: x + 8, y: y + 30}, short(below)),
  ];
  const shown = peers.slice(0, 40), height = Math.max(1, shown.length) * HIGH, middle = height / 2;
  const drawing = shape("svg", {viewBox: `0 0 ${3 * WIDE} ${height}`, width: 3 * WIDE, role: "img"});
  drawing.append(shape("title", {}, "this node and its tunnels"));
  drawing.append(...box(1, middle - HIGH / 2 + 4, node.name, node.addresses.join(", ")));
  shown.forEach((peer, n) => {
    const y = n * HIGH + HIGH / 2;
    const kind = peer.alive ? "up" : "down";
    drawing.append(shape("line", {x1: WIDE + 2, y1: middle, x2: 2 * WIDE - 2, y2: y, class: kind}));
    drawing.append(...box(2 * WIDE - 2, n * HIGH + 4, peer.name, peer.endpoint));
  });
  $("picture").replaceChildren(drawing);
}
function show(all) {
  $("error").textContent = all.error;
  if (!all.node) return;
  const node = all.node;
  document.title = `${node.name} - zlayer-cni`;
  $("name").textContent = node.name;
  $("summary").textContent = `${node.version}, up ${span(node.uptime_seconds)}, ${node.addresses.join(", ")}, MTU ` +
    `${node.mtu}, ${node.attachments} attachments, ${node.wireguard || "no tunnels"}`;
  $("fence").textContent = node.fence ? `The fence is not in force: ${node.fence}` : "The fence is in force.";
  $("fence").className = node.fence ? "bad" : "good";
  table("problems", ["code", "", "what", "what to do"],
    all.problems.map(p => [[p.code, p.severity === "error" ? "bad" : ""], p.severity, p.text, p.action]));
  draw(node, all.peers);
  table("tunnels", ["node", "", "endpoint", "path", "last handshake", "received", "sent", "path MTU", "behind it"],
    all.peers.map(p => [p.name, [p.alive ? "answers" : "silent", p.alive ? "good" : "bad"], p.endpoint, p.path,
      span(p.age), [bytes(p.received), "number"], [bytes(p.sent), "number"], p.path_mtu || "", p.allowed.join(", ")]));
  const label = name => name === null ? "flat mesh" : name;
  table("networks", ["network", "members here", "elsewhere", "dropped packets"],
    all.networks.map(n => [label(n.name), [n.members.length, "number"], [n.elsewhere, "number"],
      [n.dropped, "number"]]));
  table("members", ["network", "container", "pod", "service", "addresses", "state"],
    all.networks.flatMap(n => n.members.map(m => [label(n.name), m.container.slice(0, 12), m.pod, m.service,
      m.addresses.join(", "), [m.state, m.state === "live" ? "good" : ""]])));
  table("drops", ["network", "rule", "chain", "packets", "bytes"],
    all.drops.map(d => [d.network === null ? "-" : d.network || "flat mesh", d.rule, `${d.family} ${d.chain}`,
      [d.packets, "number"], [bytes(d.bytes), "number"]]));
}
const source = new EventSource("live");
source.onmessage = event => {
  show(JSON.parse(event.data));
  $("live").textContent = `live, changed at ${new Date().toLocaleTimeString()}`;
};
source.onerror = () => { $("live").textContent = "not connected: what is shown is old"; };
"""

BODY = """
<h1 id="name">zlayer-cni</h1><div id="summary" class="soft"></div>
<div id="fence"></div><div id="error" class="bad"></div><div id="live" class="soft">connecting</div>
<noscript>This page needs JavaScript. <code>zlayer-cni status</code> tells the same.</noscript>
<h2>Problems</h2><div id="problems"></div>
<h2>Nodes and tunnels</h2><div id="picture"></div><div id="tunnels"></div>
<h2>Networks</h2><div id="networks"></div>
<h2>Members</h2><div id="members"></div>
<h2>Drops</h2><div id="drops"></div>
"""


def _hash(text: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"


PAGE = (
    '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>zlayer-cni</title>'
    '<meta name="viewport" content="width=device-width"><link rel="icon" href="data:,">'
    f"<style>{STYLE}</style></head>\n<body>{BODY}<script>{SCRIPT}</script></body></html>\n"
).encode()
POLICY = "; ".join(
    (
        "default-src 'none'",
        f"script-src {_hash(SCRIPT)}",
        f"style-src {_hash(STYLE)}",
        "connect-src 'self'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
"""The content security policy: the script and the style above, requests to this server, and nothing else."""
