"""Templates: how causal rerankers are asked, as data, a .toml file each. A person's own are files of the same form."""

from __future__ import annotations

import tomllib
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, ValidationError, model_validator

from tasks.errors import UsageError
from tasks.options import Line, Message, Template, Text, explain

SUFFIX = ".toml"


class Example(Message):
    """A pair, and the prompt that the template makes of it, as its source prints it."""

    instruction: Text | None = None
    query: Text
    document: Text
    prompt: Text


class Reference(Message):
    """A score that a published model gives a pair, by which a loaded one is checked.

    Attributes:
        model: hub id of the model.
        tolerance: largest difference that precision and kernels explain.
    """

    model: Line
    instruction: Text | None = None
    query: Text
    document: Text
    score: Annotated[float, Field(allow_inf_nan=False)]
    tolerance: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1e-3


class TemplateFile(Template):
    """A template, and what its file says about it. Jobs carry the template alone.

    Attributes:
        models: hub ids of the models that were trained with it.
        source: where it was published.
        example: what its parts must make of a pair.
        references: what models must give.
    """

    models: Annotated[tuple[Line, ...], Field(max_length=256)] = ()
    source: Line
    example: Example | None = None
    references: Annotated[tuple[Reference, ...], Field(max_length=256)] = ()

    @model_validator(mode="after")
    def _renders_example(self) -> Self:
        example = self.example
        if example and "".join(self.render(example.query, example.document, example.instruction)) != example.prompt:
            raise ValueError("example.prompt is not what the parts make of the example's texts")
        return self


@cache
def names() -> tuple[str, ...]:
    """Return the names of the templates that come with penstock."""
    files = resources.files(__name__).iterdir()
    return tuple(sorted(file.name.removesuffix(SUFFIX) for file in files if file.name.endswith(SUFFIX)))


def read_template(name_or_path: str) -> TemplateFile:
    """Return a template by its name, or read it from a file.

    Raises:
        UsageError: there is none of that name, or the file cannot be read or is no template; the line says which.
    """
    if name_or_path in names():
        return _shipped(name_or_path)
    if not name_or_path.endswith(SUFFIX):
        raise UsageError(
            f"--template {name_or_path}: there is none of this name. There are: {', '.join(names())}; or name a "
            f"{SUFFIX} file of your own."
        )
    try:
        text = Path(name_or_path).read_text(encoding="utf-8")
    except OSError as exc:
        raise UsageError(f"--template {name_or_path}: it cannot be read ({exc.strerror}).") from exc
    except ValueError as exc:  # no UTF-8, or a name with a null character
        raise UsageError(f"--template {name_or_path}: it is not a text file in UTF-8.") from exc
    return _parse(text, name_or_path)


def template_for(model: str) -> TemplateFile | None:
    """Return the template that a model was trained with, by its hub id; None if that is not known."""
    return next((template for template in map(_shipped, names()) if model in template.models), None)


@cache
def _shipped(name: str) -> TemplateFile:
    return _parse(resources.files(__name__).joinpath(name + SUFFIX).read_text(encoding="utf-8"), name)


def _parse(text: str, place: str) -> TemplateFile:
    try:
        return TemplateFile.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as exc:
        raise UsageError(f"--template {place}: it is not TOML: {exc}.") from exc
    except ValidationError as exc:
        raise UsageError(f"--template {place}: {explain(exc)}.") from exc
