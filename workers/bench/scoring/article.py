"""The figures of the article that penstock follows, as it prints them. What it does not say is None."""

from __future__ import annotations

from typing import Any

from workers.bench.figures import spread

#: Of February 2026.
SOURCE = "https://blog.csdn.net/weixin_32047493/article/details/158201730"
#: On what; the model is Qwen2.5-1.5B, asked for yes or no.
TITLE = "article: Lychee-Rerank, 1,000 documents, one pair at a time in each process, on one GPU that is not named"
#: Processes, seconds in all, documents a second, speed-up as it is claimed, use of the GPU.
_ROWS = ((1, 720.0, 1.4, 1.0, 0.28), (4, None, 4.3, 3.2, 0.72), (8, None, 6.1, 4.5, 0.85))


def figures() -> dict[str, Any]:
    """Return what goes into the JSON file, the rows as those of contenders are."""
    return {
        "source": SOURCE,
        "title": TITLE,
        "rows": [
            {
                "label": f"article, {processes} process{'es' * (processes > 1)}",
                "name": "article",
                "processes": processes,
                "seconds": spread([] if total_s is None else [total_s]),
                "documents_per_s": spread([speed]),
                "speedup": spread([speedup]),
                "device_use": use,
            }
            for processes, total_s, speed, speedup, use in _ROWS
        ],
    }
