"""Every error that penstock raises on purpose.

::

    PenstockError
    ├── Transient                 worth trying again
    │   ├── BrokerUnavailable     the broker cannot be reached            exit 3
    │   │   ├── BrokerDenied      it refuses this user; not tried again
    │   │   └── BrokerFull        it has no memory left; waited for without limit
    │   ├── DeviceFull            its memory is taken by others           exit 1
    │   ├── StoreUnavailable      the store cannot be reached             exit 3
    │   └── EngineBroken          the device or model no longer computes  exit 1
    └── Permanent                 reported once, never retried
        ├── UsageError            an option or a combination is wrong     exit 2
        │   ├── OutputExists      --out is there already
        │   ├── UnknownJob        no such job in this ledger
        │   └── ModelNotFound     the model's files are not there
        ├── BadInput              a record cannot be read                 exit 4
        ├── JobFailed             the job ended without all its results   exit 1
        ├── WorkerStopped         a worker process gave up                exit 1
        ├── EmbeddedServerDown    a private server does not start         exit 3
        ├── JobRefused            another store, or other weights         exit 3
        ├── UnreadableJob         another release made it, or a forger     exit 1
        ├── StoreFull             the job outgrows a redis:// store       exit 2
        └── DamagedObject         a stored object is not what was written exit 1

The docstring of a class is its default message. ``exit_code`` is what the CLI exits with. Messages never hold a
record's text, and of addresses no password and no query.
"""

from __future__ import annotations

import inspect
import traceback
from typing import Any

from tasks.redaction import redact_text


class PenstockError(Exception):
    """Something went wrong in penstock."""

    exit_code = 1

    def __init__(self, message: str | None = None, **data: Any) -> None:
        """Keep the values of the message as data too, for logs and callers."""
        super().__init__(redact_text(message or inspect.getdoc(type(self)) or ""))
        self.data = data

    def __reduce__(self) -> tuple[Any, ...]:
        """Survive pickling with the data (Celery sends exceptions between processes)."""
        return _rebuild, (type(self), str(self), self.data)


def place_of(exc: BaseException) -> str:
    """Name an exception by type and place, without its text, which may quote a record."""
    frames = traceback.extract_tb(exc.__traceback__)
    where = f" in {frames[-1].name}, {frames[-1].filename.rpartition('/')[2]}:{frames[-1].lineno}" if frames else ""
    return f"{type(exc).__name__}{where}"


def _rebuild(cls: type[PenstockError], message: str, data: dict[str, Any]) -> PenstockError:
    return cls(message, **data)


class Transient(PenstockError):
    """A passing fault; the same call may succeed later."""


class Permanent(PenstockError):
    """The same call would fail again."""


class BrokerUnavailable(Transient):
    """The broker does not answer. Check that Redis or Valkey runs and that --broker names it."""

    exit_code = 3


class BrokerDenied(BrokerUnavailable):
    """The broker refuses this user. Check the user and password in --broker and the server's ACL."""


class BrokerFull(BrokerUnavailable):
    """The broker has no memory left. Raise its maxmemory, or make room with `penstock remove`."""


class DeviceFull(Transient):
    """The device has no memory left: other processes have it. End them, or lower --memory-ratio for all."""


class StoreUnavailable(Transient):
    """The store does not answer. Check --store and its credentials."""

    exit_code = 3


class EngineBroken(Transient):
    """The engine fails on everything; its process must be replaced."""


class UsageError(Permanent):
    """An option is wrong."""

    exit_code = 2


class OutputExists(UsageError):
    """The output exists already. Name another, or pass --overwrite."""


class UnknownJob(UsageError):
    """No such job. `penstock jobs` lists those that there are."""


class ModelNotFound(UsageError):
    """The model was not found."""


class BadInput(Permanent):
    """A record of the input cannot be read."""

    exit_code = 4


class JobFailed(Permanent):
    """The job failed. `penstock status JOB` says why."""


class WorkerStopped(Permanent):
    """A worker stopped before the job was done."""


class EmbeddedServerDown(Permanent):
    """The private server of an embedded run does not start."""

    exit_code = 3


class JobRefused(Permanent):
    """No worker takes the job: they use another store, or other weights."""

    exit_code = 3


class UnreadableJob(Permanent):
    """The job was made by another release of penstock, or is not signed with a key of this one."""


class StoreFull(Permanent):
    """The job is larger than a redis:// store takes. Name object storage or a shared folder with --store."""

    exit_code = 2


class DamagedObject(Permanent):
    """A stored object is not what was written."""
