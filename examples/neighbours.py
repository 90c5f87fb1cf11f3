"""Print the nearest neighbours among the vectors of a .parquet that `penstock encode` wrote.

python examples/neighbours.py vectors.parquet corpus.jsonl
"""

import json
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

#: Pairs that are printed.
N_PAIRS = 5


def main(vectors_file: str, corpus_file: str) -> None:
    """Print the pairs of records whose vectors have the highest cosine."""
    table = pq.read_table(vectors_file, columns=["id", "vector"])
    ids = table["id"].to_pylist()
    vectors = np.array(table["vector"].to_pylist(), np.float32)  # (n_rows, dim)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    with Path(corpus_file).open(encoding="utf-8") as lines:
        texts = {record["id"]: record["text"] for record in map(json.loads, lines)}

    cosines = vectors @ vectors.T  # (n_rows, n_rows)
    np.fill_diagonal(cosines, -1)
    nearest = cosines.argmax(axis=1)
    print(f"\n{len(ids)} vectors of {vectors.shape[1]} dimensions. The closest pairs:\n")
    shown: set[frozenset[int]] = set()
    for row in np.argsort(-cosines.max(axis=1)):
        pair = frozenset((int(row), int(nearest[row])))
        if pair in shown or len(shown) == N_PAIRS:
            continue
        shown.add(pair)
        print(f"  {cosines[row, nearest[row]]:.2f}  {texts[ids[row]]}")
        print(f"        {texts[ids[nearest[row]]]}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
