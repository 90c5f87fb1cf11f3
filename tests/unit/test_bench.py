"""The bench, mostly of encode: its plan, figures, what it shows, and that it notices vectors that are not the same."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
from rich.console import Console

from tasks.errors import Permanent, UsageError
from tests.conftest import wait_until
from tests.fuzz.commands import call
from workers.bench import __main__ as command
from workers.bench import batch_sizes, corpus, plan, showing, watching
from workers.bench.encoding import agreement
from workers.bench.encoding import plan as encoding_plan
from workers.bench.encoding.figures import Corpus, summarise
from workers.bench.encoding.layout import LAYOUT
from workers.bench.encoding.plan import EncodePlan
from workers.bench.encoding.subject import EncodeSubject
from workers.bench.encoding.work import Work
from workers.bench.figures import Outcome
from workers.bench.plan import CEILING, PENSTOCK, SENTENCE_TRANSFORMERS, Contender
from workers.bench.rounds import Bench
from workers.devices import Device

OURS = Contender(PENSTOCK, 2, 1)
SMALL = Contender(SENTENCE_TRANSFORMERS, 1, 2, batch_size=8)
LARGE = Contender(SENTENCE_TRANSFORMERS, 1, 2, batch_size=64)
POOL = Contender("pool", 2, 1, batch_size=8)
TOP = Contender(CEILING, 2, 1)

#: 1000 tokens in four rows.
COUNTS = Corpus(np.array([100, 200, 300, 400]), np.array([500, 1000, 1500, 2000]))
#: 2000 operations a token, and attention that costs nothing.
WORK = Work([(10, 100)], 0)


def read(**changes):
    """Read a plan with some options."""
    return EncodePlan.read(json.dumps({"model": "a/b", "out": "bench.json", **changes}))


def result(runs):
    """Return the JSON of a bench with these runs."""
    return {
        "model": "a/b",
        "machine": {"cores": 2, "devices": ["cpu"]},
        "corpus": {"name": "c.txt", "rows": 4, "tokens": 1000, "mean_tokens": 250.0},
        "contenders": summarise(runs, COUNTS, WORK),
    }


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"peers": ["sentence-transformers", "dask"]}, "--peers dask: there is no such peer; there are sentence-tr"),
        ({"peers": ["pool"]}, "sentence-transformers is what the others are compared with"),
        ({"processes": ["x"]}, "bench: processes.0: Input should be a valid integer"),
        ({"processes": [0]}, "bench: processes.0: Input should be greater than or equal to 1"),
        ({"rounds": 0}, "bench: rounds"),
        ({"model": "fake:dim=4"}, "--model fake:dim=4: no peer can run it"),
    ],
)
def test_a_wrong_option_is_one_line(changes, line):
    """It names the option and what it may be."""
    with pytest.raises(UsageError, match=line):
        read(**changes)


@pytest.mark.parametrize("is_there", [True, False])
def test_ray_runs_where_it_is_installed(monkeypatch, is_there):
    """Or where it was asked for by name."""
    monkeypatch.setattr(encoding_plan.importlib.util, "find_spec", lambda _: is_there or None)
    assert ("ray" in read().peers) == is_there
    assert set(encoding_plan.PEERS) - set(read().peers) <= {"ray"}
    assert read(peers=list(encoding_plan.PEERS)).peers == encoding_plan.PEERS


def test_processes_share_the_cores(monkeypatch):
    """Each number of processes that is asked for, or all up to the cores."""
    for module in (plan, encoding_plan):
        monkeypatch.setattr(module, "cores", lambda: 4)
    assert plan.spread(read()) == [(1, 4), (2, 2), (4, 1)]
    assert plan.spread(read(processes=[3, 8])) == [(3, 1), (8, 1)]
    assert plan.spread(read(processes=[4, 1, 4])) == [(1, 4), (4, 1)]
    assert encoding_plan.contenders(read(processes=[4, 1]), "fp32", [8])[-1] == Contender(CEILING, 4, 1)


def test_contenders_are_those_that_were_asked_for(monkeypatch):
    """Those with several processes in each shape, sentence-transformers with its best batch sizes."""
    for module in (plan, encoding_plan):
        monkeypatch.setattr(module, "cores", lambda: 2)
    found = encoding_plan.contenders(read(peers=[SENTENCE_TRANSFORMERS, "threads"]), "fp16", [16, 32])
    assert [contender.label for contender in found] == [
        "penstock 1 x 2 fp16",
        "penstock 2 x 1 fp16",
        "sentence-transformers 1 x 2, batch 16 fp16",
        "sentence-transformers 1 x 2, batch 32 fp16",
        "threads 1 x 2 fp16",
        "threads 2 x 1 fp16",
        "ceiling 2 x 1 fp16",
    ]
    assert {contender.batch_size for contender in found if contender.name == "threads"} == {16}


def test_each_round_has_everybody_in_another_order():
    """The same orders in every bench."""
    everybody = [Contender("threads", n, 1) for n in range(1, 9)]
    orders = [plan.order(everybody, round_) for round_ in range(3)]
    assert all(set(found) == set(everybody) for found in orders)
    assert len(set(map(tuple, orders))) == 3
    assert orders == [plan.order(everybody, round_) for round_ in range(3)]


@pytest.mark.parametrize("name", encoding_plan.PEERS)
@pytest.mark.parametrize("n_rows", [1, 7, 100, 101])
@pytest.mark.parametrize("processes", [1, 3, 8])
def test_the_pieces_of_a_peer_are_the_corpus(name, n_rows, processes):
    """Every row once, in order."""
    assert [i for piece in encoding_plan.pieces(name, n_rows, processes) for i in piece] == list(range(n_rows))


def test_the_best_batch_sizes_are_the_fastest_ones():
    """The best one first."""
    seconds = {"4": 3.0, "8": 2.0, "16": 1.0, "32": 1.5, "64": 4.0, "128": 5.0, "256": 6.0}
    assert batch_sizes.best_sizes({"batch_seconds": seconds}) == [16, 32]


def test_padding_is_counted_batch_by_batch():
    """Rows sorted by characters, each batch as long as its longest row; each piece by itself."""
    alone = Contender(SENTENCE_TRANSFORMERS, 1, 2, batch_size=3)
    assert COUNTS.padded_tokens(alone) == 3 * 400 + 100
    shared = Contender("threads", 2, 1, batch_size=3)
    assert COUNTS.padded_tokens(shared) == 2 * 200 + 2 * 400


def test_attention_counts_with_the_square_of_the_length():
    """Scores and weighted sum, a multiplication and an addition each, for every pair of tokens of a row."""
    assert Work([(2, 3), (3, 2)], 5).flops(np.array([10, 1])) == 11 * 2 * 12 + 4 * 5 * (100 + 1)


def test_ratios_are_within_a_round_and_to_the_fastest_batch_size():
    """A machine that is half as fast in one round makes no difference."""
    runs = {
        OURS: [Outcome(seconds=0.5, padded_tokens=1250, device_use=0.9), Outcome(seconds=1.0, padded_tokens=1250)],
        SMALL: [Outcome(seconds=1.0, padded_tokens=2000), Outcome(seconds=2.0, padded_tokens=2000)],
        LARGE: [Outcome(seconds=4.0), Outcome(seconds=0.1 * 80)],
        TOP: [Outcome(flops_per_s=5e6, kernel="oneDNN"), Outcome(flops_per_s=2.5e6, kernel="torch")],
    }
    rows = {row["label"]: row for row in summarise(runs, COUNTS, WORK)}
    ours = rows[OURS.label]
    assert ours["tokens_per_s"] == {"median": 1500, "least": 1000, "most": 2000}
    assert ours["rows_per_s"] == 6
    assert ours["ratio"] == {"median": 2.0, "least": 2.0, "most": 2.0}
    assert ours["of_ceiling"]["median"] == pytest.approx(0.8)
    assert (ours["padding"], ours["device_use"]) == (pytest.approx(0.2), 0.9)
    assert rows[SMALL.label]["ratio"]["median"] == 1.0
    assert rows[LARGE.label]["ratio"]["median"] == 0.25
    assert rows[TOP.label]["tokens_per_s"]["median"] == 1875
    assert showing.label(rows[TOP.label]) == "ceiling 2 x 1, oneDNN"
    assert showing.label(ours) == OURS.label


def test_a_round_that_failed_does_not_count():
    """The others do; with none left, there are no figures."""
    failed = Outcome(error="ray is not installed")
    runs = {
        OURS: [failed, Outcome(seconds=1.0)],
        SMALL: [Outcome(seconds=4.0), Outcome(seconds=2.0)],
        POOL: [failed] * 2,
    }
    ours, _, pool = summarise(runs, COUNTS, WORK)
    assert ours["ratio"]["median"] == 2.0
    assert ours["errors"] == ["ray is not installed"]
    assert (pool["tokens_per_s"], pool["ratio"], pool["rows_per_s"]) == (None, None, None)
    assert [showing.label(row) for row in (ours, pool)] == ["penstock 2 x 1 (1 of 2 failed)", "pool 2 x 1"]


def test_a_contender_that_failed_is_a_line_of_the_table():
    """With its reason; the others have their figures."""
    runs = {
        OURS: [Outcome(seconds=0.5, command_s=7.0, peak_bytes=10**9, padded_tokens=1250, device_use=0.97)],
        SMALL: [Outcome(seconds=1.0, padded_tokens=2000)],
        POOL: [Outcome(error="MemoryError in load, peers.py:70")],
    }
    found = result(runs)
    lines = showing.markdown(found, LAYOUT).splitlines()
    assert lines[2] == "| penstock 2 x 1 | 8 | 2,000 | 2.00 | - | 97% | 1,000 MB | 20% | 7.0 s |"
    assert lines[4].startswith("| pool 2 x 1 | failed: MemoryError in load, peers.py:70 |")
    assert {line.count("|") for line in lines} == {10}
    console = Console(width=200)
    with console.capture() as shown:
        console.print(showing.table(found, LAYOUT, 200))
    assert "4 rows, 1,000 tokens, 250 a row" in shown.get()
    assert "failed: MemoryError" in shown.get()


def test_the_plot_is_an_svg_with_everybody_in_it(tmp_path):
    """Those that have a speed; the ceiling is a line."""
    runs = {
        OURS: [Outcome(seconds=0.5)],
        SMALL: [Outcome(seconds=1.0)],
        POOL: [Outcome(error="no")],
        TOP: [Outcome(flops_per_s=5e6)],
    }
    showing.plot(result(runs), LAYOUT, tmp_path / "bench.svg")
    drawn = (tmp_path / "bench.svg").read_text()
    assert drawn.startswith("<?xml")
    for text in (OURS.label, SMALL.label, "matrix products alone"):
        assert text in drawn
    assert POOL.label not in drawn


def test_a_name_is_shown_as_it_is(tmp_path):
    """In the table and the plot, whatever markup, formula or emoji it looks like."""
    found = result({OURS: [Outcome(seconds=0.5)], SMALL: [Outcome(error="[/i] $y$")]})
    found["corpus"]["name"] = "a[/b]$x$:cat:.jsonl"
    console = Console(width=200)
    with console.capture() as shown:
        console.print(showing.table(found, LAYOUT, 200))
    assert "a[/b]$x$:cat:.jsonl: 4 rows" in shown.get()
    assert "failed: [/i] $y$" in shown.get()
    showing.plot(found, LAYOUT, tmp_path / "bench.svg")
    assert "a[/b]$x$:cat:.jsonl: 4 rows" in (tmp_path / "bench.svg").read_text()


def test_without_matplotlib_the_line_says_what_to_install(tmp_path, monkeypatch):
    """There is no plot then, and all else."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UsageError, match=r"pip install 'penstock\[report\]'"):
        showing.plot(result({OURS: [Outcome(seconds=1.0)]}), LAYOUT, tmp_path / "bench.svg")


