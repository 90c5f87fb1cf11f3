"""What may be shown of an address, and of a text with addresses in it: no user, no password, no query."""

from __future__ import annotations

import re

#: Schemes whose paths may hold an ``@``, as their URLs hold no password.
_NO_PASSWORDS = {"file", "s3", "gs", "az"}
#: An address in a text, up to the punctuation behind it.
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"<>\\]*[^\s'\"<>\\.,:;)\]]")
#: A query without its address, such as of a name that was cut out of one.
_QUERY = re.compile(r"\?[^\s=?]*=[^\s'\"<>\\]*")


def redact(url: str) -> str:
    """Return the URL without user, password and query. Takes any text.

    An ``@`` behind the host says that a ``/``, ``?`` or ``#`` in the password may have ended the host too early;
    then only the scheme is shown.
    """
    scheme, mark, rest = url.partition("://")
    if not mark:
        return "***" if "@" in url else url
    netloc = re.split(r"[/?#]", rest, maxsplit=1)[0]
    tail = rest.removeprefix(netloc)
    if netloc and "@" in tail and scheme not in _NO_PASSWORDS:
        return f"{scheme}://***"
    secret, at, host = netloc.rpartition("@")
    return f"{scheme}://{'***' if secret else ''}{at}{host}{re.split('[?#]', tail, maxsplit=1)[0]}"


def redact_text(text: str) -> str:
    """Return a text, such as an error's or a log line, with every address in it redacted."""
    return _QUERY.sub("?***", _URL.sub(lambda url: redact(url[0]), text))
