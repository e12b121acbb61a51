"""README and docs: every command parses, every name exists, every link leads somewhere, every error line is told."""

from __future__ import annotations

import argparse
import ast
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import documented
import pytest
import yaml
from documented import CANNOT, ELSEWHERE, PAGES, ROOT, all_commands, blocks, entry, inline
from ray.scripts.scripts import cli

from latentsync_ray.__main__ import COMMANDS, parser_of
from latentsync_ray.config.fields import fields_of
from latentsync_ray.config.search import SearchConfig
from latentsync_ray.config.searchfiles import load_search
from latentsync_ray.latentsync.config import LatentSyncRecipe
from latentsync_ray.latentsync.syncnet.config import SyncNetConfig

DOCS = ROOT / "docs"
MAKEFILE = (ROOT / "Makefile").read_text()
OURS = [command for command in all_commands() if command.words[0] == "latentsync-ray"]


@cache
def names(*schemas: type) -> frozenset[str]:
    return frozenset(field.name for schema in schemas for field in fields_of(schema))


def is_field(name: str, *schemas: type) -> bool:
    """Whether a dotted name can be given; those in a mapping, such as `model`, are free."""
    name = name.removeprefix("param_space.").removeprefix("overrides.")
    return name in names(*schemas) or ".model." in name


@pytest.mark.parametrize("command", OURS, ids=lambda command: f"{command.page.name}: {command.text}")
def test_a_command_can_be_typed(command: documented.Command, monkeypatch: pytest.MonkeyPatch) -> None:
    name, *arguments = command.words[1:]
    if name == "--help" or (not arguments and entry(command) is None):
        assert name in ("--help", *COMMANDS)  # a command that is only mentioned
        return
    parser = parser_of(name)
    parse = parser.parse_args if parser._subparsers else parser.parse_intermixed_args
    options = vars(parse(arguments)) if arguments else {}
    schemas = (SyncNetConfig,) if name == "train-syncnet" else (SearchConfig, LatentSyncRecipe)
    for override in options.get("overrides") or ():
        key, equals, _ = override.partition("=")
        assert equals and is_field(key, *schemas), override
    for word in arguments:
        if word.startswith(("configs/", "search_spaces/")):
            assert (ROOT / word).exists(), word


def test_an_option_in_the_text_is_one_of_a_command() -> None:
    known = {option for command in COMMANDS for option in options_of(parser_of(command))}
    for page in PAGES:
        for text in inline(page):
            if text.startswith("--"):
                assert text.split()[0].rstrip(":") in known, text