def vectors(n_rows=50, dim=8):
    """Return random vectors, and those of the rows that are compared."""
    found = np.random.default_rng(0).normal(size=(n_rows, dim)).astype(np.float32)
    return found, found[agreement.sample_rows(n_rows)]


def test_vectors_that_are_the_same_but_for_their_length_agree():
    """Rounding does not count either."""
    found, reference = vectors()
    agreement.check("x", (found * 3 + 1e-4).astype(np.float16), reference, 50)


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        (lambda found: found[::-1], "x gave other vectors than sentence-transformers: 50 of 50 rows"),
        (lambda found: np.roll(found, 1, axis=0), "The speeds do not compare"),
        (lambda found: found[:-1], r"shape \(49, 8\), not \(50, 8\)"),
        (lambda found: np.where(np.arange(50)[:, None] == 7, np.nan, found), "1 of 50 rows"),
        (lambda found: np.where(np.arange(50)[:, None] == 7, 0.0, found), "1 of 50 rows"),
    ],
)
def test_vectors_that_are_not_the_same_are_an_error(spoil, line):
    """Another order, rows that are missing, no numbers, nothing at all."""
    found, reference = vectors()
    with pytest.raises(Permanent, match=line):
        agreement.check("x", spoil(found), reference, 50)


def test_one_contender_with_other_vectors_leaves_the_others_their_figures(tmp_path, monkeypatch):
    """It is the only one that failed, and the reason is its error."""
    found, reference = vectors()
    subject = EncodeSubject(read())
    subject._reference = reference
    subject._counts = Corpus(np.full(50, 20), np.full(50, 100))
    bench = Bench(subject, tmp_path, say=print, doing=print)

    def run_task(contender, folder):
        np.save(folder / "values.npy", found[::-1] if contender == POOL else found)
        return watching.Watched(0, 3.0, [], []), {"began": 1.0, "ended": 2.0}

    monkeypatch.setattr(bench, "_run_task", run_task)
    outcomes = {contender: bench._run_one(contender) for contender in (SMALL, POOL)}
    assert (outcomes[SMALL].error, outcomes[SMALL].seconds) == (None, 1.0)
    assert outcomes[POOL].error.startswith("pool 2 x 1 gave other vectors than sentence-transformers")
    assert list(tmp_path.rglob("*.npy")) == []


