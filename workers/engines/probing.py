"""A few rows through a model, to see that it works, and that it computes what it did before."""

from __future__ import annotations

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import batch_to_device

#: Rows of different lengths, so that there is padding; one of them is alone in a batch of its own.
BATCHES = (
    ["It rained for a week.", "The river rose above the road to the mill, and nobody came.", "Yes."],
    ["Nobody knew how long the bridge would hold, so they went round by the upper ford."],
)


def probe(model: SentenceTransformer) -> torch.Tensor:
    """Return the vectors of the rows above. (n_rows, dim) float32 on the CPU."""
    vectors = []
    for texts in BATCHES:
        # Outside of inference mode, as the engine makes its batches: compiled code tells such tensors apart.
        features = batch_to_device(model.preprocess(texts), model.device)
        with torch.inference_mode():
            vectors.append(model(features)["sentence_embedding"].float().cpu())
    return torch.cat(vectors)


def worst_cosine(vectors: torch.Tensor, others: torch.Tensor) -> float:
    """Return the least cosine of any row with its counterpart; NaN if there is one."""
    return float(torch.nn.functional.cosine_similarity(vectors, others).min())
