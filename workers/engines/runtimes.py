"""ONNX Runtime and OpenVINO: writing a graph, and opening one, bound to a slot's threads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tasks.errors import UsageError

#: Runs a graph: arrays (n_rows, n_tokens) by name, in the order of its inputs -> (n_rows, n_tokens, dim) float32.
Run = Callable[[dict[str, np.ndarray]], np.ndarray]

#: What each needs, as modules; the packages have the same names.
PACKAGES = {"onnx": ("onnx", "onnxruntime"), "openvino": ("openvino",)}
#: The file of a graph that is opened; its weights may lie beside it.
FILES = {"onnx": "model.onnx", "openvino": "model.xml"}


def _export_onnx(graph: torch.nn.Module, inputs: dict[str, torch.Tensor], file: Path) -> None:
    # By tracing: its graphs ran 1.2 times as fast as the newer exporter's, and took 2 s to make instead of 11.
    free = {0: "rows", 1: "tokens"}
    torch.onnx.export(
        graph,
        tuple(inputs.values()),
        str(file),
        input_names=list(inputs),
        output_names=["hidden"],
        dynamic_axes=dict.fromkeys([*inputs, "hidden"], free),
        opset_version=18,
        dynamo=False,
    )


def _open_onnx(file: Path, precision: str, threads: int) -> Run:  # noqa: ARG001 - it has but one
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])

    def run(inputs: dict[str, np.ndarray]) -> np.ndarray:
        hidden: np.ndarray = session.run(None, inputs)[0]
        return hidden

    return run


def _export_openvino(graph: torch.nn.Module, inputs: dict[str, torch.Tensor], file: Path) -> None:
    import openvino

    converted = openvino.convert_model(graph, example_input=tuple(inputs.values()))
    openvino.save_model(converted, str(file), compress_to_fp16=False)


def _open_openvino(file: Path, precision: str, threads: int) -> Run:
    import openvino

    core = openvino.Core()
    if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise UsageError("--precision bf16: this CPU has no instructions for it. Take fp32.")
    settings: dict[str, Any] = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        # By itself it takes bf16 where the CPU has it, and binds the threads of every slot to the same first cores.
        "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[precision],
        "ENABLE_CPU_PINNING": False,
    }
    request = core.compile_model(str(file), "CPU", settings).create_infer_request()

    def run(inputs: dict[str, np.ndarray]) -> np.ndarray:
        hidden: np.ndarray = np.array(request.infer(list(inputs.values()))[0], np.float32)
        return hidden

    return run


EXPORT: dict[str, Callable[[torch.nn.Module, dict[str, torch.Tensor], Path], None]] = {
    "onnx": _export_onnx,
    "openvino": _export_openvino,
}
OPEN: dict[str, Callable[[Path, str, int], Run]] = {"onnx": _open_onnx, "openvino": _open_openvino}
