"""A Celery application with one task that does nothing, delivered as penstock's tickets are."""

from __future__ import annotations

import os

from tasks import delivery

QUEUE = "noop"

app = delivery.make_app(os.environ["NOOP_BROKER_URL"])
app.conf.update(delivery.consume_settings())


@app.task(name="noop")
def noop(job: str, chunk: int, version: int) -> None:
    """Do nothing, with the arguments of a ticket."""
