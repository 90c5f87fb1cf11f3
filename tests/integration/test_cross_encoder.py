"""The cross-encoder engine against CrossEncoder.predict itself, on random models in the published formats."""

from __future__ import annotations

import json
import multiprocessing
import resource
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from sentence_transformers import CrossEncoder
from sentence_transformers.base.modules import Dense, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForSequenceClassification

from tasks.errors import DeviceFull, ModelNotFound, UsageError
from tasks.messages import ModelSpec
from tasks.operations import OPERATIONS
from tasks.options import ScoreOptions, Template
from tasks.ports import Pair, Scorer
from tasks.settings import Settings
from tests.tiny_models import LINES, Shape, tiny_bert, tiny_cross_encoder
from workers import running
from workers.engines import cross_encoder, load_engine, packed_linear
from workers.engines.cross_encoder import CrossEncoderScorer
from workers.engines.packed_linear import PackedLinear
from workers.engines.reranking import load_reranker

WORDS = " ".join(LINES).split()
QUERIES = [*LINES[:3], "river", "", "wörter, die niemand kennt"]


def _pairs() -> list[Pair]:
    """Make pairs of every length, some of which the models cut at the query, at the document, or at both."""
    chosen = np.random.default_rng(7)
    odd = [
        Pair("", ""),
        Pair("a", "a"),
        Pair("", "a document for nobody"),
        Pair("emoji 🎉 and a NUL \x00", "a zero-width joiner 👩‍🚀, a tab\t. 天地玄黃 مرحبا"),
        Pair("river", "x" * 3000),
        Pair("river mill " * 60, "a long document " * 90),
        Pair("a long query " * 90, "river mill " * 60),
        # A look at their beginnings would take the wrong text for the longer one.
        Pair("information retrieval " * 40, "a b c " * 20),
        Pair(f"{'x' * 150} " * 40, "river mill " * 60),
        Pair("river mill " * 60, f"{'x' * 150} " * 40),
        Pair("the same on both sides " * 30, "the same on both sides " * 30),
        Pair("river", "and the river rose \n" * 20_000),
    ]
    lengths = (0, 1, 3, 8, 13, 20, 28, 29, 30, 31, 45, 300)
    plain = [
        Pair(str(chosen.choice(QUERIES)), " ".join(chosen.choice(WORDS, chosen.choice(lengths)))) for _ in range(150)
    ]
    return [*odd, *plain, *plain[:20]]


PAIRS = _pairs()


def load(folder: str, max_batch_tokens: int = 512, **settings: Any) -> CrossEncoderScorer:
    """Load an engine on the CPU."""
    spec = ModelSpec.parse(folder, "score")
    return CrossEncoderScorer(spec, "cpu", Settings(max_batch_tokens=max_batch_tokens, **settings))


def reference(folder: str) -> CrossEncoder:
    """Load the same model with sentence-transformers alone."""
    return CrossEncoder(folder, device="cpu", model_kwargs={"dtype": torch.float32})


def predict(model: CrossEncoder, pairs: list[Pair], **options: Any) -> np.ndarray:
    """Return the scores of sentence-transformers. (n_pairs,)."""
    return np.asarray(model.predict(pairs, batch_size=7, show_progress_bar=False, **options))


@pytest.fixture(scope="module", params=get_args(Shape))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a cross-encoder of each shape, which takes 64 tokens."""
    return tiny_cross_encoder(tmp_path_factory.mktemp("models") / request.param, request.param)


@pytest.fixture(scope="module")
def scorer(folder: str) -> CrossEncoderScorer:
    """The engine with it."""
    return load(folder)


@pytest.fixture(scope="module")
def expected(folder: str) -> CrossEncoder:
    """The same model, to compare with."""
    return reference(folder)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a BERT."""
    return tiny_cross_encoder(tmp_path_factory.mktemp("models") / "bert")


@pytest.mark.parametrize("max_tokens", [None, 40, 21])
def test_scores_equal_those_of_predict(
    scorer: CrossEncoderScorer, expected: CrossEncoder, max_tokens: int | None
) -> None:
    """For pairs of any length and script, cut where the model's tokenizer cuts them."""
    options = {} if max_tokens is None else {"processing_kwargs": {"text": {"max_length": max_tokens}}}
    scores = predict(expected, PAIRS, **options)
    assert scores.std() > 0.05  # or anything would be equal
    scored = scorer.score(PAIRS, ScoreOptions(max_tokens=max_tokens))
    assert scored.values.shape == (len(PAIRS), 1)
    np.testing.assert_allclose(scored.values[:, 0], scores, atol=1e-5)
    assert scored.errors == [None] * len(PAIRS)


