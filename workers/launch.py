"""Start the nodes of this machine: ``python -m workers.launch``, configured by PENSTOCK_* variables.

With one device this process becomes that node. With several it starts one node per device, starts again what dies,
leaves a node alone that cannot start at all, and ends when all are so. What a node would be is `workers.preview`'s.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time

from tasks import lifeline
from tasks.backoff import Backoff
from tasks.endings import EXIT_NOT_STARTED, describe
from tasks.errors import PenstockError
from tasks.lifeline import LIFELINE_VARIABLE
from tasks.redaction import redact
from tasks.settings import Settings
from workers.devices import Device
from workers.machine import usable_cpus
from workers.planning import NodePlan, plan_nodes
from workers.serving import broker_url, model_spec

#: Seconds between two looks at the nodes.
POLL_S = 0.5


def main() -> int:
    """Plan and start the nodes. Returns the exit status, when they have ended."""
    try:
        settings = Settings.load()
        spec = model_spec(settings)
        plans = plan_nodes(settings, spec)
        _check_cache(settings)
    except PenstockError as exc:
        _say(str(exc))
        return exc.exit_code
    url = redact(broker_url(settings))
    for plan in plans:
        slots = f"{plan.slots} slot{'s' * (plan.slots > 1)}" + (f" of {plan.ranks} processes" if plan.ranks > 1 else "")
        slots += f" x {plan.threads} thread{'s' * (plan.threads > 1)}"
        _say(f"{spec} on {plan.device}, {slots}, broker {url}")
    if len(plans) > 1:
        return _supervise(plans)
    _pin(plans[0].device)
    os.environ.update(_environment(plans[0]))  # the slots are new processes, and start with it
    # Imported here, because a supervisor needs no Celery.
    from workers.run_node import run_node

    return run_node(_name(plans[0]), plans[0].slots)


def _check_cache(settings: Settings) -> None:
    """Refuse a cache that cannot be used before anything is loaded."""
    from workers.caches.opening import open_cache

    cache = open_cache(settings.cache_url)
    if cache is not None:
        cache.close()


def _command(plan: NodePlan) -> list[str]:
    return [sys.executable, "-P", "-m", "workers.run_node", _name(plan), str(plan.slots)]


def _name(plan: NodePlan) -> str:
    names = plan.device.name.replace(":", "").replace("+", "-")
    device = "-".join(names.split("-")[:2])  # of a UUID its beginning, of several devices the first two
    return f"{device}-{secrets.token_hex(3)}@%h"


def _environment(plan: NodePlan) -> dict[str, str]:
    # A node that hands its chunks back at once leaves the pool's semaphores to their tracker, which warns of them.
    quiet = ",".join(filter(None, [os.environ.get("PYTHONWARNINGS"), "ignore::UserWarning:billiard.semaphore_tracker"]))
    return {**os.environ, **plan.environment(), "PYTHONWARNINGS": quiet}


def _pin(device: Device) -> None:
    """Keep this process, and what it starts from now on, on the CPUs of a device; memory follows by first touch."""
    if device.cpus:
        try:
            os.sched_setaffinity(0, device.cpus)
        except OSError as exc:  # some of them went meanwhile
            _say(f"the node on {device} is not pinned to its CPUs: {exc.strerror}")


class _Child:
    """A node under supervision."""

    def __init__(self, plan: NodePlan) -> None:
        self.plan = plan
        self._backoff = Backoff()
        self.start()

    @property
    def is_hopeless(self) -> bool:
        """Whether it ended in a way in which it would end again."""
        return self.process.poll() == EXIT_NOT_STARTED

    def start(self) -> None:
        environment = {**_environment(self.plan), LIFELINE_VARIABLE: "1"}
        cpus = usable_cpus()
        _pin(self.plan.device)  # the node inherits it
        self.process = subprocess.Popen(_command(self.plan), env=environment, stdin=subprocess.PIPE)
        if self.plan.device.cpus:
            os.sched_setaffinity(0, cpus)
        self.started = time.monotonic()
        self.restart_at = 0.0

    def look_after(self) -> None:
        if self.process.poll() is None or self.is_hopeless:
            return
        now = time.monotonic()
        if not self.restart_at:
            pause_s = self._backoff.pause_s(now - self.started)
            _say(
                f"the node on {self.plan.device} ended: {describe(self.process.returncode)}; "
                f"starting it again in {pause_s:.0f} s"
            )
            self.restart_at = now + pause_s
        elif now >= self.restart_at:
            self.start()

    def send(self, signum: int) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signum)


def _supervise(plans: list[NodePlan]) -> int:
    if os.environ.get(LIFELINE_VARIABLE):
        lifeline.hang_on_stdin(lambda: os.kill(os.getpid(), signal.SIGKILL))
    children: list[_Child] = []
    is_stopping, last = False, signal.SIGTERM

    def stop(signum: int, _: object) -> None:
        nonlocal is_stopping, last
        # Ctrl-C reaches the nodes by itself if this has a terminal; SIGTERM, unlike it, never means "at once".
        is_now = signum == signal.SIGQUIT or (signum == signal.SIGINT and is_stopping)
        is_stopping = True
        last = signal.SIGQUIT if is_now else signal.SIGTERM
        for child in children:
            child.send(last)

    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
        signal.signal(signum, stop)
    children.extend(_Child(plan) for plan in plans)
    while not is_stopping and not all(child.is_hopeless for child in children):
        for child in children:
            if not is_stopping:
                child.look_after()
        time.sleep(POLL_S)
    for child in children:
        if is_stopping:
            child.send(last)  # once more: it may have been started again just then
        child.process.wait()
    return 0 if is_stopping else EXIT_NOT_STARTED


def _say(what: str) -> None:
    print(f"penstock worker: {what}", file=sys.stderr, flush=True)  # noqa: T201 - what a person sees


if __name__ == "__main__":
    sys.exit(main())
