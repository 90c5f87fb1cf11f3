"""Run one node in this process: ``python -m workers.run_node NAME SLOTS``.

The same as ``celery -A tasks.app worker -I workers.boot --pool prefork`` with penstock's options, but without Celery's
command line, which loads whatever other packages add to it: half a second of every start.
"""

from __future__ import annotations

import logging
import sys

from celery.utils.nodenames import default_nodename, host_format

from tasks.app import app


def run_node(name: str, slots: int) -> int:
    """Take tickets until told to stop. Returns the exit status.

    Args:
        name: of the node; ``%h`` stands for the host.
        slots: how many.
    """
    worker = app.Worker(
        hostname=host_format(default_nodename(name)),
        pool_cls="prefork",
        concurrency=slots,
        include=["workers.boot"],
        loglevel=logging.WARNING,
        quiet=True,
        without_gossip=True,
        without_mingle=True,
    )
    worker.start()
    return int(worker.exitcode or 0)


if __name__ == "__main__":
    sys.exit(run_node(sys.argv[1], int(sys.argv[2])))
