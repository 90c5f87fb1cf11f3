"""What a job asks of the engine that serves it. None of it makes a worker load anything."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from tasks.errors import UsageError

#: A line that is shown to people: nothing in it moves a cursor or begins another line of a log.
LINE_PATTERN = r"^[^\x00-\x1f\x7f]*$"
#: What stands in a template for the texts of a pair.
INSTRUCTION, QUERY, DOCUMENT = "{instruction}", "{query}", "{document}"
_PLACE = re.compile("|".join(map(re.escape, (INSTRUCTION, QUERY, DOCUMENT))))

#: A language, as models name it: ``en``, ``eng_Latn``.
LANGUAGE_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,31}$"


def _check_field(name: str) -> str:
    if not name:
        raise ValueError("name a field, or leave it out")
    return name


def _check_language(name: str) -> str:
    if not re.fullmatch(LANGUAGE_PATTERN, name):
        raise ValueError("give letters, digits, - and _, at most 32, such as eng_Latn")
    return name


Language = Annotated[str, AfterValidator(_check_language)]

Line = Annotated[str, Field(pattern=LINE_PATTERN, max_length=256)]
Text = Annotated[str, Field(max_length=100_000)]
#: A piece of a template. The published ones are shorter than 500 characters.
Part = Annotated[str, Field(max_length=10_000)]
TokenLimit = Annotated[int, Field(ge=1, le=10_000_000)]
Operation = Literal["encode", "score"]
VectorDtype = Literal["float32", "float16"]
Formula = Literal["probability", "difference", "logit"]


class Message(BaseModel):
    """A frozen message without unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Options(Message):
    """What the options of all operations can do."""

    @classmethod
    def of(cls, **values: Any) -> Self:
        """Make options of what a person gave.

        Raises:
            UsageError: a value is wrong; the line names the option.
        """
        try:
            return cls(**values)
        except ValidationError as exc:
            raise UsageError(f"Options: {explain(exc)}.") from exc


class EncodeOptions(Options):
    """How texts become vectors.

    Attributes:
        normalize: scale every vector to length 1, after truncation.
        truncate_dim: keep only the first dimensions (Matryoshka models).
        prompt: text put before each record.
        prompt_name: name of a prompt that the model brings along.
        language: of the texts, as the model names languages; with ``language_field``, of records that name none.
        language_field: field of the records with their language, which travels beside each text.
        max_tokens: tokens of a record that are fed at most; the model's own limit if less.
        vector_dtype: type of the stored vector.
        reproducible: the same row gives the same bits, whatever chunk and batch it is in; slower.
    """

    operation: Literal["encode"] = "encode"
    normalize: bool = False
    truncate_dim: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    prompt: Text | None = None
    prompt_name: Line | None = None
    language: Language | None = None
    language_field: Annotated[Line, AfterValidator(_check_field)] | None = None
    max_tokens: TokenLimit | None = None
    vector_dtype: VectorDtype = "float32"
    reproducible: bool = False

    @model_validator(mode="after")
    def _one_prompt(self) -> EncodeOptions:
        if self.prompt is not None and self.prompt_name is not None:
            raise ValueError("give --prompt or --prompt-name, not both")
        return self


class Template(Message):
    """How a causal reranker is asked about a pair, and how its answer becomes a score: what travels with a job.

    No placeholder stands in it twice, so a prompt is no longer than all fields, the instruction and the pair together.

    Attributes:
        name: what ``--template`` calls it.
        instruction: what the models are told to judge by, unless the job says otherwise.
        instruction_line: what stands for ``{instruction}`` where there is an instruction; without one it is nothing.
        parts: the prompt in pieces that are tokenised one by one, as the source does. ``{document}`` ends one of them,
            so that truncation takes the document's end.
        adds_special_tokens: whether the tokenizer puts its first token (``<bos>``) before the prompt.
        positive: the token that says yes, a single one in the model's vocabulary.
        negative: the one that says no; none for the formula ``logit``.
        formula: ``probability`` is the softmax over both tokens, ``difference`` of their logits, ``logit`` that of the
            positive one.
    """

    name: Line
    instruction: Text
    instruction_line: Part = INSTRUCTION
    parts: Annotated[tuple[Part, ...], Field(min_length=1, max_length=16)]
    adds_special_tokens: bool = False
    positive: Line
    negative: Line | None = None
    formula: Formula

    @model_validator(mode="after")
    def _has_places(self) -> Self:
        # Part by part, as they are rendered: a placeholder that is split over two of them is none.
        places = [place for part in self.parts for place in _PLACE.findall(part)]
        if places.count(DOCUMENT) != 1 or places.count(QUERY) != 1:
            raise ValueError(f"parts must hold {QUERY} and {DOCUMENT} once each")
        if not any(part.endswith(DOCUMENT) for part in self.parts):
            raise ValueError(f"{DOCUMENT} must end its part, what follows is a part of its own")
        if places.index(QUERY) > places.index(DOCUMENT):
            raise ValueError(f"{QUERY} must stand before {DOCUMENT}")
        if places.count(INSTRUCTION) > 1 or self.instruction_line.count(INSTRUCTION) != 1:
            raise ValueError(f"{INSTRUCTION} may stand in parts once, and must stand in instruction_line once")
        if (self.negative is None) != (self.formula == "logit"):
            raise ValueError("negative is for the formulas probability and difference, which need it")
        return self

    @property
    def has_instruction(self) -> bool:
        """Whether there is a place for an instruction."""
        return any(INSTRUCTION in part for part in self.parts)

    def plain(self) -> Template:
        """Return what travels, without what a file holds beside it."""
        return Template(**{name: getattr(self, name) for name in Template.model_fields})

    def render(self, query: str, document: str, instruction: str | None = None) -> tuple[str, ...]:
        """Return the parts with the texts of a pair in them. It is one pass, so that braces in a text stay.

        Args:
            query: of the pair.
            document: of the pair.
            instruction: of the job; the template's own if None, and none at all if empty.
        """
        told = self.instruction if instruction is None else instruction
        texts = {
            INSTRUCTION: self.instruction_line.replace(INSTRUCTION, told) if told else "",
            QUERY: query,
            DOCUMENT: document,
        }
        return tuple(_PLACE.sub(lambda place: texts[place[0]], part) for part in self.parts)


class ScoreOptions(Options):
    """How pairs of query and document become scores.

    Attributes:
        instruction: what a causal reranker is told to judge by; its template's own if None.
        template: how a causal reranker is asked; the worker's own if None.
        max_tokens: tokens of a prompt at most; the model's own limit if less. What is too long loses the document's
            end.
        reproducible: the same pair gives the same bits, whatever chunk and batch it is in; slower.
    """

    operation: Literal["score"] = "score"
    instruction: Text | None = None
    template: Template | None = None
    max_tokens: TokenLimit | None = None
    reproducible: bool = False

    @field_validator("template", mode="before")
    @classmethod
    def _travels_light(cls, given: Any) -> Any:
        """Leave examples and references of a template's file at home."""
        return given.plain() if isinstance(given, Template) else given


#: The options of each operation.
OPTIONS: dict[Operation, type[EncodeOptions | ScoreOptions]] = {"encode": EncodeOptions, "score": ScoreOptions}


def explain(exc: Any) -> str:
    """Put a pydantic ValidationError into one line, without the values that it refused."""
    return "; ".join(
        f"{'.'.join(str(part)[:64] for part in error['loc'])}: {error['msg'].removeprefix('Value error, ')}".lstrip(
            ": "
        )
        for error in exc.errors()[:20]
    )
