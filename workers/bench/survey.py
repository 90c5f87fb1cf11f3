"""What must be known before the rounds: token counts, the best batch sizes, what the model computes, true vectors."""

from __future__ import annotations

import random
import time
from typing import Any

from workers.bench.agreement import sample_rows
from workers.bench.ceiling import work_of
from workers.bench.peers import Setup, load
from workers.bench.plan import BATCH_SIZES

#: Seconds that one batch size gets on the sample, about.
TRY_S = 1.5
#: Rows of which the size of the sample is learnt, and the smallest sample.
FIRST_ROWS = 64


def survey(setup: Setup, texts: list[str]) -> dict[str, Any]:
    """Look at model and corpus.

    Returns:
        ``lengths``: tokens of each row as they are fed, special ones included. ``batch_seconds``: batch size ->
        seconds for a sample of the rows, the better of two tries. ``sample_rows``: how many that were. ``linears``,
        ``attention``: see ``ceiling.Work``. ``vectors``: of the rows that all contenders' vectors are compared in.
    """
    model = load(setup, setup.devices[0])
    transformer: Any = model[0]
    limit = model.max_seq_length or transformer.tokenizer.model_max_length
    ids = transformer.tokenizer(texts, truncation=True, max_length=limit, padding=False)["input_ids"]
    work = work_of(transformer.auto_model)

    def seconds(some: list[str], size: int) -> float:
        began = time.perf_counter()
        model.encode(some, batch_size=size)
        return time.perf_counter() - began

    shuffled = random.Random(0).sample(texts, len(texts))  # noqa: S311 - no secret
    seconds(shuffled[:FIRST_ROWS], setup.batch_size)
    rows_per_s = len(shuffled[:FIRST_ROWS]) / seconds(shuffled[:FIRST_ROWS], setup.batch_size)
    sample = shuffled[: max(FIRST_ROWS, int(rows_per_s * TRY_S))]
    tries = [{size: seconds(sample, size) for size in sizes} for sizes in (BATCH_SIZES, BATCH_SIZES[::-1])]
    return {
        "lengths": [len(row) for row in ids],
        "batch_seconds": {str(size): min(found[size] for found in tries) for size in BATCH_SIZES},
        "sample_rows": len(sample),
        "vectors": model.encode([texts[i] for i in sample_rows(len(texts))]).tolist(),
        "linears": work.linears,
        "attention": work.attention,
    }