def test_token_counts_and_truncation_are_the_tokenizer_s(scorer: CrossEncoderScorer, expected: CrossEncoder) -> None:
    """n_tokens is what was fed, of both texts; truncated says that there was more."""
    pairs = [pair for pair in PAIRS if len(pair.document) < 100_000]
    whole = expected.tokenizer(list(map(tuple, pairs)), truncation=False, verbose=False)["input_ids"]
    counts = [len(ids) for ids in whole]
    for limit, options in ((64, ScoreOptions()), (30, ScoreOptions(max_tokens=30)), (64, ScoreOptions(max_tokens=999))):
        scored = scorer.score(pairs, options)
        assert scored.n_tokens.tolist() == [min(count, limit) for count in counts]
        assert scored.truncated.tolist() == [count > limit for count in counts]
        assert 0 < scored.truncated.sum() < len(pairs)
        assert scored.padded_tokens >= scored.n_tokens.sum()


def test_a_score_does_not_depend_on_what_is_scored_with_it(scorer: CrossEncoderScorer) -> None:
    """Alone, backwards, or among others: the same within rounding."""
    together = scorer.score(PAIRS, ScoreOptions()).values
    backwards = scorer.score(PAIRS[::-1], ScoreOptions()).values[::-1]
    np.testing.assert_allclose(together, backwards, atol=1e-6)
    alone = np.concatenate([scorer.score([pair], ScoreOptions()).values for pair in PAIRS[:20]])
    np.testing.assert_allclose(together[:20], alone, atol=1e-6)


def test_reproducible_scores_have_the_same_bits_in_any_company(scorer: CrossEncoderScorer) -> None:
    """Alone, backwards, and in another chunk; and they are those of any other run within rounding."""
    options = ScoreOptions(reproducible=True)
    together = scorer.score(PAIRS, options).values
    np.testing.assert_array_equal(together, scorer.score(PAIRS[::-1], options).values[::-1])
    np.testing.assert_array_equal(together[40:], scorer.score(PAIRS[40:], options).values)
    for i in (0, 4, 5, 8, 20, 40):
        np.testing.assert_array_equal(together[i], scorer.score([PAIRS[i]], options).values[0])
    np.testing.assert_allclose(together, scorer.score(PAIRS, ScoreOptions()).values, atol=1e-6)


def test_no_pairs_have_no_scores(scorer: CrossEncoderScorer) -> None:
    """An empty chunk is no special case."""
    assert scorer.score([], ScoreOptions()).values.shape == (0, 1)


def test_batches_keep_to_the_budget(bert: str) -> None:
    """Of padded tokens; what is told before each batch adds up to what the receipt says."""
    told: list[int] = []
    scored = load(bert, max_batch_tokens=150).score(PAIRS, ScoreOptions(), told.append)
    assert max(told) <= 150
    assert sum(told) == scored.padded_tokens < 1.2 * scored.n_tokens.sum()


def test_the_budget_is_found_once_and_kept(bert: str, tmp_path: Path) -> None:
    """The second engine reads what the first one's probing found."""
    spec, settings = ModelSpec.parse(bert, "score"), Settings(state_dir=tmp_path)
    first = CrossEncoderScorer(spec, "cpu", settings)
    (file,) = (tmp_path / "devices").glob("budget-*.json")
    kept = json.loads(file.read_text())
    assert kept["of"]["weights"] == first.weights
    kept["found"].update(tokens=777, bytes_per_token=0)
    file.write_text(json.dumps(kept))
    assert CrossEncoderScorer(spec, "cpu", settings).batch_tokens == 777


