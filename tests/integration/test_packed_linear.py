"""Linear layers packed for oneDNN: the same vectors, and the old layers where something is wrong."""

import weakref

import numpy as np
import pytest
import torch

from tasks.messages import ModelSpec
from tasks.options import EncodeOptions
from tasks.settings import Settings
from tests.tiny_models import tiny_bert
from workers.engines import packed_linear
from workers.engines.packed_linear import PackedLinear, pack_linears
from workers.engines.sentence_transformer import SentenceTransformerEncoder


def layers(model):
    """Return how many layers are packed, and how many are torch's own."""
    kinds = [type(module) for module in model.modules()]
    return kinds.count(PackedLinear), kinds.count(torch.nn.Linear)


@pytest.fixture
def is_fast(monkeypatch):
    """Let packed layers count as faster, whatever CPU this is."""
    monkeypatch.setattr(packed_linear, "has_slow_products", lambda: True)


@pytest.fixture
def model():
    """Return a small model of two layers."""
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(24, 40), torch.nn.GELU(), torch.nn.Linear(40, 8, bias=False)).eval()


@pytest.mark.parametrize("shape", [(24,), (1, 24), (7, 24), (2, 3, 24), (0, 24)])
def test_a_packed_layer_computes_the_same(shape):
    """For any shape that a linear layer takes."""
    linear = torch.nn.Linear(24, 40)
    rows = torch.randn(shape)
    with torch.inference_mode():
        torch.testing.assert_close(PackedLinear(linear)(rows), linear(rows))


def test_few_numbers_of_rows_reach_onednn(monkeypatch):
    """It keeps what it makes for each of them; all up to 1,024 took 2 GB of a slot."""
    seen = set()

    class Counted:
        _reorder_linear_weight = packed_linear._ONEDNN._reorder_linear_weight

        def _linear_pointwise(self, rows, *others, run=packed_linear._ONEDNN._linear_pointwise):
            seen.add(len(rows))
            return run(rows, *others)

    monkeypatch.setattr(packed_linear, "_ONEDNN", Counted())
    linear = torch.nn.Linear(24, 40)
    packed = PackedLinear(linear)
    with torch.inference_mode():
        for n_rows in range(1, 1025):
            rows = torch.randn(n_rows, 24)
            torch.testing.assert_close(packed(rows), linear(rows))
    assert seen == {*range(1, 257), *range(288, 513, 32), *range(576, 1025, 64)}


@pytest.mark.usefixtures("is_fast")
def test_layers_are_replaced_and_vectors_stay(model):
    """Also a layer without bias."""
    rows = torch.randn(5, 24)
    with torch.inference_mode():
        before = model(rows)
        assert pack_linears(model, lambda: model(rows))
        torch.testing.assert_close(model(rows), before)
    assert layers(model) == (2, 0)


@pytest.mark.usefixtures("is_fast")
def test_a_model_that_reads_its_layers_weights_keeps_them(model):
    """What a packed layer no longer has would be missed."""
    rows = torch.randn(5, 24)

    def sample():
        return torch.nn.functional.linear(rows, model[0].weight)

    assert not pack_linears(model, sample)
    assert layers(model) == (0, 2)
    assert sample().shape == (5, 40)


@pytest.mark.usefixtures("is_fast")
def test_other_vectors_bring_the_old_layers_back(model, monkeypatch):
    """A kernel that is wrong is not used, however fast."""
    monkeypatch.setattr(PackedLinear, "forward", lambda self, rows: torch.zeros(*rows.shape[:-1], self.out_features))
    rows = torch.randn(5, 24)
    assert not pack_linears(model, lambda: model(rows))
    assert layers(model) == (0, 2)


@pytest.mark.usefixtures("is_fast")
def test_old_layers_come_back_to_the_bit(model, monkeypatch):
    """Each weight was freed when it was packed, and is unpacked again."""
    rows = torch.randn(5, 24)
    weights = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    monkeypatch.setattr(PackedLinear, "forward", lambda self, rows: torch.zeros(*rows.shape[:-1], self.out_features))
    assert not pack_linears(model, lambda: model(rows))
    assert list(model.state_dict()) == list(weights)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, weights[name]), name


@pytest.mark.usefixtures("is_fast")
def test_no_more_than_one_layer_is_there_twice(model, monkeypatch):
    """A slot that loads a large model needs no room for all its layers again."""
    old = [weakref.ref(module.weight) for module in (model[0], model[2])]
    alive, make = [], PackedLinear.__init__

    def count(self, linear):
        make(self, linear)
        alive.append(sum(weight() is not None for weight in old))

    monkeypatch.setattr(PackedLinear, "__init__", count)
    assert pack_linears(model, lambda: model(torch.ones(1, 24)))
    assert alive == [2, 1]


@pytest.mark.usefixtures("is_fast")
@pytest.mark.parametrize("is_right", [True, False])
def test_a_layer_in_two_places_is_one_layer(monkeypatch, is_right):
    """Packed or put back."""
    shared = torch.nn.Linear(24, 24)
    model = torch.nn.ModuleList([torch.nn.Sequential(shared), torch.nn.Sequential(shared)]).eval()
    rows = torch.randn(5, 24)
    if not is_right:
        monkeypatch.setattr(PackedLinear, "forward", lambda self, rows: rows[..., : self.out_features] * 0)
    with torch.inference_mode():
        before = model[1](model[0](rows))
        assert pack_linears(model, lambda: model[1](model[0](rows))) is is_right
        assert model[0][0] is model[1][0]
        torch.testing.assert_close(model[1](model[0](rows)), before)


@pytest.mark.parametrize(
    ("vendor", "capability", "is_slow"),
    [("AuthenticAMD", "AVX512", True), ("GenuineIntel", "AVX512", False), ("AuthenticAMD", "AVX2", False)],
)
def test_the_kind_of_cpu_decides(model, monkeypatch, vendor, capability, is_slow):
    """Not a measurement: slots on machines of one kind shall give the same bits."""
    monkeypatch.setattr(packed_linear, "cpu_vendor", lambda: vendor)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert pack_linears(model, lambda: model(torch.ones(1, 24))) is is_slow
    assert layers(model) == ((2, 0) if is_slow else (0, 2))


@pytest.mark.usefixtures("is_fast")
def test_half_precision_is_left_alone(model):
    """There torch takes oneDNN by itself."""
    assert not pack_linears(model.to(torch.bfloat16), lambda: torch.zeros(1))


@pytest.mark.usefixtures("is_fast")
def test_an_engine_has_the_same_fingerprint_packed_or_not(tmp_path, monkeypatch):
    """Slots on different CPUs may work on one job: their vectors differ by rounding alone."""
    folder = tiny_bert(tmp_path / "model")
    texts = ["one two three", "river", "word " * 50]
    settings = Settings(max_batch_tokens=100)
    packed = SentenceTransformerEncoder(ModelSpec.parse(folder), "cpu", settings)
    assert layers(packed._model)[0] >= 12
    monkeypatch.setattr(packed_linear, "has_slow_products", lambda: False)
    plain = SentenceTransformerEncoder(ModelSpec.parse(folder), "cpu", settings)
    assert layers(plain._model)[0] == 0
    assert packed.weights == plain.weights
    vectors = [engine.encode(texts, EncodeOptions()).values for engine in (packed, plain)]
    np.testing.assert_allclose(*vectors, atol=1e-5)
