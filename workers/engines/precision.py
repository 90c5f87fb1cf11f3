"""The numbers that a model computes with."""

from __future__ import annotations

import torch

from tasks.errors import UsageError
from tasks.settings import Settings

#: ``--precision`` in torch's words.
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def choose_precision(device: str, settings: Settings) -> str:
    """Return fp32, fp16 or bf16.

    ``auto`` is fp32 on a CPU; on a GPU bf16 where its hardware has it, as that keeps the range of fp32, and fp16
    elsewhere.

    Raises:
        UsageError: the device or the backend does not compute in what is asked for.
    """
    asked = settings.precision
    if device != "cpu":
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        if asked == "bf16" and not has_bf16:
            raise UsageError("--precision bf16: this GPU only emulates it. Take fp16 or fp32.")
        return asked if asked != "auto" else "bf16" if has_bf16 else "fp16"
    if asked == "fp16":  # measured: 0.28 of the speed of fp32 on a Zen 5, which has no arithmetic for it
        raise UsageError("--precision fp16 is several times slower than fp32 on a CPU. Take bf16 or fp32.")
    if asked == "bf16" and settings.backend == "onnx":
        raise UsageError("--precision bf16: ONNX Runtime computes in fp32 on a CPU. Take --backend openvino or torch.")
    return "fp32" if asked == "auto" else asked
