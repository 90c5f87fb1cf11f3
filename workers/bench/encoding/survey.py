"""What must be known before the rounds: token counts, the best batch sizes, what the model computes, true vectors."""

from __future__ import annotations

from typing import Any

from workers.bench.batch_sizes import try_sizes
from workers.bench.encoding.agreement import sample_rows
from workers.bench.encoding.ceiling import work_of
from workers.bench.encoding.peers import load
from workers.bench.ways import Setup

#: Rows of which the size of the sample is learnt.
FIRST_ROWS = 64


def survey(setup: Setup, texts: list[str]) -> dict[str, Any]:
    """Look at model and corpus.

    Returns:
        ``lengths``: tokens of each row as they are fed, special ones included. ``batch_seconds``, ``sample_rows``: see
        ``try_sizes``. ``linears``, ``attention``: see ``ceiling.Work``. ``vectors``: of the rows that all contenders'
        vectors are compared in.
    """
    model = load(setup, setup.devices[0])
    transformer: Any = model[0]
    limit = model.max_seq_length or transformer.tokenizer.model_max_length
    ids = transformer.tokenizer(texts, truncation=True, max_length=limit, padding=False)["input_ids"]
    work = work_of(transformer.auto_model)
    return {
        **try_sizes(lambda some, size: model.encode(some, batch_size=size), texts, n_first=FIRST_ROWS),
        "lengths": [len(row) for row in ids],
        "vectors": model.encode([texts[i] for i in sample_rows(len(texts))]).tolist(),
        "linears": work.linears,
        "attention": work.attention,
    }