@pytest.mark.parametrize("activation", [torch.nn.Identity(), torch.nn.Sigmoid(), torch.nn.Tanh()])
def test_the_model_s_own_activation_function_is_used(bert: str, tmp_path: Path, activation: torch.nn.Module) -> None:
    """As the folder says that CrossEncoder saved."""
    CrossEncoder(bert, device="cpu", activation_fn=activation).save_pretrained(str(tmp_path / "saved"))
    scorer = load(str(tmp_path / "saved"))
    logits = torch.from_numpy(predict(reference(bert), PAIRS, activation_fn=torch.nn.Identity()))
    found = scorer.score(PAIRS, ScoreOptions()).values[:, 0]
    np.testing.assert_allclose(found, activation(logits).numpy(), atol=1e-5)
    assert (scorer.weights == load(bert).weights) == isinstance(activation, torch.nn.Sigmoid)  # the default


def test_a_prompt_that_the_model_was_saved_with_is_put_before_queries(bert: str, tmp_path: Path) -> None:
    """As predict does it."""
    saved = CrossEncoder(bert, device="cpu", prompts={"search": "how are "}, default_prompt_name="search")
    saved.save_pretrained(str(tmp_path / "saved"))
    found = load(str(tmp_path / "saved")).score(PAIRS, ScoreOptions()).values[:, 0]
    np.testing.assert_allclose(found, predict(saved, PAIRS), atol=1e-5)
    assert np.abs(found - predict(reference(bert), PAIRS)).max() > 0.01


def test_packed_layers_give_the_same_scores(bert: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the same fingerprint: slots on different CPUs may work on one job."""
    monkeypatch.setattr(packed_linear, "has_slow_products", lambda: False)
    plain = load(bert)
    monkeypatch.setattr(packed_linear, "has_slow_products", lambda: True)
    packed = load(bert)
    kinds = [type(module) for module in packed._model.modules()]
    assert kinds.count(PackedLinear) >= 12
    assert torch.nn.Linear not in kinds
    assert packed.weights == plain.weights
    np.testing.assert_allclose(
        packed.score(PAIRS, ScoreOptions()).values, plain.score(PAIRS, ScoreOptions()).values, atol=1e-5
    )


def test_half_precision_is_close(bert: str) -> None:
    """And the engine starts with it."""
    half = load(bert, precision="bf16")
    assert next(half._model.parameters()).dtype == torch.bfloat16
    full = load(bert).score(PAIRS, ScoreOptions()).values
    assert np.abs(half.score(PAIRS, ScoreOptions()).values - full).mean() < 0.02
    assert half.weights != load(bert).weights


def test_a_score_that_is_not_finite_is_an_error_row(bert: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """NaN never passes for a score."""
    scorer = load(bert)
    forward = scorer._forward

    def spoil(prepared: Any, rows: np.ndarray, *others: Any) -> torch.Tensor:
        scores = forward(prepared, rows, *others).clone()
        scores[rows == 1] = torch.nan
        return scores

    monkeypatch.setattr(scorer, "_forward", spoil)
    for reproducible in (False, True):
        scored = scorer.score([Pair("a", "b")] * 3, ScoreOptions(reproducible=reproducible))
        assert scored.errors == [None, "the model gave a score that is not finite", None]
        assert scored.values[1] == 0


def test_a_device_that_is_full_fails_no_pair(bert: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """If there is no memory for a few words either, the chunk goes to others, and comes back later."""
    monkeypatch.setattr(running, "PAUSE_S", 0.0)
    scorer = load(bert)

    def fill(*_: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    for reproducible in (False, True):
        with monkeypatch.context() as patch:
            patch.setattr(scorer, "_forward", fill)
            with pytest.raises(DeviceFull):
                scorer.score(PAIRS, ScoreOptions(reproducible=reproducible))
        assert scorer.score(PAIRS, ScoreOptions(reproducible=reproducible)).errors == [None] * len(PAIRS)


def _score_in_little_memory(folder: str) -> str:
    """Score pairs of which some need more memory than this process may take, in a process of its own."""
    scorer = load(folder, max_batch_tokens=100_000)
    pairs = [Pair("river", "x " * (800 + i)) for i in range(60)] + [Pair("river", "x " * 40_000)]
    scorer.score(pairs[:2], ScoreOptions())
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 220 * 2**20, -1))
    scored = scorer.score(pairs, ScoreOptions())
    resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
    alone = [scorer.score([pair], ScoreOptions()).values[0] for pair in pairs[:60:20]]
    return json.dumps(
        {
            "errors": scored.errors,
            "splits": scored.memory_splits,
            "budget": scorer.batch_tokens,
            "largest difference": float(np.abs(scored.values[:60:20] - alone).max()),
        }
    )


@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit on the address space")
def test_pairs_go_in_smaller_batches_when_memory_runs_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real allocator that really refuses: batches are halved, and a pair too long for it is an error row."""
    # So that what was freed is room again below the limit, which counts addresses.
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "65536")
    monkeypatch.setenv("MALLOC_ARENA_MAX", "1")
    folder = tiny_cross_encoder(tmp_path / "model", hidden=256, limit=30_000)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        said = json.loads(pool.submit(_score_in_little_memory, folder).result(timeout=200))
    assert said["errors"][:60] == [None] * 60
    assert "no memory for this row's 30000 tokens" in said["errors"][60]
    assert said["splits"] >= 2
    assert said["budget"] < 100_000
    assert said["largest difference"] < 1e-5


