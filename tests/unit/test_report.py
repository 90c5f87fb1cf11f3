"""The report of a job: what receipts come to, and the page that shows it."""

from __future__ import annotations

import itertools
import json
import re
from html.parser import HTMLParser

import numpy as np
import pyarrow as pa
import pytest

from producer.commands import report as command
from producer.reporting import figures, receipts
from producer.reporting.binning import MOST_LENGTH_BINS, MOST_TIME_BINS, LengthBins, Quantiles, TimeBins
from producer.reporting.page import Findings, render
from producer.reporting.receipts import Lengths, Told, read_receipts
from producer.reporting.tally import MOST_SLOWEST, MOST_SPANS, Tally
from tasks import keys, tables
from tasks.errors import OutputExists, UsageError
from tasks.messages import Receipt
from tasks.options import EncodeOptions, ScoreOptions, Template
from tasks.ports import Computed
from tasks.records import Lease, Recorded, read_status
from tasks.store import open_store, store_id

#: When the first chunk of a made job is claimed.
START_S = 1_790_000_000.0
#: The ledger's fields of a job whose work took two seconds.
WORKED = {"announced": 1, "first_claim_ms": 1000, "last_record_ms": 3000}
#: What a made slot is called.
SLOT = "cpu-0a1b2c@host/0"


def receipt(at_s=0.0, wall_s=1.0, **fields):
    """Return a receipt of a chunk of ten rows that was claimed so many seconds after the start."""
    defaults = {
        "rows": 10,
        "tokens": 100,
        "padded_tokens": 125,
        "started_s": START_S + at_s,
        "wall_s": wall_s,
        "model_s": 0.75 * wall_s,
        "idle_s": 0.25 * wall_s,
        "batch_tokens": 1024,
        "loads": 1,
        "slot": SLOT,
    }
    return Receipt(**{**defaults, **fields})


def tally_of(*made, first=0):
    """Count receipts as those of chunks that follow each other."""
    return Tally.of(
        Told(Recorded(chunk, 1, one.rows, one.failed_rows, 1, 0), one) for chunk, one in enumerate(made, first)
    )


def status_of(spec, **fields):
    """Return the state of a job as the ledger's hash has it."""
    return read_status(spec, {"state": "done", **{name: str(value) for name, value in fields.items()}})


