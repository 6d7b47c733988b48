"""What the pages say to type exists: commands with their options, scripts, problem codes."""

from __future__ import annotations

import argparse
import contextlib
import io
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from cni import problems
from cni.cli import parser as tool
from cni.daemon import main as daemon

ROOT = Path(__file__).resolve().parents[2]
OUTPUT = "screens.md"  # what commands print: scripts/screens typed them
PAGES = [
    *(page for page in sorted((ROOT / "docs").glob("*.md")) if page.name != OUTPUT),
    *(ROOT / name for name in ("README.md", "SECURITY.md", "CHANGELOG.md")),
]
SOURCES = sorted((ROOT / "cni").rglob("*.py"))
FENCED = re.compile(r"^```\w*\n(.*?)^```", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`([^`\n]+)`")
TYPED = re.compile(r"^(?:node\d# |[$#] )?(?:sudo )?(?:[A-Z]+=\S+ )?(?:\S*/)?zlayer-cni (?=[a-z-])(.*)$")
"""A command as it is typed, with a prompt or without."""
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]+")
SCRIPT = re.compile(r"(?<![\w./-])scripts/([a-z-]+)(?![\w./-])")
CODE = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)+")
"""A word with the form of a problem's code."""
NO_COMMAND = {
    "zlayer-cni record 1": "the first line of what a node signs",
    "zlayer-cni COMMAND [--help]": "stands for all commands",
}
OF_OTHER_PROGRAMS = {
    "--allocate-node-cidrs": "kube-controller-manager",
    "--cluster-cidr": "kube-proxy",
    "--cni-path": "nerdctl",
    "--ctstate": "iptables",
    "--dns": "nerdctl",
    "--enable-grpc-gateway": "etcd",
    "--ip": "podman, nerdctl",
    "--mac-address": "podman, nerdctl",
}
AREAS = {code.partition("-")[0] for code in problems.REGISTRY}
"""The words that codes begin with. A code that was renamed or removed begins with one of them too."""
NO_PROBLEM = {
    "fence-dormant": "a fault that the connectivity test names",
    "route-missing": "a fault that the connectivity test names",
    "endpoint-independent": "a NAT's mapping or filtering (RFC 4787)",
    "peer-health": "an event",
    "peer-endpoint": "an event",
    "path-measured": "an event",
    "peer-forget": "a request of the tool",
    "peer-remove": "a request of the tool",
    "wireguard-go": "a WireGuard engine",
}


def words_of(command: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The commands of the tool, by word."""
    (commands,) = (action for action in command._actions if isinstance(action, argparse._SubParsersAction))
    return dict(commands.choices)


COMMANDS = words_of(tool.parser())
OPTIONS = {"--version"} | {
    option
    for parser in (*COMMANDS.values(), daemon.parser())
    for action in parser._actions
    for option in action.option_strings
}


def spans(page: str) -> list[str]:
    return SPAN.findall(FENCED.sub("", page))


def commands(page: str) -> Iterator[str]:
    """The commands that a page says to type: in its fenced lines, and in code within a sentence."""
    fenced = (line.strip() for block in FENCED.findall(page) for line in block.splitlines())
    for text in (*fenced, *spans(page)):
        if text in NO_COMMAND:
            continue
        typed = TYPED.match(text)
        first, _, rest = text.partition(" ")
        if typed:
            yield re.split(r"\s+(?:#|<-)", typed.group(1))[0]
        elif rest and first in COMMANDS:
            yield text


def refusal(command: str) -> str:
    """Why the program refuses a command line; empty if it takes it. A word in capitals stands for any value, and a
    sentence may leave arguments out."""
    words = [re.sub(r"^[A-Z]+$", "/VALUE", word) for word in re.sub(r"\[[^ ]*\]+|\[.*?\]", "", command).split()]
    if words == ["--version"]:
        return ""
    parser, arguments = (daemon.parser(), words[1:]) if words[0] == "overlayd" else (tool.parser(), words)
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
            parser.parse_args(arguments)
    except SystemExit as end:
        why = errors.getvalue().strip().splitlines()[-1] if end.code else ""
        return "" if "the following arguments are required" in why else why
    return ""


def refused(page: str) -> list[str]:
    return [f"{command}: {why}" for command in commands(page) if (why := refusal(command))]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_a_command_of_a_page_is_taken(path: Path) -> None:
    assert refused(path.read_text("utf-8")) == []


def test_every_page_of_commands_is_read() -> None:
    read = {path.name: list(commands(path.read_text("utf-8"))) for path in PAGES}
    assert {"status", "why web vault", "install"} <= set(read["README.md"])
    assert "peer forget --json" in read["cli.md"]
    assert sum(map(len, read.values())) > 60


@pytest.mark.parametrize(
    "page", ["`zlayer-cni peer join`", "```sh\nzlayer-cni stauts\n```", "`status --jsn`", "`overlayd --chek`"]
)
def test_a_command_that_does_not_exist_is_seen(page: str) -> None:
    assert len(refused(page)) == 1


def test_the_page_of_commands_has_a_heading_for_each() -> None:
    headings = " ".join(re.findall(r"^## (.*)$", (ROOT / "docs/cli.md").read_text("utf-8"), re.MULTILINE))
    assert [word for word in COMMANDS if not re.search(rf"(?<![\w-]){word}\b", headings)] == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_command_of_a_message_exists(path: Path) -> None:
    """Messages have values in braces, so only the command's word is compared."""
    named = re.findall(r"`zlayer-cni ([a-z][a-z-]*)", path.read_text("utf-8").replace("`zlayer-cni record 1`", ""))
    assert [word for word in named if word not in COMMANDS] == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_an_option_of_a_page_exists(path: Path) -> None:
    page = path.read_text("utf-8")
    of_scripts = {option for script in SCRIPT.findall(page) for option in script_options(script)}
    of_tests = set(re.findall(r'"(--[a-z-]+)"', (ROOT / "tests/chaos/conftest.py").read_text("utf-8")))
    known = OPTIONS | OF_OTHER_PROGRAMS.keys() | of_scripts | of_tests
    alone = [span.split("=")[0].split(" ")[0] for span in spans(page) if OPTION.match(span)]
    assert [option for option in alone if option not in known] == []


def script_options(name: str) -> list[str]:
    """The options that a script's text names; fails if there is no such script."""
    return OPTION.findall((ROOT / "scripts" / name).read_text("utf-8"))


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_a_script_of_a_page_takes_its_option(path: Path) -> None:
    page = path.read_text("utf-8")
    for text in (*spans(page), *(line for block in FENCED.findall(page) for line in block.splitlines())):
        command = re.split(r"\s#", text)[0]
        for script in SCRIPT.findall(command):
            assert set(OPTION.findall(command)) <= {"--help", *script_options(script)}, text


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_a_problem_of_a_page_is_in_the_registry(path: Path) -> None:
    coded = [span for span in spans(path.read_text("utf-8")) if CODE.fullmatch(span)]
    codes = [span for span in coded if span.partition("-")[0] in AREAS]
    assert [code for code in codes if code not in problems.REGISTRY and code not in NO_PROBLEM] == []


def test_no_exception_is_left_over() -> None:
    pages = "\n".join(path.read_text("utf-8") for path in PAGES)
    assert [text for text in (*NO_COMMAND, *OF_OTHER_PROGRAMS, *NO_PROBLEM) if text not in pages] == []