def test_options_that_the_model_cannot_serve_are_refused(scorer: CrossEncoderScorer, expected: CrossEncoder) -> None:
    """A sentence for each."""
    parts = ("{query}", "{document}")
    template = Template(name="own", instruction="", parts=parts, positive="yes", formula="logit")
    assert scorer.check(ScoreOptions(max_tokens=20)) is None
    for options in (ScoreOptions(instruction="Judge."), ScoreOptions(template=template)):
        line = "--instruction and --template are for causal rerankers; this model is a cross-encoder"
        assert scorer.check(options) == line
    n_special = expected.tokenizer.num_special_tokens_to_add(pair=True)
    assert "no room beside" in str(scorer.check(ScoreOptions(max_tokens=n_special)))
    assert scorer.check(ScoreOptions(max_tokens=n_special + 1)) is None
    assert scorer.score(PAIRS[:30], ScoreOptions(max_tokens=n_special + 1)).errors == [None] * 30


def test_several_scores_a_pair_are_refused(tmp_path: Path) -> None:
    """A natural-language-inference model is no reranker."""
    with pytest.raises(UsageError, match="gives 3 scores a pair; a ranking needs one"):
        load(tiny_cross_encoder(tmp_path / "model", labels=3))


@pytest.mark.parametrize(
    ("settings", "option"), [({"backend": "onnx"}, "--backend onnx"), ({"compile": True}, "--compile")]
)
def test_what_is_for_embedding_models_is_refused(bert: str, settings: dict[str, Any], option: str) -> None:
    """Before anything is loaded."""
    with pytest.raises(UsageError, match=f"{option} is for embedding models"):
        load(bert, **settings)


