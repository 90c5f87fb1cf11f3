"""How object stores are reached: one set of timeouts and retries for inputs, chunks, results and outputs."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

import obstore.store
from obstore.exceptions import BaseError

from tasks.broker import redact
from tasks.errors import UsageError

if TYPE_CHECKING:
    from obstore.store import ClientConfig, ObjectStore, RetryConfig

#: Schemes of stores that can be read and written, and of web servers, which are only read.
SCHEMES = ("file", "s3", "gs", "az")
WEB_SCHEMES = ("https", "http")

#: Chunks, results and parts of uploads are some MiB each: a request takes two minutes at most, which a line of
#: 2 Mbit/s keeps. obstore's ``read_timeout`` would also run while a body is sent.
OBJECTS: ClientConfig = {"connect_timeout": "5s", "timeout": "2m"}

#: Inputs may be one long response: a silence of 30 s ends it, there is no limit to the whole.
STREAMS: ClientConfig = {"connect_timeout": "5s", "read_timeout": "30s", "timeout": "1day"}

#: A fault that stays for a minute is told.
RETRIES: RetryConfig = {"max_retries": 10, "retry_timeout": timedelta(seconds=60)}


def connect(url: str, options: ClientConfig = OBJECTS) -> ObjectStore:
    """Return obstore's client for a folder, bucket, prefix or web server; nothing is sent yet.

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
        if scheme == "file":
            if urlsplit(url).netloc not in {"", "localhost"} or not urlsplit(url).path:
                raise UsageError(f"{url}: a folder is named as file:///PATH, with three slashes.")
            return obstore.store.LocalStore(Path(unquote(urlsplit(url).path)), mkdir=True)
        return make(url, client_options=client, retry_config=RETRIES)
    except (BaseError, OSError, ValueError) as exc:
        raise UsageError(f"{redact(url)}: {first_line(exc)}") from exc


def first_line(exc: BaseException) -> str:
    """Return the first line of an error's text: obstore adds debug source, servers add XML."""
    return str(exc).strip().split("\n", 1)[0].split("<?xml", 1)[0].rstrip(": ")
