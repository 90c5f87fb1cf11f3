"""The documentation: complete, and without dead links."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest
import typer

from producer.cli import app
from producer.commands import (
    bench,
    doctor,
    encode,
    jobs,
    parked,
    plan_model,
    recover,
    remove,
    report,
    score,
    verify,
    worker,
)
from tasks.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]

#: A Markdown link and its target; pictures look alike.
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
#: A block of code, in which nothing is a link or a heading.
BLOCK = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


@cache
def command():
    """Return the whole command with its subcommands."""
    if not app.registered_commands:
        for module in (encode, score, worker, plan_model, jobs, verify, remove, recover, parked, doctor, bench, report):
            module.register(app)
    return typer.main.get_command(app)


def commands():
    """Return the subcommands: name -> command; those of a group under both names."""
    found = {}
    for name, some in command().commands.items():
        inner = getattr(some, "commands", None)
        found |= {f"{name} {own}": each for own, each in inner.items()} if inner else {name: some}
    return found


def options():
    """Return (subcommand, option) for every option, ``--help`` aside."""
    return [
        (name, option)
        for name, found in commands().items()
        for parameter in found.params
        for option in (*parameter.opts, *parameter.secondary_opts)
        if option.startswith("-") and option != "--help"
    ]


def prose(page):
    """Return a page without its code blocks."""
    return BLOCK.sub("", page.read_text(encoding="utf-8"))


def table(page, heading):
    """Return the rows of the first table below a heading, each as its cells."""
    section = re.split(r"^#+ ", page.read_text(encoding="utf-8").split(f"# {heading}\n", 1)[1], flags=re.MULTILINE)[0]
    rows = [line.strip("|").split(" | ") for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows[2:]]


def anchors(page):
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def shown_default(name):
    """Return how the documentation writes the default of a setting."""
    default = Settings.model_fields[name].default
    if name == "state_dir":
        return "`~/.local/state/penstock`"
    if default is None:
        return "none"
    return f"`{default:g}`" if isinstance(default, float) else f"`{default}`"


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_stands_in_the_configuration_page(name):
    """With its variable and its default, and a meaning."""
    rows = [row for row in table(DOCS / "configuration.md", "All settings") if row[0] == f"`{name}`"]
    assert len(rows) == 1
    _, variable, default, reader, meaning = rows[0]
    assert variable == f"`PENSTOCK_{name.upper()}`"
    assert default == shown_default(name)
    assert reader in {"client", "worker", "both"}
    assert meaning


def test_the_configuration_page_names_no_setting_that_is_gone():
    """Its table has the settings in their order and no others."""
    names = [row[0].strip("`") for row in table(DOCS / "configuration.md", "All settings")]
    assert names == list(Settings.model_fields)


def test_the_workers_options_stand_beside_their_settings():
    """Each option of the worker names the setting that it sets; three of them start nothing."""
    rows = table(DOCS / "configuration.md", "The worker's options and variables")
    found = {option.strip("`"): setting.strip("`") for option, setting in rows}
    assert set(found) == {option for name, option in options() if name == "worker"} - {"--drain", "--plan", "--json"}
    assert set(found.values()) <= set(Settings.model_fields)


@pytest.mark.parametrize("name", commands())
def test_every_subcommand_is_mentioned(name):
    """Somewhere in README or docs, as a person would type it or in a list of commands."""
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert re.search(rf"penstock {name}\b", text)


@pytest.mark.parametrize(("name", "option"), options())
def test_every_option_is_mentioned(name, option):
    """Somewhere in README or docs, and not only as the beginning of a longer one."""
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", text), f"{name} {option}"


@pytest.mark.parametrize("name", commands())
def test_every_command_has_help_with_an_example(name):
    """One that begins with the command itself, and every option says what it does."""
    found = commands()[name]
    assert found.help
    assert re.search(rf"penstock {name}\b", found.epilog or "")
    assert [parameter.name for parameter in found.params if not getattr(parameter, "help", None)] == []


@pytest.mark.parametrize("name", ["quickstart", "configuration", "architecture", "security", "glossary", "scale"])
def test_the_readme_leads_to_every_page(name):
    """A page that nothing leads to is not read."""
    assert f"(docs/{name}.md)" in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_relative_link_leads_somewhere(page):
    """To a file that is there, and to one of its headings if it names one."""
    dead = []
    for target in LINK.findall(prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        leads_to = (page.parent / path).resolve() if path else page
        if not leads_to.exists() or (anchor and anchor not in anchors(leads_to)):
            dead.append(target)
    assert dead == []


@pytest.mark.parametrize("word", [row[0] for row in table(DOCS / "architecture.md", "Words")])
def test_the_glossary_holds_each_word_of_the_architecture(word):
    """A word has one meaning, wherever it is looked up."""
    assert word in [row[0] for row in table(DOCS / "glossary.md", "Glossary")]


def test_the_glossary_is_in_the_order_of_the_alphabet():
    """So that a word is found without searching, and stands there once."""
    words = [row[0].lower() for row in table(DOCS / "glossary.md", "Glossary")]
    assert words == sorted(set(words))
