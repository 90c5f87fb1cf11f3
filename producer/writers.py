"""Results to what the user names with --out, streaming: memory does not depend on the number of rows.

========================================================= =============================================
``x.npy`` ``x.parquet`` ``x.arrow`` ``x.jsonl[.gz,.zst]`` one file
``x.trec[.gz,.zst]`` ``x.run[.gz,.zst]``                  one file with the rankings of a scoring job
``results/``, or an existing folder                       shards with a manifest
``s3://bucket/x.parquet``, also ``gs://`` and ``az://``   the same file, uploaded
``s3://bucket/results/``                                  the same shards, each uploaded when it is whole
========================================================= =============================================
"""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pyarrow as pa

from producer.columns import ResultInfo, check_kept
from producer.demands import Demands
from producer.extensions import check_top_k, format_of
from producer.outputs import LocalFile, LocalFolder, Output, no_name
from producer.ranking import rank
from producer.remote_outputs import RemoteFile, RemoteFolder
from tasks.errors import UsageError
from tasks.object_store import SCHEMES as OBJECT_SCHEMES
from tasks.options import Operation

__all__ = ["ResultInfo", "check_kept", "check_out", "demands_of", "write_results"]

#: What a system says when nothing more fits: the disk, the user's quota, the file size limit.
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def check_out(out: str, *, operation: Operation = "encode", top_k: int | None = None, overwrite: bool) -> None:
    """Find out before a job is submitted whether its results can be written.

    Args:
        out: a file, a folder or a URL; see above.
        operation: the job's.
        top_k: how many pairs of each query are wanted; all if None.
        overwrite: replace what is there.

    Raises:
        UsageError: an unknown extension or scheme, a parent folder that is missing or not writable, or a top_k that
            does not go with it.
        OutputExists: there is something already, and overwrite is not set.
        StoreUnavailable: the object store cannot be asked.
    """
    _output(out, operation, top_k).check(overwrite=overwrite)


def demands_of(out: str, top_k: int | None) -> Demands:
    """Return what an output asks of the pairs of a scoring job. The arguments are those of ``check_out``."""
    output = _output(out, "score", top_k)
    if not isinstance(output, LocalFile | RemoteFile):
        return Demands(is_ranked=top_k is not None)
    is_ranked = top_k is not None or output.format.arrange is rank
    return Demands(is_ranked=is_ranked, has_plain_ids=output.format.needs_plain_ids)


def write_results(
    tables: Iterable[pa.Table], info: ResultInfo, out: str, *, top_k: int | None = None, overwrite: bool
) -> list[str]:
    """Write chunk results to out, one table at a time, and return the paths or URLs written.

    Args:
        tables: results as in tasks.tables, in the order of the rows.
        info: what they are together.
        out: a file, a folder or a URL; see above.
        top_k: the best so many pairs of each query, ranked, rather than all in the order of the job.
        overwrite: replace what is there.

    Raises:
        UsageError: as check_out, check_kept and ``ranking.rank``; an id cannot be in a run; or the disk is full.
        DamagedObject: the tables are not what info says. Nothing is written.
        StoreUnavailable: the object store failed.
    """
    check_kept(info.kept_types)
    output = _output(out, info.operation, top_k)
    output.check(overwrite=overwrite)
    with _telling_full_disk(out):
        return output.write(tables, info)


def _output(out: str, operation: Operation, top_k: int | None) -> Output:
    """Return the place that out names."""
    check_top_k(top_k, operation)
    if "://" in out and not out.startswith("file://"):
        return _remote_output(out, operation, top_k)
    name = _path_of(out) if "://" in out else out
    try:
        path = Path(name).resolve()
        is_folder = name.endswith("/") or path.is_dir()
    except (OSError, RuntimeError, ValueError) as exc:  # too long, a loop of links, or a NUL in it
        raise no_name(out, exc) from exc
    if is_folder:
        return LocalFolder(out, path, top_k)
    return LocalFile(out, path, format_of(path.name, operation, top_k), top_k)


def _path_of(url: str) -> str:
    try:
        parts = urlsplit(url)
    except ValueError as exc:  # a bracket without its other half
        raise no_name(url, exc) from exc
    if parts.netloc not in {"", "localhost"} or not parts.path:
        raise UsageError(f"--out {url}: a file is named as file:///PATH, with three slashes.", out=url)
    return unquote(parts.path)


def _remote_output(url: str, operation: Operation, top_k: int | None) -> Output:
    scheme, _, rest = url.partition("://")
    bucket, _, key = rest.partition("/")
    if scheme not in OBJECT_SCHEMES or not bucket or not (key or url.endswith("/")):
        known = ", ".join(f"{scheme}://" for scheme in OBJECT_SCHEMES)
        raise UsageError(f"--out {url}: not a bucket and a name after one of {known}.", out=url)
    if url.endswith("/"):
        return RemoteFolder(url, top_k)
    return RemoteFile(url, format_of(key.rpartition("/")[2], operation, top_k), top_k)


@contextmanager
def _telling_full_disk(out: str) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        if exc.errno not in _FULL:
            raise
        place = f"temporary folder {tempfile.gettempdir()} (TMPDIR names another)" if "://" in out else "disk"
        raise UsageError(
            f"--out {out}: the {place} is full, nothing was written. Free space and try again.", out=out
        ) from exc
