"""`zlayer-cni completion SHELL` and `zlayer-cni man [COMMAND]`: a shell's completion, and the manual pages, from the
text of `--help`."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import NamedTuple


class Word(NamedTuple):
    """One command: its help, its options with their help, and the words that may follow it."""

    name: str
    help: str
    options: tuple[tuple[str, str], ...]
    choices: tuple[str, ...]


def words(whole: argparse.ArgumentParser) -> Iterator[Word]:
    """The commands of the parser."""
    (sub,) = (action for action in whole._actions if isinstance(action, argparse._SubParsersAction))
    helps = {action.dest: action.help or "" for action in sub._choices_actions}
    for name, parser in sub.choices.items():
        options = [
            (option, _plain(parser, action))
            for action in parser._actions
            for option in action.option_strings
            if option.startswith("--")
        ]
        choices = [str(c) for a in parser._actions if not a.option_strings for c in a.choices or () if c]
        yield Word(name, helps[name], tuple(options), tuple(choices))


def _plain(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    """An option's help, with its defaults filled in."""
    if not action.help:
        return ""
    return parser._get_formatter()._expand_help(action)


def script(shell: str, whole: argparse.ArgumentParser) -> str:
    """The completion of one shell."""
    return {"bash": _bash, "zsh": _zsh, "fish": _fish}[shell](list(words(whole)))


def _bash(commands: list[Word]) -> str:
    cases = "\n".join(
        f"        {word.name}) found='{' '.join([*word.choices, *(option for option, _ in word.options)])}' ;;"
        for word in commands
    )
    names = " ".join(word.name for word in commands)
    return f"""\
# bash completion for zlayer-cni: source it, or put it into /etc/bash_completion.d
_zlayer_cni() {{
    local found='{names} --help --version' word=${{COMP_WORDS[1]}}
    COMPREPLY=()
    if ((COMP_CWORD > 1)); then
        case $word in
{cases}
        *) found='' ;;
        esac
    fi
    mapfile -t COMPREPLY < <(compgen -W "$found" -- "${{COMP_WORDS[COMP_CWORD]}}")
    ((${{#COMPREPLY[@]}})) || compopt -o default
}}
complete -F _zlayer_cni zlayer-cni
"""


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace("'", "'\\''").replace("[", "(").replace("]", ")").replace(":", " -")


def _zsh(commands: list[Word]) -> str:
    names = "\n".join(f"    '{word.name}:{_quoted(word.help)}'" for word in commands)
    cases = []
    for word in commands:
        options = [f"'{option}[{_quoted(text)}]'" for option, text in word.options]
        choices = [f"'*:word:({' '.join(word.choices)})'"] if word.choices else ["'*:file:_files'"]
        cases.append(f"    {word.name}) _arguments {' '.join([*options, *choices])} ;;")
    return f"""\
#compdef zlayer-cni
# zsh completion for zlayer-cni: put it into a directory of $fpath as _zlayer-cni
local -a commands
commands=(
{names}
)
if ((CURRENT == 2)); then
    _describe command commands
else
    local word=${{words[2]}}
    shift words
    ((CURRENT--))
    case $word in
{chr(10).join(cases)}
    esac
fi
"""


def _fish(commands: list[Word]) -> str:
    lines = ["# fish completion for zlayer-cni: put it into ~/.config/fish/completions/zlayer-cni.fish"]
    lines.append("complete -c zlayer-cni -f -n __fish_use_subcommand")
    for word in commands:
        lines.append(f"complete -c zlayer-cni -n __fish_use_subcommand -a {word.name} -d '{_fish_text(word.help)}'")
        seen = f"'__fish_seen_subcommand_from {word.name}'"
        lines += [
            f"complete -c zlayer-cni -n {seen} -l {option[2:]} -d '{_fish_text(text)}'" for option, text in word.options
        ]
        if word.choices:
            lines.append(f"complete -c zlayer-cni -n {seen} -f -a '{' '.join(word.choices)}'")
    return "\n".join(lines) + "\n"


def _fish_text(text: str) -> str:
    return text.replace("\\", "\\\\").replace("'", "\\'")


# --- the manual ---------------------------------------------------------------------------------------------------


def manual(whole: argparse.ArgumentParser, command: str, version: str) -> str:
    """The manual page of the tool, or of one command, in man(7)'s language."""
    name = f"zlayer-cni-{command}" if command else "zlayer-cni"
    (sub,) = (action for action in whole._actions if isinstance(action, argparse._SubParsersAction))
    parser = sub.choices[command] if command else whole
    about = next((a.help or "" for a in sub._choices_actions if a.dest == command), "containers on a WireGuard overlay")
    lines = [
        f'.TH "{name.upper()}" "8" "" "zlayer-cni {version}" "zlayer-cni"',
        ".SH NAME",
        f"{_roff(name)} \\- {_roff(about)}",
        ".SH SYNOPSIS",
        _roff(parser.format_usage().removeprefix("usage: ").strip().replace("\n", " ")),
        ".SH DESCRIPTION",
        _roff(parser.description or about),
    ]
    if command:
        lines.append(".SH OPTIONS")
        for action in parser._actions:
            names = ", ".join(action.option_strings) or str(action.metavar or action.dest)
            lines += [".TP", f"\\fB{_roff(names)}\\fR", _roff(_plain(parser, action) or "see above")]
    else:
        lines.append(".SH COMMANDS")
        for word in words(whole):
            lines += [".TP", f"\\fB{_roff(word.name)}\\fR", _roff(word.help or "the overlay daemon")]
        lines += [".SH EXIT STATUS", ".nf", _roff(whole.epilog or ""), ".fi"]
    return "\n".join(lines) + "\n"


def _roff(text: str) -> str:
    escaped = text.replace("\\", "\\e").replace("-", "\\-")
    return "\n".join("\\&" + line if line.startswith((".", "'")) else line for line in escaped.splitlines())