class Page(HTMLParser):
    """What a browser makes of a page: its tags, their attributes, and its visible words."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.values, self._words, self._is_hidden = [], [], [], False
        self.feed(text)
        self.words = " ".join(" ".join(self._words).split())

    def handle_starttag(self, tag, attrs):
        """Keep a tag."""
        self.tags.append(tag)
        self.values += attrs
        self._is_hidden = tag == "style"

    def handle_data(self, data):
        """Keep words."""
        if not self._is_hidden:
            self._words.append(data)


# -- counting ----------------------------------------------------------------------------------------------------------


def test_time_bins_keep_what_they_were_given_however_wide_they_grow():
    """Nothing is lost or doubled when bins merge, and there are never too many."""
    bins = TimeBins()
    rng = np.random.default_rng(0)
    stretches = [(start, start + length) for start, length in rng.uniform(0, 3000, (500, 2))]
    for start_s, end_s in stretches:
        bins.add(START_S + start_s, START_S + end_s, 7.0)
    first_s, last_s = min(s for s, _ in stretches), max(e for _, e in stretches)
    edges, rates = bins.per_second(START_S + first_s, START_S + last_s)
    assert len(rates) <= MOST_TIME_BINS
    assert np.sum(rates * np.diff(edges)) == pytest.approx(7.0 * 500)
    assert (np.diff(edges) > 0).all()


def test_time_bins_spread_an_amount_evenly():
    """A chunk of ten seconds gives each of them a tenth."""
    bins = TimeBins()
    bins.add(START_S, START_S + 10, 50.0)
    edges, rates = bins.per_second(START_S, START_S + 10)
    assert edges[0] == START_S
    assert edges[-1] == START_S + 10
    assert rates == pytest.approx(5.0)


def test_the_order_of_chunks_does_not_change_their_bins():
    """Chunks end in any order, and the first is not always the earliest."""
    stretches = [(START_S + i, START_S + i + 2.5) for i in range(400)]
    forwards, backwards = TimeBins(), TimeBins()
    for stretch, other in zip(stretches, reversed(stretches), strict=True):
        forwards.add(*stretch, 1.0)
        backwards.add(*other, 1.0)
    for mine, yours in zip(*(b.per_second(START_S, START_S + 402) for b in (forwards, backwards)), strict=True):
        assert mine == pytest.approx(yours)


def test_a_chunk_that_took_no_time_is_counted():
    """A clock may be too coarse for it."""
    bins = TimeBins()
    bins.add(START_S, START_S, 3.0)
    _, rates = bins.per_second(START_S, START_S)
    assert rates.sum() > 0


def test_lengths_are_counted_exactly_in_bins_of_one_width():
    """However long the longest row is, all rows are in, and the truncated ones among them."""
    bins = LengthBins()
    lengths = [np.arange(1, 40), np.arange(1, 5000), np.full(7, 8192)]
    for tokens in lengths:
        bins.add(tokens, tokens == 8192)
    firsts, rows, truncated = bins.counts()
    assert len(firsts) <= MOST_LENGTH_BINS
    assert np.array_equal(rows, np.histogram(np.concatenate(lengths), [*firsts, firsts[-1] + bins.width])[0])
    assert (truncated.sum(), bins.limit, bins.most) == (7, 8192, 8192)


def test_quantiles_are_right_to_two_percent():
    """Without keeping the numbers."""
    values = np.random.default_rng(1).lognormal(0, 1, 5000)
    quantiles = Quantiles()
    for value in values:
        quantiles.add(value)
    for share in (0.01, 0.5, 0.99):
        assert quantiles.at(share) == pytest.approx(np.quantile(values, share, method="inverted_cdf"), rel=0.02)
    edges, counts = quantiles.counts(30)
    assert (len(counts) <= 30, counts.sum()) == (True, 5000)
    assert np.histogram(values, edges)[0] == pytest.approx(counts, abs=100)
    assert Quantiles().at(0.5) == 0


# -- slots and chunks --------------------------------------------------------------------------------------------------


def test_a_lane_shows_its_gaps():
    """Two chunks with a pause of three seconds: chunk, gap, chunk."""
    (slot,) = tally_of(receipt(0, 2), receipt(5, 1)).slots.values()
    edges, held, model = figures.lane_steps(slot, most_spans=10)
    assert edges - START_S == pytest.approx([0, 2, 5, 6])
    assert held == pytest.approx([1, 0, 1])
    assert model == pytest.approx([0.75, 0, 0.75])


def test_a_chunk_that_overlaps_the_one_before_begins_where_that_ended():
    """The model works on one at a time; drawn over each other they would show more than there was."""
    (slot,) = tally_of(receipt(0, 4), receipt(1, 5, model_s=2.0)).slots.values()
    edges, held, model = figures.lane_steps(slot, most_spans=10)
    assert edges - START_S == pytest.approx([0, 4, 4, 6])
    assert held == pytest.approx([1, 0, 1])
    assert model == pytest.approx([0.75, 0, 1])


def test_a_lane_with_many_chunks_keeps_its_gaps_in_bins():
    """Memory and page stay small, and an hour without a chunk is still seen."""
    made = [receipt(i if i < 1000 else i + 3600, 1) for i in range(2000)]
    (slot,) = tally_of(*made).slots.values()
    assert slot.spans is None
    assert len(made) > MOST_SPANS
    edges, held, model = figures.lane_steps(slot, most_spans=MOST_SPANS)
    assert len(held) <= MOST_TIME_BINS
    widths = np.diff(edges)
    assert np.sum(held * widths) == pytest.approx(2000, rel=0.01)
    assert np.sum(model * widths) == pytest.approx(1500, rel=0.01)
    assert widths[held < 0.01].sum() == pytest.approx(3600, rel=0.05)


def test_slots_stand_with_those_of_their_machine():
    """And the ninth before the tenth."""
    names = ["cpu-b@gpu10/0", "cpu-a@gpu9/10", "cpu-a@gpu9/9", "cpu-c@gpu9/0"]
    tally = tally_of(*(receipt(slot=name) for name in names))
    assert [slot.name for slot in tally.ordered_slots()] == [names[2], names[1], names[3], names[0]]
    assert tally.hosts == {"gpu9", "gpu10"}


def test_the_slowest_chunks_are_kept_in_order():
    """Of a thousand a few, the slowest first."""
    walls = np.random.default_rng(2).permutation(1000) + 1
    tally = tally_of(*(receipt(i, float(wall)) for i, wall in enumerate(walls)))
    slowest = tally.slowest
    assert [slow.wall_s for slow in slowest] == list(range(1000, 1000 - MOST_SLOWEST, -1))
    assert [walls[slow.chunk] for slow in slowest] == [slow.wall_s for slow in slowest]


def test_idle_and_model_are_all_of_a_slots_time():
    """Reading and tokenising may overlap with the model, and are no parts of it."""
    tally = tally_of(receipt(0, 1, idle_s=1.0, model_s=3.0, tokenise_s=3.0), receipt(2, 1, idle_s=0.0, model_s=4.0))
    assert tally.totals.known_s == 8
    assert tally.totals.idle_share == 1 / 8
    assert Tally().totals.idle_share is None


def test_padding_is_told_only_of_chunks_whose_rows_were_all_computed():
    """Rows that took their vector from an equal text are among the tokens, but went through no model."""
    whole, shared = receipt(), receipt(duplicate_rows=5, padded_tokens=60)
    assert tally_of(whole, shared).padding_share == pytest.approx(0.2)
    assert tally_of(shared).padding_share is None


def test_receipts_of_earlier_releases_have_no_place_in_time(make_spec):
    """They are in the sums, and the page says so."""
    tally = tally_of(receipt(started_s=0.0, wall_s=0.0), receipt())
    assert (tally.untimed, tally.totals.chunks, tally.span_s) == (1, 2, 1)
    page = Page(render(Findings(status_of(make_spec(), announced=2, total=2, recorded=2), tally))).words
    assert "1 receipts do not say when their chunk was claimed" in page
    old = tally_of(receipt(started_s=0.0, wall_s=0.0))
    assert "<svg" not in render(Findings(status_of(make_spec(), announced=1, total=1, recorded=1), old))


# -- the page ----------------------------------------------------------------------------------------------------------


def test_a_job_without_any_result_has_a_page(make_spec):
    """It says that there is nothing yet, and draws nothing."""
    page = render(Findings(status_of(make_spec(), state="running", announced=7), Tally()))
    words = Page(page).words
    assert "0 of 7 or more chunks" in words
    assert "Chunks without a result: 0–6. " in words
    assert "<svg" not in page


def test_a_job_of_one_chunk_has_all_plots(make_spec):
    """The smallest job is no special case."""
    one = Told(Recorded(0, 1, 10, 0, 1, 0), receipt(), Lengths(np.full(10, 10), np.zeros(10, bool)))
    status = status_of(make_spec(), announced=1, total=1, recorded=1, rows=10, rows_done=10, tokens=100)
    page = Page(render(Findings(status, Tally.of([one]))))
    names = {value.split("-")[0] for name, value in page.values if name == "aria-labelledby"}
    assert names == {"throughput", "lanes", "stages", "lengths", "walls"}
    assert "None: every row has a vector." in page.words
    assert "No row was truncated." in page.words


def test_a_failed_job_says_why_and_what_is_missing(make_spec):
    """With the chunks that have no result, the slots that refused it, and results that cannot be read."""
    tally = tally_of(receipt(), receipt(failed_rows=2), first=3)
    tally.add(Told(Recorded(9, 1, 10, 0, 1, 0), None, problem="it is torn"))
    status = status_of(
        make_spec(), state="failed", reason="2 rows of chunk 4 failed", total=20, announced=20, failed_rows=2
    )
    errors = [{"row": 41, "id": "doc-41", "error": "the model failed"}]
    words = Page(render(Findings(status, tally, errors, {"cpu-1@b/0": "other weights"}))).words
    assert "2 of 20 chunks are in this page" in words
    assert "The job ended so: 2 rows of chunk 4 failed" in words
    assert "Chunks without a result: 0–2, 5–8, 10–19." in words
    assert "1 results could not be read" in words
    assert "it is torn" in words
    assert "cpu-1@b/0 other weights" in words
    assert "41 doc-41 the model failed" in words


def test_a_scoring_job_is_told_in_pairs_documents_and_scores(make_spec):
    """It has no vectors, and a failure names query and document; of a template, its name is enough."""
    template = Template(
        name="plain", instruction="judge", parts=("{query} {document}",), positive="yes", formula="logit"
    )
    spec = make_spec(options=ScoreOptions(template=template, instruction="find it"))
    status = status_of(spec, total=1, recorded=1, rows=10, rows_done=10, failed_rows=1, dim=1, **WORKED)
    told = Told(Recorded(0, 1, 10, 1, 1, 0), receipt(failed_rows=1), Lengths(np.full(9, 10), np.zeros(9, bool)))
    errors = [{"row": 3, "query_id": "q-7", "doc_id": "d-9", "error": "the model failed"}]
    words = Page(render(Findings(status, Tally.of([told]), errors))).words
    assert "pairs done 10" in words
    assert "5 documents/s, first claim to last receipt" in words
    assert "instruction = find it, template = plain" in words
    assert "9 pairs with a score" in words
    assert "1 pairs have no score" in words
    assert "row query_id doc_id error 3 q-7 d-9 the model failed" in words
    assert "vector" not in words
    assert not re.search(r"\brows?\b", words.replace("row query_id", ""))


def test_nothing_in_a_job_becomes_markup(make_spec):
    """Ids, errors, names and slots come from elsewhere."""
    evil = "<script>alert('$x_')</script>\"&<img src=x onerror=y>"
    slot = f"{evil}@{evil}/0"
    spec = make_spec(name=evil, options=EncodeOptions(prompt=evil))
    status = status_of(spec, state="failed", reason=evil, total=2, announced=2, failed_rows=1, weights=evil)
    tally = tally_of(receipt(slot=slot), receipt(3, 2, failed_rows=1, slot=slot))
    tally.add(Told(Recorded(2, 1, 10, 0, 1, 0), None, problem=evil))
    page = render(Findings(status, tally, [{"row": 1, "id": evil, "error": evil}], {slot: evil}))
    read = Page(page)
    assert not {"script", "img"} & set(read.tags)
    assert evil in read.words
    assert not [name for name, _ in read.values if name.startswith("on")]


def test_the_page_needs_nothing_else(make_spec):
    """No script, no picture, no style sheet, no font from anywhere; links lead into the page itself."""
    told = Told(Recorded(0, 1, 10, 0, 1, 0), receipt(), Lengths(np.arange(10), np.arange(10) > 8))
    page = render(Findings(status_of(make_spec(), announced=1, total=1, recorded=1), Tally.of([told])))
    read = Page(page)
    assert not {"script", "link", "img", "iframe", "object"} & set(read.tags)
    assert {value[0] for name, value in read.values if name in {"href", "src", "xlink:href"}} == {"#"}
    assert not re.search(r"url\((?!#)|@import", page)
    ids = [value for name, value in read.values if name == "id"]
    assert len(ids) == len(set(ids))
    for target in re.findall(r'href="#([^"]+)|url\(#([^)]+)', page):
        assert "".join(target) in ids


def test_a_page_of_many_slots_and_chunks_stays_small(make_spec):
    """Two hundred and fifty slots, each with more chunks than are drawn one by one."""
    tally = tally_of(
        *(receipt(2.0 * (i // 250), 1.5, slot=f"cuda:{i % 250}-aa@gpu{i % 250 % 31}/0") for i in range(250 * 30))
    )
    page = render(Findings(status_of(make_spec(), announced=7500, total=7500, recorded=7500), tally))
    assert len(page) < 3e6
    assert "200 of 250 slots are drawn" in Page(page).words


# -- reading receipts --------------------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path):
    """Return an empty store."""
    opened = open_store(f"file://{tmp_path}/store")
    store_id(opened)
    return opened


@pytest.fixture
def make_job(fake_ledger, store, make_spec):
    """Return a function that records chunks with these receipts, each with the tokens of its rows, as slots do."""

    def make(*chunks, damage=None, **fields):
        spec = make_spec(**fields)
        fake_ledger.create(spec, gate=10_000, ticket_s=60)
        for chunk, (made, _) in enumerate(chunks):
            fake_ledger.announce(spec, chunk, made.rows, 1)
        fake_ledger.seal(spec, len(chunks), {})
        for chunk, (made, tokens) in enumerate(chunks):
            lease = fake_ledger.claim(spec.job, chunk, queue=spec.queue, slot=made.slot, lease_s=60)
            assert isinstance(lease, Lease)
            data = result_bytes(lease, made, tokens)
            path = keys.result_path(spec.job, chunk, lease.token)
            fake_ledger.record(lease, made.model_copy(update={"size_bytes": len(data)}))
            store.put(path, damage(chunk, data) if damage else data)
        return fake_ledger.status(spec.job)

    return make


def result_bytes(lease, made, tokens):
    """Return the result of a chunk whose last rows have an error."""
    n, ids = len(tokens), [f"id{i}" for i in range(len(tokens))]
    errors = [None] * (n - made.failed_rows) + ["the model failed"] * made.failed_rows
    encoded = Computed(np.zeros((n, 64), np.float32), np.array(tokens), np.array(tokens) >= 100, errors)
    metadata = {
        "penstock.job": lease.job,
        "penstock.chunk": str(lease.chunk),
        "penstock.token": str(lease.token),
        "penstock.receipt": json.dumps(made.model_dump(exclude={"size_bytes", "crc32", "write_s"})),
    }
    if lease.spec.operation == "score":
        encoded.values = encoded.values[:, :1]
        heads = pa.table({"row": range(n), "query_id": ids, "doc_id": ids})
        return tables.to_bytes(tables.score_result(heads, encoded), metadata)
    return tables.to_bytes(tables.encode_result(tables.input_table(0, ids, ids), encoded, "float32"), metadata)


def test_receipts_and_lengths_are_read_without_the_vectors(fake_ledger, store, make_job, monkeypatch):
    """Of a result of 64 numbers a row, some bytes a row are read."""
    made = receipt(rows=2000, failed_rows=3)
    lengths = [*range(1, 101), *itertools.repeat(9, 1900)]
    status = make_job((made, lengths))
    read = []
    get_range = store.get_range
    monkeypatch.setattr(store, "get_range", lambda *a: read.append(get_range(*a)) or read[-1])
    monkeypatch.setattr(store, "get", None)
    (told,) = read_receipts(fake_ledger, store, status)
    assert told.receipt == made
    assert told.lengths.tokens.tolist() == lengths[:-3]
    assert told.lengths.truncated.sum() == 1
    assert sum(map(len, read)) < 40_000 < 2000 * 64 * 4


def test_receipts_and_lengths_of_scores_are_read_alike(fake_ledger, store, make_job):
    """Their columns stand at other places."""
    status = make_job((receipt(rows=5, failed_rows=1), [3, 100, 4, 5, 9]), options=ScoreOptions())
    (told,) = read_receipts(fake_ledger, store, status)
    assert told.receipt == receipt(rows=5, failed_rows=1)
    assert told.lengths.tokens.tolist() == [3, 100, 4, 5]
    assert told.lengths.truncated.tolist() == [False, True, False, False]


def test_of_many_chunks_only_some_tell_lengths(fake_ledger, store, make_job, monkeypatch):
    """But all tell their receipts, in their order."""
    monkeypatch.setattr(receipts, "LENGTH_CHUNKS", 10)
    monkeypatch.setattr(receipts, "PAGE_CHUNKS", 7)
    status = make_job(*((receipt(i, rows=2), [4, 5]) for i in range(25)))
    told = list(read_receipts(fake_ledger, store, status))
    assert [one.record.chunk for one in told] == list(range(25))
    assert [one.record.chunk for one in told if one.lengths] == list(range(0, 25, 3))
    assert [one.receipt.started_s - START_S for one in told] == list(range(25))


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-100],
        lambda data: data[:40],
        lambda data: data[:-200] + b"x" * 200,
        lambda data: data.replace(b'"rows": 10', b'"rows": 11'),
        lambda data: data.replace(b"penstock.receipt", b"penstock.nothing"),
    ],
    ids=["torn", "gone", "altered", "other", "strange"],
)
def test_a_damaged_result_is_named_and_hides_no_other(fake_ledger, store, make_job, damage):
    """Whatever happened to it."""
    chunks = [(receipt(i), [7] * 10) for i in range(3)]
    status = make_job(*chunks, damage=lambda chunk, data: damage(data) if chunk == 1 else data)
    tally = Tally.of(read_receipts(fake_ledger, store, status))
    assert (tally.totals.chunks, tally.n_problems) == (2, 1)
    assert "00000001-" in tally.problems[0]


# -- the command -------------------------------------------------------------------------------------------------------


def test_an_existing_page_is_not_replaced_unasked(tmp_path):
    """As with results."""
    page = tmp_path / "report.html"
    page.write_text("old")
    with pytest.raises(OutputExists):
        command.check_report(str(page), overwrite=False)
    assert command.check_report(str(page), overwrite=True) == page


@pytest.mark.parametrize("out", ["s3://bucket/report.html", "no/such/folder/report.html", ".", "x" * 300])
def test_a_place_that_cannot_be_is_refused_before_anything_is_read(out):
    """In one line that names it."""
    with pytest.raises(UsageError, match=r"^--out "):
        command.check_report(out, overwrite=False)


def test_without_the_extra_one_line_says_what_to_install(monkeypatch):
    """The base install draws nothing."""
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda *_: None)
    with pytest.raises(UsageError, match=r"pip install 'penstock\[report\]'"):
        command.check_report("report.html", overwrite=False)
