"""The broker's address: one URL from the user, as redis-py and as Celery want it, and safe to show."""

from __future__ import annotations

import ssl
from urllib.parse import parse_qsl, urlencode, urlsplit

import redis
from redis.backoff import ExponentialWithJitterBackoff
from redis.retry import Retry

from tasks.errors import UsageError
from tasks.redaction import redact

#: The broker of a worker, and of `celery -A tasks.app ...`, when no setting names one.
DEFAULT_BROKER_URL = "redis://localhost:6379/0"

#: Seconds after which an unanswered command counts as failed. Without it a half-open connection hangs for good. A node
#: learns of each of its connections one after the other; with 15 s that took up to a minute.
SOCKET_TIMEOUT_S = 5
#: The same where commands carry whole objects, which take their time on a slow line.
STORE_TIMEOUT_S = 30
#: Seconds to wait for a connection.
CONNECT_TIMEOUT_S = 5
#: Seconds of silence after which a connection is checked before use.
HEALTH_CHECK_S = 10
#: How often a command that met a connection fault is tried again, with exponential backoff.
RETRIES = 3

_SCHEMES = {"redis", "rediss", "unix", "redis+socket"}


def check_url(url: str) -> str:
    """Return the URL if it is one that penstock can use.

    Raises:
        UsageError: another scheme, or no host or path.
    """
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise UsageError(
            f"--broker {redact(url)}: no URL. In a password, write /, ?, # and @ as %2F, %3F, %23 and %40."
        ) from None  # its text quotes what it took for a port: a part of the password
    if parts.scheme not in _SCHEMES:
        raise UsageError(
            f"--broker {redact(url)}: penstock needs Redis or Valkey: redis://HOST:PORT/DB, rediss://... or "
            "unix:///PATH."
        )
    if not (parts.hostname or parts.path.strip("/")):
        raise UsageError(f"--broker {redact(url)}: names no host.")
    return url


def redis_url(url: str) -> str:
    """Return the URL in redis-py's form (``unix://PATH?db=N``)."""
    return _translate(url, {"redis+socket": "unix"}, {"virtual_host": "db"})


def celery_url(url: str) -> str:
    """Return the URL in Celery's form (``redis+socket://PATH?virtual_host=N``)."""
    return _translate(url, {"unix": "redis+socket"}, {"db": "virtual_host"})


def with_tls(url: str, *, ca: object = None, cert: object = None, key: object = None) -> str:
    """Return a ``rediss://`` URL with options that have the server's certificate and name checked; others as they are.

    redis-py and kombu know these options. Those that the URL has already stay.

    Args:
        url: a URL of any scheme.
        ca: file with the certificates of those who may vouch for the server; the system's if None.
        cert: file with our own certificate.
        key: file with its key.
    """
    if not url.startswith("rediss://"):
        return url
    options = {"ssl_cert_reqs": "required", "ssl_check_hostname": "true"}
    files = {"ssl_ca_certs": ca, "ssl_certfile": cert, "ssl_keyfile": key}
    options |= {name: str(file) for name, file in files.items() if file is not None}
    head, _, query = url.partition("?")
    return f"{head}?{urlencode({**options, **dict(parse_qsl(query))})}"


def tls_fault(exc: BaseException | None) -> str:
    """Say what kept a TLS connection from being made, in OpenSSL's words; empty if it was something else."""
    while exc is not None:
        if isinstance(exc, ssl.SSLCertVerificationError):
            return str(exc.verify_message)
        if isinstance(exc, ssl.SSLError):
            return str(exc.reason or "it was cut").replace("_", " ").lower()
        if isinstance(exc, (FileNotFoundError, PermissionError)):
            return f"a certificate or key cannot be read ({exc.strerror})"
        exc = exc.__cause__ or exc.__context__
    return ""


def _translate(url: str, schemes: dict[str, str], names: dict[str, str]) -> str:
    parts = urlsplit(url)
    if parts.scheme not in schemes:
        return url
    query = urlencode([(names.get(name, name), value) for name, value in parse_qsl(parts.query)])
    return f"{schemes[parts.scheme]}://{parts.netloc}{parts.path}{'?' if query else ''}{query}"


def connect(url: str, *, decode: bool = True, timeout_s: float = SOCKET_TIMEOUT_S) -> redis.Redis:
    """Return a client that times out, checks idle connections and retries passing faults.

    A command may thus run twice on the server: every ledger step is written for that.

    Raises:
        UsageError: the URL is none that penstock can use.
    """
    try:
        client = redis.Redis.from_url(
            redis_url(check_url(url)),
            decode_responses=decode,
            socket_timeout=timeout_s,
            socket_connect_timeout=CONNECT_TIMEOUT_S,
            health_check_interval=HEALTH_CHECK_S,
            retry=Retry(ExponentialWithJitterBackoff(base=0.1, cap=2.0), RETRIES),
        )
        client.connection_pool.make_connection()  # sends nothing, and knows the options that a URL may have
    except (TypeError, ValueError, redis.RedisError) as exc:
        raise UsageError(
            f"--broker {redact(url)}: an option after its ? is unknown to redis-py, or has a wrong value."
        ) from exc
    return client
