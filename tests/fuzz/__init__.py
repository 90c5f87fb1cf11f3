"""Hostile input, from all sides: a clear error or a correct result, never a traceback, a hang or half an output.

``make test`` tries some hundreds of cases. ``PENSTOCK_FUZZ_CASES=10000 pytest tests/fuzz``, or ``make fuzz``, tries so
many, shared out among the targets, and prints how many each had. Cases are numbered and the number is the seed, so
that a failure says how to see it again: ``PENSTOCK_FUZZ_ONLY=123 pytest tests/fuzz/test_readers.py``.
"""
