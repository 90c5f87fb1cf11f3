"""``python -m workers.plan_model [--json] [--device-memory LIST]``: what memory a model takes, without loading it.

Model, operation and devices are in the settings, as ``workers.launch`` has them.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import warnings

from tasks.errors import PenstockError
from tasks.settings import Settings
from workers.serving import model_spec
from workers.sizing.choices import choices
from workers.sizing.rooms import find_rooms
from workers.sizing.showing import ModelPlan, describe, show


def main(arguments: list[str]) -> int:
    """Plan, and print the plan on stdout. Returns the exit status."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--device-memory")
    asked = parser.parse_args(arguments)
    try:
        plan = make_plan(Settings.load(), asked.device_memory)
    except PenstockError as exc:
        print(f"penstock plan-model: {exc}", file=sys.stderr)  # noqa: T201 - what a person sees
        return exc.exit_code
    if asked.json:
        print(json.dumps(describe(plan)))  # noqa: T201 - what was asked for
    else:
        show(plan)
    return 0


def make_plan(settings: Settings, device_memory: str | None) -> ModelPlan:
    """Return all choices for the model of the settings.

    Raises:
        ModelNotFound: its files are not there or cannot be read, or do not tell enough.
        UsageError: a device is not there, or its memory is not known; or a size is none.
    """
    spec = model_spec(settings)
    rooms = find_rooms(settings, device_memory)  # first: a mistake in the command is told before torch loads
    from workers.sizing.drawing import draw

    blueprint = draw(spec, settings)
    return ModelPlan(spec, settings, blueprint, rooms, choices(blueprint, rooms))


if __name__ == "__main__":
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # one line says what is wrong; a plan is not a log
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    sys.exit(main(sys.argv[1:]))
