"""``penstock bench``: penstock and its peers on the same corpus, alternately, each in processes of its own.

``python -m workers.bench PLAN`` runs the rounds (``plan``, ``rounds``), each contender in a fresh process that is
watched from outside (``watching``): penstock by its own command, its peers by ``python -m workers.bench.contender``.
"""