def options_of(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        yield from action.option_strings
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from options_of(inner)


def test_every_other_command_is_a_make_target_or_is_listed() -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", MAKEFILE, re.MULTILINE))
    variables = set(re.findall(r"^([A-Z]+) [:?]?=", MAKEFILE, re.MULTILINE))
    for command in all_commands():
        program, *arguments = command.words
        if program == "make":
            assert arguments[0] in targets, command.text
            assert {argument.partition("=")[0] for argument in arguments[1:]} <= variables
        elif program not in ("latentsync-ray", "cd"):
            assert entry(command) in {*ELSEWHERE, *CANNOT}, command.text


def test_ray_s_own_commands_can_be_typed() -> None:
    for command in all_commands():
        if command.words[0] == "ray":
            name, *arguments = command.words[1:]
            arguments = arguments[: arguments.index(">")] if ">" in arguments else arguments
            cli.commands[name].make_context(name, arguments)  # raises what is wrong with them


def test_what_is_listed_is_used_and_its_tests_exist() -> None:
    used = {entry(command) for command in all_commands()}
    assert {*ELSEWHERE, *CANNOT} - used == set()
    for test in ELSEWHERE.values():
        file, _, name = test.partition("::")
        assert f"\ndef {name}(" in (ROOT / file).read_text(), test


def test_the_phony_targets_are_all_targets() -> None:
    (phony,) = re.findall(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)
    assert sorted(phony.split()) == sorted(set(re.findall(r"^([a-z0-9-]+):", MAKEFILE, re.MULTILINE)))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if not target.startswith("https://"):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_names_are_those_of_fields(page: Path) -> None:
    """Those in text that begin with a section, and those that are given a value."""
    known = names(SearchConfig, LatentSyncRecipe, SyncNetConfig)
    last = {name.rpartition(".")[2] for name in known}
    sections = {name.partition(".")[0] for name in known if "." in name}
    lines = set(re.findall(QUOTED, page.read_text(), re.MULTILINE))
    for text in (text for text in inline(page) if text not in lines):
        dotted = re.fullmatch(r"[a-z_]+(\.[a-z_]+)+", text) and not text.endswith((".csv", ".json", ".yaml"))
        if dotted and text.partition(".")[0] in sections:
            assert text in known, text
        for name in re.findall(r"^([a-z_.]+)(?:: |=)", text):
            assert name in known or name in last or name in EXPLAINED, text


EXPLAINED = ("error", "results", "training")
"""What stands before a colon and is no field: a line that a command prints, and an own training's module."""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_settings_can_be_read(page: Path, tmp_path: Path) -> None:
    for number, block in enumerate(blocks(page, "yaml")):
        if block.startswith("recipe: ../configs/"):
            space = tmp_path / f"space{number}.yaml"
            space.write_text(block.replace("../configs", str(ROOT / "configs")))
            load_search(space)
        else:
            for line in block.splitlines():
                for name, value in yaml.safe_load(line).items():
                    inner = value if isinstance(value, dict) else {}
                    assert all(is_field(f"{name}.{key}", LatentSyncRecipe) for key in inner) and (
                        is_field(name, LatentSyncRecipe)
                    )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_compiles(page: Path) -> None:
    for block in blocks(page, "python"):
        ast.parse(block)


def test_both_readmes_have_the_same_commands_settings_and_links() -> None:
    english, chinese = ROOT / "README.md", ROOT / "README.zh.md"

    def content(page: Path) -> list[object]:
        links = Counter(re.findall(r"\]\(([^)]+)\)", page.read_text())) - Counter(["README.md", "README.zh.md"])
        return [[command.words for command in documented.commands(page)], blocks(page, "yaml"), links]

    assert content(english) == content(chinese)


def test_each_of_our_words_is_explained_once() -> None:
    terms = re.findall(r"^\*\*([^*]+)\.\*\*", (DOCS / "concepts.md").read_text(), re.MULTILINE)
    words = [word for term in terms for word in term.lower().split(", ")]
    assert len(words) == len(set(words)) >= 25
    for word in (
        "segment",
        "key",
        "lineage",
        "store",
        "engine",
        "worker group",
        "report boundary",
        "length",
        "trunk",
    ):
        assert word in words


def test_error_lines_are_those_of_the_code() -> None:
    """What stands in the first column of docs/troubleshooting.md, `…` for what differs."""
    quoted = re.findall(QUOTED, (DOCS / "troubleshooting.md").read_text(), re.MULTILINE)
    assert len(quoted) > 30
    told = "\0".join(literals())
    for line in quoted:
        phrases = [part.strip() for part in re.split(r"…|: |\(|; see", line) if " " in part.strip()]
        assert phrases or line.startswith("Key"), line
        for phrase in phrases:
            assert phrase in told or phrase in NOT_OURS, line


QUOTED = r"^\| `([^`]+)` \|"
NOT_OURS = ("command not found", "not in")
"""Told by a shell, and by OmegaConf."""


def literals() -> list[str]:
    """All texts of the package; where something is inserted there is a gap."""
    found = []
    for file in (ROOT / "latentsync_ray").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            match node:
                case ast.JoinedStr(values=values):
                    found.append("".join(part.value if isinstance(part, ast.Constant) else "\0" for part in values))
                case ast.Constant(value=str(text)):
                    found.append(text)
    return found