def test_a_model_whose_scores_depend_on_the_batch_is_refused(bert: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker says so before it takes a chunk."""
    forward: Callable[..., torch.Tensor] = CrossEncoderScorer._forward
    monkeypatch.setattr(CrossEncoderScorer, "_forward", lambda *arguments: forward(*arguments) + 0.001)
    with pytest.raises(ModelNotFound, match=r"its scores differ from those of its own predict by 0\.001"):
        load(bert)
    monkeypatch.setattr(CrossEncoderScorer, "_forward", lambda *arguments: forward(*arguments) * torch.nan)
    with pytest.raises(ModelNotFound, match="of a pair of penstock's own it says: the model gave a score that is not"):
        load(bert)


def test_a_model_whose_scores_depend_on_padding_is_told_so(bert: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some models know no attention mask."""
    forward: Callable[..., torch.Tensor] = CrossEncoderScorer._forward

    def padded(self: CrossEncoderScorer, prepared: Any, rows: np.ndarray, *others: Any) -> torch.Tensor:
        return forward(self, prepared, rows, *others) + 0.01 * int(prepared.lengths[rows].max())

    monkeypatch.setattr(CrossEncoderScorer, "_forward", padded)
    with pytest.raises(ModelNotFound, match="cannot be used: a pair's score depends on how far it is padded"):
        load(bert, 2000)


def test_a_model_without_a_padding_token_is_told_what_it_lacks(tmp_path: Path) -> None:
    """A causal model with a classification head, as many are published."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tiny_cross_encoder(tmp_path / "bert"))
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = Qwen2Config(vocab_size=len(tokenizer), num_labels=1, num_key_value_heads=2, pad_token_id=None, **sizes)
    Qwen2ForSequenceClassification(config).eval().save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    with pytest.raises(ModelNotFound, match=r"if no padding token is defined; set pad_token_id in its config\.json"):
        load(str(tmp_path / "model"))


def test_the_tolerance_is_that_of_the_smallest_numbers(bert: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some models keep their first layers in fp32."""
    load_whole = cross_encoder.load_cross_encoder

    def load_mixed(*arguments: Any) -> CrossEncoder:
        model = load_whole(*arguments)
        next(model.modules()).register_parameter("first", torch.nn.Parameter(torch.zeros(1)))
        assert next(model.parameters()).dtype == torch.float32
        return model

    monkeypatch.setattr(cross_encoder, "load_cross_encoder", load_mixed)
    forward: Callable[..., torch.Tensor] = CrossEncoderScorer._forward
    monkeypatch.setattr(CrossEncoderScorer, "_forward", lambda *arguments: forward(*arguments) + 0.01)
    load(bert, precision="bf16")


def rerank_with(name: str, **settings: Any) -> Scorer:
    """Load what fits a model."""
    return load_reranker(ModelSpec.parse(name, "score"), "cpu", Settings(max_batch_tokens=512, **settings))


def test_a_sequence_classifier_is_a_cross_encoder(folder: str) -> None:
    """By its configuration alone, and from where engines are loaded."""
    assert isinstance(rerank_with(folder), CrossEncoderScorer)
    settings = Settings(operation="score", max_batch_tokens=512)
    scorer = load_engine(ModelSpec.parse(folder, "score"), "cpu", settings)
    scored = OPERATIONS["score"].run(scorer, PAIRS[:3], ScoreOptions(), lambda _: None)
    assert scored.values.shape == (3, 1)


def test_a_cross_encoder_of_several_modules_is_one_too(tmp_path: Path) -> None:
    """A plain transformer with pooling and a head behind it, saved by CrossEncoder."""
    torch.manual_seed(1)
    modules = [Transformer(f"{tiny_bert(tmp_path / 'bert')}-base", max_seq_length=64), Pooling(32)]
    head = Dense(32, 1, module_output_name="scores")
    saved = CrossEncoder(modules=[*modules, head], device="cpu", activation_fn=torch.nn.Identity())
    saved.save_pretrained(str(tmp_path / "saved"))
    scorer = rerank_with(str(tmp_path / "saved"))
    np.testing.assert_allclose(scorer.score(PAIRS, ScoreOptions()).values[:, 0], predict(saved, PAIRS), atol=1e-5)


def test_an_embedding_model_is_sent_to_encode(tmp_path: Path) -> None:
    """Saved by sentence-transformers, or a plain transformer."""
    folder = tiny_bert(tmp_path / "bert")
    for name, kind in ((folder, "SentenceTransformer"), (f"{folder}-base", "BertModel")):
        with pytest.raises(ModelNotFound, match=rf"is an embedding model \({kind}\): use `penstock encode`"):
            rerank_with(name)


def test_a_model_of_another_kind_is_named(bert: str, tmp_path: Path) -> None:
    """With what is needed instead."""
    config = json.loads((Path(bert) / "config.json").read_text())
    for architectures, said in ((["BertForMaskedLM"], "is a BertForMaskedLM"), (None, "of no known architecture")):
        (tmp_path / "config.json").write_text(json.dumps(config | {"architectures": architectures}))
        with pytest.raises(ModelNotFound, match=rf"{said}; `penstock score` needs a cross-encoder"):
            rerank_with(str(tmp_path))


def test_a_folder_without_a_model_is_one_line(tmp_path: Path) -> None:
    """The error names the folder."""
    with pytest.raises(ModelNotFound, match="cannot be loaded"):
        rerank_with(str(tmp_path))


def test_code_of_a_model_runs_only_where_it_is_trusted(tmp_path: Path) -> None:
    """A configuration names a module of its own; without the worker's word it is not even imported."""
    trap = tmp_path / "it-ran"
    folder = tmp_path / "model"
    folder.mkdir()
    auto_map = {"AutoConfig": "own_code.OwnConfig"}
    (folder / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": auto_map}))
    (folder / "own_code.py").write_text(f"open({str(trap)!r}, 'w').close()\nclass OwnConfig: pass\n")
    with pytest.raises(ModelNotFound, match="start the worker with --trust-remote-code"):
        rerank_with(str(folder))
    assert not trap.exists()
    with pytest.raises(AttributeError):  # it is no working configuration
        rerank_with(str(folder), trust_remote_code=True)
    assert trap.exists()