def test_the_made_up_corpus_is_always_the_same(tmp_path):
    """And what is written is what is read."""
    texts = corpus.make_up(200)
    assert texts == corpus.make_up(200)
    assert len(set(texts)) > 190
    assert 10 < np.median([len(text.split()) for text in texts]) < 25
    corpus.write_texts(tmp_path / "c.jsonl", [*texts, "two\nlines\u2028"])
    assert corpus.read_texts(tmp_path / "c.jsonl") == [*texts, "two\nlines\u2028"]


def test_the_use_of_the_cores_is_of_the_time_between_two_moments():
    """Before and after, the program did other things."""
    looks = [watching.Look(0, 0, 5), watching.Look(10, 10, 9), watching.Look(20, 30, 7), watching.Look(30, 30, 1)]
    watched = watching.Watched(0, 30.0, looks, [])
    assert watched.cpu_share(10, 20, 2) == 1.0
    assert watched.cpu_share(5, 15, 2) == pytest.approx(0.75)
    assert watched.peak_bytes == 9
    assert watched._replace(looks=[]).cpu_share(0, 1, 2) is None


def test_what_nvidia_smi_writes_is_read(tmp_path):
    """One line a GPU and look; a last line that is cut off, and a GPU that does not tell, are left out."""
    (tmp_path / "gpu.csv").write_text(
        "2026/03/01 10:00:00.000, 90, 1024\n2026/03/01 10:00:00.001, 70, 2048\n"
        "2026/03/01 10:00:00.500, [N/A], 2048\n2026/03/01 10:0"
    )
    looks = watching.read_gpu_log(tmp_path / "gpu.csv")
    assert [(look.use, look.memory_bytes) for look in looks] == [(0.9, 1 << 30), (0.7, 2 << 30)]
    watched = watching.Watched(0, 1.0, [], looks)
    assert watched.gpu_share(looks[0].at - 1, looks[0].at + 1) == pytest.approx(0.8)
    assert watched.gpu_peak_bytes == 2 << 30
    assert watched.gpu_share(0, 1) is None
    assert watching.read_gpu_log(tmp_path / "none.csv") == []


