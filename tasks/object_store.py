"""How object stores are reached: the timeouts and retries for inputs, chunks, and outputs."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import obstore.store
from obstore.exceptions import BaseError

from tasks.errors import UsageError
from tasks.redaction import redact

if TYPE_CHECKING:
    from obstore.store import ClientConfig, ObjectStore, RetryConfig

#: Schemes of stores that can be read and written, and of web servers, which are only read.
SCHEMES = ("file", "s3", "gs", "az")
WEB_SCHEMES = ("https", "http")

#: Chunk inputs and results are some MiB each. A minute takes 8 MiB over a line of 1.2 Mbit/s, and a connection that
#: went half-open, which says nothing for ever, is given up after it. obstore's ``read_timeout`` would also run while a
#: body is sent.
CHUNKS: ClientConfig = {"connect_timeout": "5s", "timeout": "1m"}

#: Parts of an output go several at a time over one line: twice as long.
OBJECTS: ClientConfig = {"connect_timeout": "5s", "timeout": "2m"}

#: Inputs may be one long response: a silence of 30 s ends it, there is no limit to the whole.
STREAMS: ClientConfig = {"connect_timeout": "5s", "read_timeout": "30s", "timeout": "1day"}

#: Server errors, throttling, cut and timed-out requests are tried again after pauses with jitter, for so long; whoever
#: has more patience calls again (tasks/retrying.py). The last try may begin at the end of that time.
RETRIES: RetryConfig = {
    "max_retries": 10,
    "retry_timeout": timedelta(seconds=30),
    "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=5), "base": 2},
}


def connect(url: str, options: ClientConfig = OBJECTS) -> ObjectStore:
    """Return obstore's client for a bucket, prefix or web server; nothing is sent yet.

    Credentials come from the environment and the usual chains.

    Raises:
        UsageError: obstore cannot make a client of it.
    """
    scheme = urlsplit(url).scheme.lower()
    # Plain HTTP only where an address says so: here, or in the environment's endpoint of a bucket, such as MinIO's.
    client: ClientConfig = {**options, "allow_http": scheme != "https"}
    # The class, as from_url takes some https addresses for buckets and wants credentials for them.
    make = obstore.store.HTTPStore.from_url if scheme in WEB_SCHEMES else obstore.store.from_url
    try:
        return make(url, client_options=client, retry_config=RETRIES)
    except (BaseError, OSError, ValueError) as exc:
        raise UsageError(f"{redact(url)}: {first_line(exc)}") from exc


def first_line(exc: BaseException) -> str:
    """Return the first line of an error's text: obstore adds debug source, servers add XML."""
    return str(exc).strip().split("\n", 1)[0].split("<?xml", 1)[0].rstrip(": ")
