"""Where a model's files are, and whether they are the published ones."""

import hashlib
import sys

import pytest

from tasks import weights
from tasks.errors import ModelNotFound
from tasks.messages import ModelSpec


def spec_of(name):
    """Return the spec of a model by its name."""
    return ModelSpec(engine="sentence_transformer", name=name)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Make a package `some_weights` that can be found, with a folder `model` that holds a file."""
    folder = tmp_path / "some_weights" / "model"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").touch()
    (folder / "model.safetensors").write_bytes(b"numbers")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "some_weights", raising=False)  # a dotted name imports its parent
    return folder


@pytest.fixture
def published(monkeypatch):
    """Note what the file of that package must be."""
    checksums = {"pkg:some_weights/model": {"model.safetensors": hashlib.sha256(b"numbers").hexdigest()}}
    monkeypatch.setattr(weights, "CHECKSUMS", checksums)


def test_a_hub_id_is_left_to_the_hub():
    """Nothing is looked up or downloaded here."""
    assert weights.locate(spec_of("org/name")) == "org/name"
    weights.verify(spec_of("org/name"))


def test_a_folder_is_taken_if_it_is_there(tmp_path):
    """A path stands for itself."""
    assert weights.locate(spec_of(str(tmp_path))) == str(tmp_path)
    with pytest.raises(ModelNotFound, match=f"^--model {tmp_path}/x: no such folder"):
        weights.locate(spec_of(f"{tmp_path}/x"))


def test_a_package_is_found_without_being_imported(package):
    """Its code does not run."""
    (package.parent / "__init__.py").write_text("raise RuntimeError('imported')")
    assert weights.locate(spec_of("pkg:some_weights/model")) == str(package)
    assert weights.locate(spec_of("pkg:some_weights")) == str(package.parent)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("pkg:no_such_weights/model", "the package no_such_weights is not installed here"),
        ("pkg:no_such.weights/model", "the package no_such.weights is not installed here"),
        ("pkg:some_weights.deeper/model", "the package some_weights.deeper is not installed here"),
        ("pkg:some_weights/other", "some_weights has no folder 'other'"),
        ("pkg:json.decoder/model", "the package json.decoder is not installed here"),
        ("pkg:__main__/model", "the package __main__ is not installed here"),
        ("pkg:some..weights/model", "the package some..weights is not installed here"),
    ],
)
def test_a_package_that_is_not_there_is_named(package, name, line):
    """The line says which part is missing."""
    with pytest.raises(ModelNotFound) as caught:
        weights.locate(spec_of(name))
    assert str(caught.value) == f"--model {name}: {line}."
    assert caught.value.data == {"model": name}


def test_published_weights_pass(package, published):
    """The file is what its author published, byte for byte."""
    weights.verify(spec_of("pkg:some_weights/model"))


def test_altered_weights_are_refused(package, published):
    """A packager who is not the author is not trusted."""
    (package / "model.safetensors").write_bytes(b"numberz")
    with pytest.raises(ModelNotFound, match=r"model.safetensors has SHA-256 \w{12}..., the published one"):
        weights.verify(spec_of("pkg:some_weights/model"))


def test_missing_weights_are_named(package, published):
    """An unfinished installation says so."""
    (package / "model.safetensors").unlink()
    with pytest.raises(ModelNotFound, match=r"model\.safetensors is missing"):
        weights.verify(spec_of("pkg:some_weights/model"))


def test_weights_without_a_published_checksum_pass(package):
    """There is nothing to compare them with."""
    weights.verify(spec_of("pkg:some_weights/model"))
