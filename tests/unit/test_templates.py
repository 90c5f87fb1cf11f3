import tomllib
from importlib import resources
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tasks import templates
from tasks.errors import UsageError
from tasks.options import ScoreOptions, Template
from tasks.templates import TemplateFile, names, read_template, template_for

OWN = """
name = "own"
source = "me"
instruction = "Judge."
parts = ["{instruction} {query}", "|{document}", "="]
positive = "yes"
negative = "no"
formula = "probability"
"""
EXAMPLE = '[example]\nquery = "Q"\ndocument = "D"\nprompt = "Judge. Q|D="\n'
REFERENCE = '[[references]]\nmodel = "a/b"\nquery = "Q"\ndocument = "D"\nscore = 1.0\n'


@pytest.mark.parametrize("name", names())
def test_a_shipped_template_is_named_like_its_file_and_has_source_and_example(name):
    """Each file says where it is from, and is checked against its own example when it is read."""
    template = read_template(name)
    assert template.name == name
    assert template.source
    assert template.example is not None


def test_rerankers_whose_text_is_known_have_a_template_by_their_hub_ids():
    """A worker with one of these models needs no option; Lychee's text is not verified, so it has to be named."""
    found = {
        "Qwen/Qwen3-Reranker-0.6B": "qwen3-reranker",
        "mixedbread-ai/mxbai-rerank-large-v2": "mxbai-rerank-v2",
        "BAAI/bge-reranker-v2-gemma": "bge-reranker-v2-gemma",
    }
    for model, name in found.items():
        template = template_for(model)
        assert template is not None
        assert template.name == name
    assert template_for("/models/qwen3-reranker") is None
    assert template_for("vec-ai/lychee-rerank") is None


def test_no_model_has_two_templates():
    """The hub id decides alone."""
    models = [model for name in names() for model in read_template(name).models]
    assert len(models) == len(set(models))


def test_what_is_not_verified_is_said_in_the_file():
    """The exact prompt of Lychee-Rerank could not be read."""
    text = (resources.files(templates) / "lychee-rerank.toml").read_text()
    assert text.startswith("# NOT VERIFIED")
    assert "not verified" in read_template("lychee-rerank").source


def test_a_template_travels_in_the_options_of_a_job():
    """What a file says arrives at the worker, which may not have the file."""
    options = ScoreOptions(template=read_template("bge-reranker-v2-gemma"))
    assert ScoreOptions.model_validate_json(options.model_dump_json()) == options


def test_only_what_rendering_and_the_formula_need_travels(tmp_path):
    """Examples and references are texts; and another comment on the same template makes no other job."""
    file = tmp_path / "own.toml"
    file.write_text(f'models = ["a/b"]\n{OWN}{EXAMPLE}{REFERENCE}')
    options = ScoreOptions(template=read_template(str(file)))
    assert type(options.template) is Template
    assert set(options.model_dump()["template"]) == {
        *("name", "parts", "instruction", "instruction_line"),
        *("adds_special_tokens", "positive", "negative", "formula"),
    }
    file.write_text(OWN)
    assert ScoreOptions(template=read_template(str(file))) == options
    with pytest.raises(ValidationError, match="example"):
        ScoreOptions.model_validate({"template": read_template(str(file)).model_dump()})


def test_a_file_of_ones_own_is_read_by_its_path(tmp_path):
    """The suffix tells a file from a name."""
    file = tmp_path / "own.toml"
    file.write_text(OWN)
    assert read_template(str(file)).render("Q", "D") == ("Judge. Q", "|D", "=")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("parts = [", "it is not TOML"),
        (OWN.replace("{document}", "{document}."), "must end its part"),
        (OWN.replace("{query}", ""), "parts must hold {query} and {document} once each"),
        (OWN.replace('negative = "no"', ""), "negative"),
        (OWN.replace('name = "own"', ""), "name: Field required"),
        (OWN + 'temperature = "0"', "temperature: Extra inputs are not permitted"),
        (OWN + EXAMPLE.replace("Judge. Q", "Judge.Q"), "example.prompt is not"),
        (OWN.replace("{query}", "{query}{query}"), "parts must hold {query} and {document} once each"),
        (OWN.replace("{query}", "{que").replace("|{doc", "ry}|{doc"), "parts must hold {query} and {document} once"),
        (OWN.replace('"="', '"{document}"'), "parts must hold {query} and {document} once each"),
        (OWN.replace('"="', '"{instruction}"'), "{instruction} may stand in parts once"),
        (OWN.replace("{instruction} ", "{instruction}{instruction}"), "{instruction} may stand in parts once"),
        ('instruction_line = "{instruction} {instruction}"' + OWN, "must stand in instruction_line once"),
        ('instruction_line = "Judge well."' + OWN, "must stand in instruction_line once"),
        (OWN.replace('"="', f'"{10_001 * "="}"'), "parts.2: String should have at most 10000"),
        (f"models = {['a/b'] * 257}" + OWN, "models: Tuple should have at most 256"),
        (OWN + REFERENCE + "tolerance = inf", "tolerance: Input should be a finite number"),
        (OWN + 257 * REFERENCE, "references: Tuple should have at most 256"),
    ],
)
def test_a_file_that_is_no_template_is_refused_in_one_line_that_names_what_is_wrong(tmp_path, text, says):
    """The reader of the line has written the file."""
    file = tmp_path / "own.toml"
    file.write_text(text)
    with pytest.raises(UsageError) as caught:
        read_template(str(file))
    assert says in str(caught.value)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["lychee", "", "no/such/file.toml", "."])
def test_a_template_that_is_not_there_is_refused_by_name(name):
    """The names that there are stand in the line, as nobody knows them by heart."""
    with pytest.raises(UsageError, match="--template") as caught:
        read_template(name)
    assert "lychee-rerank" in str(caught.value) or "No such file" in str(caught.value)


def test_a_file_that_is_not_utf_8_is_refused(tmp_path):
    """A spreadsheet under this name is no reason for a traceback."""
    file = tmp_path / "own.toml"
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="UTF-8"):
        read_template(str(file))


@given(query=st.text(), document=st.text(), instruction=st.text(min_size=1))
def test_texts_stand_in_a_prompt_as_they_are(query, document, instruction):
    """Braces in a text, and even the name of a place, are text."""
    template = TemplateFile(**tomllib.loads(OWN)).plain()
    for told in (instruction, "{query}{document}"):
        assert template.render(query, document, told) == (f"{told} {query}", f"|{document}", "=")
        assert template.render("{document}", document, told)[0] == f"{told} {{document}}"


@given(query=st.text(), document=st.text(), instruction=st.text())
def test_a_prompt_is_no_longer_than_its_texts_and_its_template(query, document, instruction):
    """Nothing that a job says is multiplied."""
    for template in map(read_template, names()):
        prompt = "".join(template.render(query, document, instruction))
        own = sum(map(len, (*template.parts, template.instruction_line, template.instruction)))
        assert len(prompt) <= own + len(query + document + instruction)


def test_no_instruction_leaves_no_line_for_one():
    """mxbai-rerank's own code leaves it out, rather than empty."""
    template = read_template("mxbai-rerank-v2")
    assert template.render("Q", "D")[1] == "query: Q"
    assert template.render("Q", "D", "Find code.")[1] == "instruction: Find code.\nquery: Q"


def test_a_template_is_in_the_installed_package():
    """Setuptools packs only what it is told to."""
    settings = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    assert "*.toml" in settings["tool"]["setuptools"]["package-data"]["*"]
