"""LASER's checkpoints: their names, their published files, and which languages they are for. Knows no torch."""

from __future__ import annotations

import difflib
import re
import tomllib
import unicodedata
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import resources
from pathlib import Path

from tasks.errors import ModelNotFound, UsageError
from tasks.messages import ModelSpec

LASER2 = "laser2"
#: What the name of a student begins with; its language's code follows.
STUDENT = "laser3-"
#: Languages that are named to somebody who gave one that there is not.
SUGGESTIONS = 3
#: Characters of a wrong language that are shown.
SHOWN_CHARS = 40


@dataclass(frozen=True)
class Published:
    """The published language list (languages.toml says its source).

    Attributes:
        laser2: codes of LASER2's languages.
        laser3: codes of the languages with a student.
        own_pieces: codes of the students that split texts in their own way.
        names: what languages are called, by code.
    """

    laser2: tuple[str, ...]
    laser3: tuple[str, ...]
    own_pieces: tuple[str, ...]
    names: dict[str, str]

    @cached_property
    def spelled(self) -> dict[str, str]:
        """Names as they are given: letters of ASCII, and ``_`` for blanks; a language is one word, as no text is."""
        plain = {code: unicodedata.normalize("NFKD", name) for code, name in self.names.items()}
        return {code: re.sub(r"[^a-z_-]", "", name.replace(" ", "_")) for code, name in plain.items()}

    def codes(self, language: str, among: Collection[str]) -> list[str]:
        """Return the codes that a language may mean: it is a code, a code's first part, or a name."""
        return [code for code in among if language in {code, code.partition("_")[0], self.spelled.get(code)}]

    def like(self, language: str) -> list[str]:
        """Return languages whose spelling is near to one that there is not."""
        codes = {*self.laser2, *self.laser3}
        known = {*codes, *(code.partition("_")[0] for code in codes), *self.spelled.values()}
        return difflib.get_close_matches(language, sorted(known), SUGGESTIONS)


@cache
def published() -> Published:
    """Return the published language list."""
    text = (resources.files(__package__) / "languages.toml").read_text(encoding="utf-8")
    lists = tomllib.loads(text)
    names = lists.pop("names")
    return Published(names=names, **{name: tuple(codes) for name, codes in lists.items()})


@dataclass(frozen=True)
class Files:
    """The files that one checkpoint is read from.

    Attributes:
        weights: numbers and settings; of LASER2 its vocabulary, too.
        pieces: how texts are split.
        vocabulary: numbers of the pieces; None for LASER2.
    """

    weights: str
    pieces: str
    vocabulary: str | None

    @property
    def names(self) -> list[str]:
        """All of them."""
        return [name for name in (self.weights, self.pieces, self.vocabulary) if name]


def files_of(checkpoint: str, folder: Path) -> Files:
    """Return the names of a checkpoint's files; a student without pieces of its own uses those of LASER2."""
    if checkpoint == LASER2:
        return Files("laser2.pt", "laser2.spm", None)
    stem = f"{checkpoint}.v1"
    has_own = _code(checkpoint) in published().own_pieces or (folder / f"{stem}.spm").is_file()
    pieces = stem if has_own else LASER2
    return Files(f"{stem}.pt", f"{pieces}.spm", f"{pieces}.cvocab")


def named_by(spec: ModelSpec, folder: Path) -> list[str]:
    """Return the checkpoints of a model: one, or several that are chosen from by language.

    Raises:
        ModelNotFound: the folder has none, or there is no such student.
    """
    name = spec.name.removeprefix("laser").removeprefix(":")
    if name.startswith("/"):
        if found := in_folder(folder):
            return found
        raise ModelNotFound(
            f"--model {spec}: the folder has neither laser2.pt nor a laser3-CODE.v1.pt; put LASER's published files "
            "into it.",
            model=str(spec),
        )
    if name in {"", LASER2}:
        return [name] if name else [LASER2, *(STUDENT + code for code in published().laser3)]
    language = _code(name)
    codes = published().codes(language, published().laser3)
    if len(codes) == 1:
        return [STUDENT + codes[0]]
    near = codes or [code for code in published().like(language) if code in published().laser3]
    hint = f"; there is {' or '.join(STUDENT + code for code in near)}" if near else ""
    problem = "may be several students" if codes else "is none of the published students"
    raise ModelNotFound(f"--model {spec} {problem}{hint}.", model=str(spec))


def in_folder(folder: Path) -> list[str]:
    """Return the checkpoints whose weights are in a folder, LASER2 first."""
    students = [path.name.removesuffix(".v1.pt") for path in sorted(folder.glob(f"{STUDENT}*.v1.pt"))]
    known = [name for name in students if re.fullmatch(rf"{STUDENT}\w+", name)]
    return [LASER2, *known] if (folder / "laser2.pt").is_file() else known


def choose(language: str, own: Collection[str] = ()) -> str:
    """Return the checkpoint for a language: its student, or else LASER2.

    Args:
        language: its code, the code's first part, or its name.
        own: students in somebody's folder, which go before those of the published list.

    Raises:
        UsageError: it is none of LASER's languages, or may mean several students'.
    """
    lists = published()
    codes = lists.codes(language, list(map(_code, own))) or lists.codes(language, lists.laser3)
    if len(codes) == 1:
        return STUDENT + codes[0]
    if codes:
        raise UsageError(f"language {language!r} may be {' or '.join(codes)}; say which")
    if lists.codes(language, lists.laser2):
        return LASER2
    near = lists.like(language[:SHOWN_CHARS])
    hint = f"did you mean {' or '.join(near)}?" if near else "languages are given as eng_Latn, eng or english"
    raise UsageError(f"LASER has no language {language[:SHOWN_CHARS]!r}; {hint}")


def refusal(checkpoint: str, language: str) -> str | None:
    """Say in one sentence why a checkpoint is not for a language, or return None."""
    own = published().laser2 if checkpoint == LASER2 else (_code(checkpoint),)
    if published().codes(language, own):
        return None
    try:
        other = choose(language)
    except UsageError as exc:
        return str(exc)
    return (
        f"language {language!r} is not {checkpoint}'s; use --model laser:{other}, or --model laser, which chooses by "
        "language"
    )


def _code(checkpoint: str) -> str:
    return checkpoint.removeprefix(STUDENT)
