"""What a job asks of the engine that serves it. None of it makes a worker load anything."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tasks.errors import UsageError

#: A line that is shown to people: nothing in it moves a cursor or begins another line of a log.
LINE_PATTERN = r"^[^\x00-\x1f\x7f]*$"
#: What stands in a template for the texts of a pair.
INSTRUCTION, QUERY, DOCUMENT = "{instruction}", "{query}", "{document}"
_PLACE = re.compile("|".join(map(re.escape, (INSTRUCTION, QUERY, DOCUMENT))))

Line = Annotated[str, Field(pattern=LINE_PATTERN, max_length=256)]
Text = Annotated[str, Field(max_length=100_000)]
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
        max_tokens: tokens of a record that are fed at most; the model's own limit if less.
        vector_dtype: type of the stored vector.
        reproducible: the same row gives the same bits, whatever chunk and batch it is in; slower.
    """

    operation: Literal["encode"] = "encode"
    normalize: bool = False
    truncate_dim: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    prompt: Text | None = None
    prompt_name: Line | None = None
    max_tokens: TokenLimit | None = None
    vector_dtype: VectorDtype = "float32"
    reproducible: bool = False

    @model_validator(mode="after")
    def _one_prompt(self) -> EncodeOptions:
        if self.prompt is not None and self.prompt_name is not None:
            raise ValueError("give --prompt or --prompt-name, not both")
        return self


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
    tolerance: Annotated[float, Field(gt=0)] = 1e-3


class Template(Message):
    """How a causal reranker is asked about a pair, and how its answer becomes a score.

    Attributes:
        name: what ``--template`` calls it.
        models: hub ids of the models that were trained with it.
        source: where it was published.
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
    models: tuple[Line, ...] = ()
    source: Line
    instruction: Text
    instruction_line: Text = INSTRUCTION
    parts: Annotated[tuple[Text, ...], Field(min_length=1, max_length=16)]
    adds_special_tokens: bool = False
    positive: Line
    negative: Line | None = None
    formula: Formula
    example: Example | None = None
    references: tuple[Reference, ...] = ()

    @model_validator(mode="after")
    def _has_places(self) -> Template:
        whole = "".join(self.parts)
        if whole.count(DOCUMENT) != 1 or whole.count(QUERY) != 1:
            raise ValueError(f"parts must hold {QUERY} and {DOCUMENT} once each")
        if not any(part.endswith(DOCUMENT) for part in self.parts):
            raise ValueError(f"{DOCUMENT} must end its part, what follows is a part of its own")
        if whole.index(QUERY) > whole.index(DOCUMENT):
            raise ValueError(f"{QUERY} must stand before {DOCUMENT}")
        if (self.negative is None) != (self.formula == "logit"):
            raise ValueError("negative is for the formulas probability and difference, which need it")
        return self

    @model_validator(mode="after")
    def _renders_example(self) -> Template:
        example = self.example
        if example and "".join(self.render(example.query, example.document, example.instruction)) != example.prompt:
            raise ValueError("example.prompt is not what the parts make of the example's texts")
        return self

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


#: The options of each operation.
OPTIONS: dict[Operation, type[EncodeOptions | ScoreOptions]] = {"encode": EncodeOptions, "score": ScoreOptions}


def explain(exc: Any) -> str:
    """Put a pydantic ValidationError into one line, without the values that it refused."""
    return "; ".join(
        f"{'.'.join(str(part)[:64] for part in error['loc'])}: {error['msg']}".removeprefix(": Value error, ")
        for error in exc.errors()[:20]
    )