def test_everybody_sees_the_gpus_that_penstock_would_take(tmp_path, monkeypatch):
    """And these are watched; by UUID, as numbers differ between nvidia-smi and CUDA."""
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$$ $*" > {tmp_path}/asked\nexec sleep 600\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,1,0")
    bench = Bench(EncodeSubject(read()), tmp_path, say=print, doing=print)
    bench._gpus = [Device("cuda:1", uuid="GPU-b"), Device("cuda:0", uuid="GPU-a")]
    code = "import os, sys, time\nwhile not os.path.getsize(sys.argv[1]): time.sleep(0.01)"
    code += "\nprint(os.environ['CUDA_VISIBLE_DEVICES'])"
    (tmp_path / "asked").touch()
    assert bench._watch([sys.executable, "-c", code, str(tmp_path / "asked")], tmp_path, {}).status == 0
    assert (tmp_path / "out").read_text() == "GPU-b,GPU-a\n"
    pid, first, *_ = (tmp_path / "asked").read_text().split()
    assert first == "--id=GPU-b,GPU-a"
    assert not psutil.pid_exists(int(pid))


#: Starts a process that nobody would end, says which, and waits.
LEAVES_A_CHILD = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
print(child.pid, flush=True)
{then}
"""


def watch(folder: Path, then: str) -> watching.Watched:
    """Run a program that leaves a process behind."""
    code = LEAVES_A_CHILD.format(then=then)
    return watching.run([sys.executable, "-c", code], folder=folder, environment={"PATH": "/usr/bin:/bin"})


def is_gone(folder: Path) -> bool:
    """Whether the process that was left behind is no more."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(int((folder / "out").read_text())).status() == psutil.STATUS_ZOMBIE
    return True


