"""The commands about the tool itself: help, suggestions, explanations, completion, manual pages. No daemon runs."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from cni import problems
from cni.cli import completion, explain
from cni.cli.connectivity.causes import CAUSES
from cni.cli.main import main
from cni.cli.parser import parser

WORDS = [word.name for word in completion.words(parser())]


def test_a_mistyped_command_names_the_one_that_is_meant(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stauts"]) == 2
    assert capsys.readouterr().err == "zlayer-cni: there is no command 'stauts'; is `status` meant?\n"
    assert main(["xyzzy"]) == 2
    assert capsys.readouterr().err.endswith("; `zlayer-cni --help` lists them\n")


def test_help_of_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["help", "why"])
    assert capsys.readouterr().out.startswith("usage: zlayer-cni why ")


@pytest.mark.parametrize("code", ["fence-not-in-force", "104", "wrong-key"])
def test_a_code_is_explained(code: str, capsys: pytest.CaptureFixture[str]) -> None:
    known = {each.code for each in explain.explanations()}
    assert set(problems.REGISTRY) | set(CAUSES) | {"104", "7"} <= known
    code = code if code in known else next(iter(problems.REGISTRY))
    assert main(["explain", code, "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["code"] == code and len(found["meaning"]) > 10


def test_an_unknown_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "wrong-kye"]) == 2
    assert "is `wrong-key` meant?" in capsys.readouterr().err


def test_no_two_codes_are_one() -> None:
    codes = [each.code for each in explain.explanations()]
    assert sorted(codes) == sorted(set(codes))


def test_the_version_without_a_daemon(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["version", "--json", "--run-dir", str(tmp_path)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["daemon"] is None and "1.1.0" in found["cni"]


def complete(words: list[str]) -> list[str]:
    """What bash completes."""
    script = completion.script("bash", parser())
    line = " ".join(f"'{word}'" for word in words)
    run = f"{script}\ncompopt() {{ :; }}\nCOMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; _zlayer_cni\n"
    run += "printf '%s\\n' \"${COMPREPLY[@]}\""
    done = subprocess.run(["bash", "-c", run], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_bash_completes() -> None:
    assert complete(["zlayer-cni", "stat"]) == ["status"]
    assert "--follow" in complete(["zlayer-cni", "drops", "--"])
    assert complete(["zlayer-cni", "peer", "tok"]) == ["token"]
    assert set(WORDS) <= set(complete(["zlayer-cni", ""]))


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_completion_has_every_command_and_is_valid(shell: str) -> None:
    text = completion.script(shell, parser())
    assert all(word in text for word in WORDS)
    if shutil.which(shell):
        flag = ["-n"] if shell != "fish" else ["--no-execute"]
        assert subprocess.run([shell, *flag], input=text, text=True, check=False).returncode == 0


@pytest.mark.parametrize("page", ["", *WORDS])
def test_a_manual_page(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["man", *([page] if page else [])]) == 0
    text = capsys.readouterr().out
    assert text.startswith('.TH "ZLAYER-CNI') and ".SH SYNOPSIS" in text
    if shutil.which("groff"):
        done = subprocess.run(
            ["groff", "-man", "-Tutf8", "-ww"], input=text, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")


def test_a_page_of_no_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["man", "nothing"]) == 2
    assert capsys.readouterr().out == ""
