"""The rows of a bench: read from the file that the command wrote, or made up."""

from __future__ import annotations

import json
import random
from pathlib import Path

#: Common English words, the commonest first.
_WORDS = (
    "the of and to in a is that for it was on with as be at by this from are have or had not but what all were when we "
    "there can an your which their said if do will each about how up out them then she many some so these would other "
    "into has more her two like him see time could no make than first been its who now people my made over did down "
    "only way find use may water long little very after words called just where most know get through back much before "
    "go good new write our used me man too any day same right look think also around another came come work three word "
    "must because does part even place well such here take why things help put years different away again off went old "
    "number great tell men say small every found still between name should home big give air line set own under read "
    "last never us left end along while might next sound below saw something thought both few those always looked show "
    "large often together asked house world going want school important until form food keep children feet land side "
    "without boy once animals life enough took sometimes four head above kind began almost live page got earth need "
    "far hand high year mother light parts country father let night following picture study second eyes soon times "
    "story boys since white days ever paper hard near sentence better best across during today however sure means knew "
    "library information retrieval system research subject index catalogue document journal science user data method"
)
WORDS = list(dict.fromkeys(_WORDS.split()))
#: Words of a text: half of the texts have more than the median, one in six more than e times as many.
MEDIAN_WORDS, SPREAD, MOST_WORDS = 16, 1.0, 300


def make_up(n_rows: int) -> list[str]:
    """Return texts of made-up English: word frequencies by Zipf, lengths log-normal, the same ones every time."""
    rng = random.Random(0)  # noqa: S311 - no secret
    weights = [1 / rank for rank in range(1, len(WORDS) + 1)]
    texts = []
    for _ in range(n_rows):
        n_words = min(MOST_WORDS, max(1, round(MEDIAN_WORDS * rng.lognormvariate(0, SPREAD))))
        texts.append(" ".join(rng.choices(WORDS, weights, k=n_words)).capitalize() + ".")
    return texts


def read_texts(path: Path) -> list[str]:
    """Read the texts of a JSON Lines file."""
    with path.open(encoding="utf-8") as file:
        return [json.loads(line)["text"] for line in file]


def write_texts(path: Path, texts: list[str]) -> None:
    """Write texts as JSON Lines."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in texts)
