"""The site: every placeholder has a table, every page is in the navigation, and the tutorial runs as it is printed."""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from commands import bench

from inpbench.harness.records import RecordStore

REPOSITORY = Path(__file__).resolve().parents[1]
DOCS = REPOSITORY / "docs"


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_hooks", DOCS / "hooks.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=lambda path: str(path.relative_to(DOCS)))
def test_placeholders_are_filled(hooks: ModuleType, page: Path) -> None:
    text = hooks.on_page_markdown(page.read_text(encoding="utf-8"))
    assert "{{" not in text


def test_tables_come_from_the_code(hooks: ModuleType) -> None:
    table = hooks.parameters("inp_former")
    assert "| `inp_num` | `6` |" in table and table.count("\n") > 10 and "`crop_size=196`" in hooks.presets("inp_former")
    with pytest.raises(ValueError, match="unknown placeholder"):
        hooks.on_page_markdown("{{ nonsense }}")


def test_every_parameter_has_a_meaning_and_is_shown_as_set_takes_it() -> None:
    from inpbench.harness import meanings, params
    from inpbench.harness.registry import DATASETS, METHODS

    owners = [*map(METHODS.get, METHODS.names()), *map(DATASETS.get, DATASETS.names()), METHODS.get("anomalib.padim")]
    for owner in owners:
        shown = meanings.parameters(owner.params)
        assert [row.name for row in shown] == list(params.field_types(owner.params))
        assert not [row.name for row in shown if not row.meaning], owner.name
        kinds = params.field_types(owner.params)
        texts = {row.name: row.default for row in shown if row.default and kinds[row.name] is not str}
        assert params.build(owner.name, owner.params, texts) == owner.params(), owner.name
    for info in map(METHODS.get, METHODS.names()):
        for values in info.presets.values():
            texts = dict(change.split("=", 1) for change in meanings.changes(info.params, values))
            assert params.build(info.name, info.params, texts) == params.build(info.name, info.params, values), info.name


def test_the_choices_of_a_parameter_are_named() -> None:
    from inpbench.harness import meanings
    from inpbench.harness.registry import METHODS

    rows = {row.name: row for row in meanings.parameters(METHODS.get("pmad").params)}
    assert rows["scoring"].meaning.startswith("full, flow or nearest: ") and rows["tokenizer"].meaning.startswith("vqkd, dalle or")


def test_the_readme_tells_the_settings_of_every_method() -> None:
    from inpbench.harness.api import MethodInfo
    from inpbench.harness.registry import METHODS

    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    for name in METHODS.names():
        if METHODS.origin(name) != "inpbench":
            continue
        [row] = re.findall(rf"^\| `{name}` \|.*\|(.*)\|$", readme, re.M)
        said = set(re.findall(r"`(\w+)`", row))
        assert (MethodInfo.SETTINGS_ALL - said if "all but" in row else said) == METHODS.get(name).settings, name


def test_every_page_is_in_the_navigation() -> None:
    listed = set(re.findall(r"[\w/]+\.md", (REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8")))
    assert listed == {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}


def test_every_threat_is_proved_by_a_test_that_exists() -> None:
    """The table of robustness.md: no row without a test, no test that is not there, none of the hostile ones forgotten."""
    sources = {path.name: path.read_text(encoding="utf-8") for path in (REPOSITORY / "tests").glob("test_*.py")}
    known = set(re.findall(r"^def (test_\w+)", "\n".join(sources.values()), re.M))
    rows = re.findall(r"^\| (?!threat|---)(.+) \|$", (DOCS / "robustness.md").read_text(encoding="utf-8"), re.M)
    assert len(rows) > 35
    for row in rows:
        threat, answer, proof = row.split(" | ")
        named = re.findall(r"`(test_\w+)`", proof)
        assert threat and answer and named and set(named) <= known, (threat, set(named) - known)


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="mkdocs is not installed (pip install -e .[dev])")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    answer = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    assert "soft mining" in (tmp_path / "site" / "methods" / "inp_former.html").read_text(encoding="utf-8")


def commands_of(page: Path) -> list[list[str]]:
    blocks = re.findall(r"```console\n(.*?)```", page.read_text(encoding="utf-8"), re.S)
    return [shlex.split(line.removeprefix("$ ")) for block in blocks for line in block.splitlines() if line.startswith("$ ")]


def typed(page: Path) -> list[list[str]]:
    """Every command line of a page that begins with `bench`: indented, or after a prompt."""
    text = page.read_text(encoding="utf-8").replace("\\\n", "")  # lines that go on
    lines = re.findall(r"^(?:    |\$ )(bench .*)$", text, re.M)
    return [shlex.split(line, comments=True) for line in lines]


PAGES = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_every_command_that_a_page_names_exists(page: Path) -> None:
    """Its verb and each of its options; and its choices, where they have names of this project."""
    from typer.main import get_command

    from inpbench.harness.cli import app
    from inpbench.harness.registry import DATASETS, METHODS
    from inpbench.harness.settings import SETTINGS

    names = {"--methods": METHODS.names(), "--dataset": DATASETS.names(), "--setting": SETTINGS, "--source": DATASETS.names()}
    for words in typed(page):
        command: Any = get_command(app)
        rest = words[1:]
        while rest and hasattr(command, "commands"):
            assert rest[0] in command.commands, words
            command, rest = command.commands[rest[0]], rest[1:]
        options = {name for param in command.params for name in (*param.opts, *param.secondary_opts)} | {"--help"}
        for place, word in enumerate(rest):
            value = "".join(rest[place + 1 : place + 2])
            assert not word.startswith("--") or word.split("=")[0] in options, (word, words)
            if word in names and value.islower():
                assert all(
                    name in names[word] or name == "mean_image" or name.startswith("anomalib.") for name in value.split(",")
                ), (value, words)


def test_commands_are_found_on_the_pages() -> None:
    assert sum(len(typed(page)) for page in PAGES) > 50


def test_the_readme_is_short() -> None:
    """The first page is read whole or not at all: what is longer has a page of its own in docs/."""
    assert len((REPOSITORY / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_links_between_pages_lead_somewhere() -> None:
    links = [
        (page, link) for page in PAGES for link in re.findall(r"\]\(([^)#:]+?)(?:#[\w-]+)?\)", page.read_text(encoding="utf-8"))
    ]
    assert len(links) > 15
    for page, link in links:
        assert (page.parent / link).exists(), (page.name, link)


@pytest.mark.slow
def test_the_tutorial_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    commands = commands_of(DOCS / "tutorial.md")
    assert len(commands) == 10
    for command in commands:
        assert command[0] == "bench"
        records = RecordStore(Path("runs")).all(method="dinomaly").records
        arguments = [records[0].id if word == "RECORD" else word for word in command[1:]]
        outcome = bench(*arguments)
        assert outcome.code == 0, (command, outcome.err)
    assert Path("report.html").is_file() and list(Path("history").glob("*.svg"))
