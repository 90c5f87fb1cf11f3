"""Causal language models that say yes or no to a query and a document.

Four things make this faster than asking a model for its logits, prompt by prompt: prompts of a query share the keys and
values of what they begin with; batches of like length are as large as the budget; only the last position of a prompt
meets the output layer; and of that only the rows of the two labels. What sharing takes of the device's memory stands in
workers/engines/footprint.py.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import torch

from tasks.messages import ModelSpec
from tasks.options import ScoreOptions
from tasks.ports import Pair
from tasks.settings import Settings
from tasks.templates import names, read_template, template_for
from workers.engines.batched import Loaded
from workers.engines.blocks import Block, Prepared
from workers.engines.causal_checks import PAIR, Example, check_references
from workers.engines.causal_model import load_causal
from workers.engines.fingerprint import fingerprint_of_causal
from workers.engines.head import score_of
from workers.engines.pair_scoring import PairScorer
from workers.engines.prefix_cache import PrefixCache
from workers.engines.prompts import Prompt, tokens_of
from workers.engines.quantising import weight_bytes
from workers.engines.question import Question
from workers.engines.waves import Wave, cut_by_query, plan_waves
from workers.running import attempt, run_patiently
from workers.sharding.causal import causal_model_of

log = logging.getLogger(__name__)


class CausalReranker(PairScorer):
    """One causal language model on one device.

    Raises:
        ModelNotFound: the model's files are not there or cannot be read.
        UsageError: the settings or the template do not go with the model, or it gives other scores than transformers
            alone.
    """

    def __init__(self, spec: ModelSpec, device: str, settings: Settings) -> None:
        file = read_template(settings.template) if settings.template else template_for(spec.name)
        self._template = file and file.plain()
        model, self._tokenizer = load_causal(spec, device, settings)
        self._causal = causal_model_of(model, self._tokenizer, device, settings)
        self._asked: tuple[object, Question] | None = None
        loaded = Loaded(
            model=self._causal.decoder,
            weights=fingerprint_of_causal(model, self._tokenizer, self._template, self._causal.most),
            most=self._causal.most,
            pads=self._causal.can_pad,
            can_pad_to=self._causal.can_pad,
            numbers=str(model.dtype),
            attention=str(getattr(model.config, "_attn_implementation", None)),
            weight_bytes=weight_bytes(model),
        )
        pair = file and file.example and Pair(file.example.query, file.example.document)
        example = Example(spec, self._causal, self._question(ScoreOptions()), self._tokenizer, pair or PAIR)
        super().__init__(loaded, device, settings)
        example.check()
        if self._causal.reuses:
            self._footprint = self._causal.footprint()
        if file and not settings.quantize:  # which gives other scores than published
            check_references(spec, file, self._causal.n_bytes, self.score)

    def check(self, options: ScoreOptions) -> str | None:
        """Say why this model cannot serve these options, or return None."""
        question = self._question(options)
        if question is None:
            known = ", ".join(names())
            return f"nothing says how this model is asked: name a template with --template: a .toml file, or {known}"
        if question.problem:
            return question.problem
        fixed = f"no room for a document beside the {question.n_fixed} tokens of the template {question.template.name}"
        if self._most <= question.n_fixed:
            return f"this model takes {self._most} tokens, which leaves {fixed}; name a shorter one with --template"
        if options.max_tokens and options.max_tokens <= question.n_fixed:
            return f"--max-tokens {options.max_tokens} leaves {fixed}"
        return None

    def _question(self, options: ScoreOptions) -> Question | None:
        """Return how the model is asked; made once for as long as jobs ask alike."""
        template = options.template or self._template
        if template is None:
            return None
        key = (template, options.instruction)
        asked = self._asked  # another thread may ask otherwise
        if asked is None or asked[0] != key:
            self._asked = asked = key, Question(self._tokenizer, template, options.instruction)
        return asked[1]

    def _prepare(self, rows: Sequence[Pair], options: ScoreOptions, limit: int) -> Prepared:
        """Tokenise pairs; ``Prepared.rows`` are of ``Prompt``."""
        question = self._question(options)
        if question is None or question.problem:
            raise ValueError(self.check(options))
        prepared = question.prompts.prepare(rows, limit)
        prepared.extra["question"] = question
        return prepared

    def _prepare_probe(self, texts: Sequence[str], limit: int) -> Prepared:
        """Make prompts of texts alone, which need no template."""
        ids = [np.array(tokens_of(self._tokenizer, text)[:limit], np.int64) for text in texts]
        lengths = np.array([len(row) for row in ids], np.int32)
        return Prepared(lengths, np.zeros(len(ids), bool), [Prompt(row, 0, 0) for row in ids])

    def _cut(self, rows: Sequence[Pair], limit: int, batch_tokens: int) -> list[np.ndarray]:
        if not self._causal.reuses:
            return super()._cut(rows, limit, batch_tokens)
        return cut_by_query(rows, limit, batch_tokens)

    def _forward(
        self,
        prepared: Prepared,
        rows: np.ndarray,
        options: ScoreOptions | None,  # noqa: ARG002 - the question is made of them
        length: int | None,
    ) -> torch.Tensor:
        """Read whole prompts. Returns (n_rows, 1); of the engine's own rows (n_rows, dim + 2)."""
        return self._score(self._causal.read([prepared.rows[i].ids for i in rows], length), prepared)

    @torch.inference_mode()
    def _score(self, hidden: torch.Tensor, prepared: Prepared) -> torch.Tensor:
        question: Question | None = prepared.extra.get("question")
        if question is None:
            # Hidden states and two logits: a shape is trusted if both have the same bits wherever a row stands.
            return torch.cat([hidden.float(), self._causal.logits(hidden, [0, 1])], dim=1)
        return score_of(self._causal.logits(hidden, question.tokens), question.template.formula)

    def _run_block(self, block: Block[ScoreOptions]) -> None:
        """Run the prompts of queries in waves, and those that share no beginning with another as they are."""
        if not self._causal.reuses:
            super()._run_block(block)
            return
        max_tokens = self._footprint.wave_tokens(self._budget.tokens, self._memory.room_bytes)
        waves, alone = plan_waves(block.prepared.rows, max_tokens)
        whole = np.concatenate([alone, *(self._run_wave(block, wave) for wave in waves)])
        lengths = block.prepared.lengths[whole]
        self._run_batches(
            block, whole, lengths, lambda batch: self._forward(block.prepared, batch, block.options, None)
        )

    def _run_wave(self, block: Block[ScoreOptions], wave: Wave) -> np.ndarray:
        """Run a wave. Returns the prompts for which there is no memory beside the prefixes; without them there may be.

        (n_left,) numbers of rows.
        """
        block.on_batch(wave.n_tokens)
        cache = self._read_prefixes(wave)
        if cache is not None:
            block.result.padded_tokens += wave.n_tokens
            return self._run_rests(block, wave, cache)
        if len(wave.prefixes) == 1:
            return wave.rows
        return np.concatenate([self._run_wave(block, half) for half in wave.halves()])

    def _read_prefixes(self, wave: Wave) -> PrefixCache | None:
        """Return their keys and values, or None if there is no memory for them."""

        def read() -> PrefixCache:
            return self._causal.read_prefixes(wave.prefixes)

        if len(wave.prefixes) == 1:
            return run_patiently(read, self._budget)
        cache = attempt(read)
        if cache is None:
            queries = len(wave.prefixes)
            log.warning("No memory for a wave", extra={"action": "split", "queries": queries, "tokens": wave.n_tokens})
            self._budget.lower()
        return cache

    def _run_rests(self, block: Block[ScoreOptions], wave: Wave, cache: PrefixCache) -> np.ndarray:
        """Run prompts behind their prefixes. Returns those from the first on that finds no memory."""
        prompts: Sequence[Prompt] = block.prepared.rows
        owners = dict(zip(wave.rows.tolist(), wave.owners.tolist(), strict=True))

        def forward(batch: np.ndarray) -> torch.Tensor:
            some = [prompts[i] for i in batch]
            hidden = self._causal.read_rests(
                cache,
                owners=np.array([owners[i] for i in batch.tolist()]),
                starts=np.array([prompt.prefix for prompt in some]),
                rests=[prompt.ids[prompt.prefix :] for prompt in some],
            )
            return self._score(hidden, block.prepared)

        lengths = np.array([len(prompts[i].ids) - prompts[i].prefix for i in wave.rows])
        order = np.argsort(-lengths, kind="stable")
        rows, lengths = wave.rows[order], lengths[order]
        is_left = np.ones(len(rows), bool)
        room = self._memory.room_bytes
        for some in self._footprint.cut(len(wave.prefixes[0]), lengths, self._budget.tokens, room):
            for ran in self._batches(block, rows[some], lengths[some], forward):
                if ran.output is None:
                    return rows[is_left]
                is_left[some.start + ran.rows] = False
        return rows[is_left]