def test_a_program_is_watched_to_its_end_and_nothing_of_it_stays(tmp_path):
    """Its memory is that of all its processes, and what it left behind is ended."""
    watched = watch(tmp_path, "import time; time.sleep(1); sys.exit(3)")
    assert watched.status == 3
    assert watched.peak_bytes > 10**6
    wait_until(lambda: is_gone(tmp_path), "the process that was left behind is gone")


def test_an_interrupted_bench_leaves_no_process(tmp_path, monkeypatch):
    """Ctrl-C while a contender runs: it ends, and all that it started."""
    look = watching._Family.look

    def interrupt(family):
        if (tmp_path / "out").read_text():
            monkeypatch.setattr(watching._Family, "look", look)
            raise KeyboardInterrupt
        return look(family)

    monkeypatch.setattr(watching._Family, "look", interrupt)
    monkeypatch.setattr(watching, "GRACE_S", 0.1)
    with pytest.raises(KeyboardInterrupt):
        watch(tmp_path, "import time; time.sleep(600)")
    wait_until(lambda: is_gone(tmp_path), "the contender's process is gone")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--out", "there.json"], "--out there.json: there.json is there already: name another file, or delete it."),
        (["--out", "drawn.json"], "--out drawn.json: drawn.svg is there already: name another file, or delete it."),
        (
            ["--out", "b.svg"],
            "--out b.svg: the figures are JSON, and the plot gets the same name with .svg: name a .js",
        ),
        (["--out", "b"], "--out b: the figures are JSON"),
        (["--out", f"{'b' * 250}.json"], "nothing can be written there (File name too long). Choose another name."),
        (["--out", "none/b.json"], "--out none/b.json: there is no folder "),
        (["--out", "b.json", "--corpus", "none.txt"], "none.txt: no such file"),
        (["--out", "b.json", "--corpus", "empty.csv"], "empty.csv holds no records"),
        (["--out", "b.json", "--model", "fake"], "--model fake: no peer can run it; name a real one."),
        (["--out", "b.json", "--processes", "2,x"], "bench: processes.1: Input should be a valid integer, unable"),
    ],
)
def test_the_command_says_what_is_wrong_with_its_options(tmp_path, capfd, arguments, line):
    """In one line, before anything runs."""
    (tmp_path / "there.json").write_text("{}")
    (tmp_path / "drawn.svg").write_text("<svg/>")
    (tmp_path / "empty.csv").write_text("text\n")
    outcome = call("bench", "encode", "--model", "a/b", *arguments, folder=tmp_path)
    assert outcome.code in {2, 4}
    said = outcome.err + capfd.readouterr().err
    assert line in said
    assert len(said.splitlines()) == 1
    assert (tmp_path / "there.json").read_text() == "{}"
    assert (tmp_path / "drawn.svg").read_text() == "<svg/>"
    assert not (tmp_path / "b.json").exists()


def test_figures_that_cannot_be_written_are_shown_all_the_same(tmp_path, monkeypatch, capsys):
    """A disk that is full in the end costs no bench, and leaves no half of a file."""
    found = result({OURS: [Outcome(seconds=0.5)], SMALL: [Outcome(seconds=1.0)]})

    class Done(Bench):
        def __init__(self, *_, **__):
            pass

        def run(self):
            return found

    def fill_up(_, path):
        path.write_text('{"contend')
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(command, "Bench", Done)
    monkeypatch.setattr(command, "_write_figures", fill_up)
    monkeypatch.setattr(command.lifeline, "hang_on_stdin", lambda _: None)
    monkeypatch.setattr(command.signal, "signal", lambda *_: None)
    options = {"model": "a/b", "out": str(tmp_path / "b.json")}
    monkeypatch.setattr(sys, "argv", ["bench", "encode", json.dumps(options)])
    assert command.main() == 1
    said = capsys.readouterr()
    assert "b.json cannot be written: No space left on device." in said.err
    assert OURS.label in said.out
    assert [path.name for path in tmp_path.iterdir()] == ["b.svg"]


def test_the_bench_itself_loads_no_torch():
    """It would take memory and cores from whom it measures."""
    code = "import sys, workers.bench.__main__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
