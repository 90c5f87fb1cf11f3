"""Templates: how causal rerankers are asked, as data, a .toml file each. A person's own are files of the same form."""

from __future__ import annotations

import tomllib
from functools import cache
from importlib import resources
from pathlib import Path

from pydantic import ValidationError

from tasks.errors import UsageError
from tasks.options import Template, explain

SUFFIX = ".toml"


@cache
def names() -> tuple[str, ...]:
    """Return the names of the templates that come with penstock."""
    files = resources.files(__name__).iterdir()
    return tuple(sorted(file.name.removesuffix(SUFFIX) for file in files if file.name.endswith(SUFFIX)))


def read_template(name_or_path: str) -> Template:
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


def template_for(model: str) -> Template | None:
    """Return the template that a model was trained with, by its hub id; None if that is not known."""
    return next((template for template in map(_shipped, names()) if model in template.models), None)


@cache
def _shipped(name: str) -> Template:
    return _parse(resources.files(__name__).joinpath(name + SUFFIX).read_text(encoding="utf-8"), name)


def _parse(text: str, place: str) -> Template:
    try:
        return Template.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as exc:
        raise UsageError(f"--template {place}: it is not TOML: {exc}.") from exc
    except ValidationError as exc:
        raise UsageError(f"--template {place}: {explain(exc)}.") from exc
