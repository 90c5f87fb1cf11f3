"""``penstock bench``: penstock and its peers on the same rows, alternately, each in processes of its own.

``python -m workers.bench encode|score PLAN`` runs the rounds (``plan``, ``rounds``), each contender in a fresh process
that is watched from outside (``watching``): penstock by its own command, its peers by
``python -m workers.bench.contender``. What the operations differ in is a ``subject``: ``encoding`` and ``scoring``.
"""
