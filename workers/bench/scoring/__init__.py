"""``penstock bench score``: the table of the article that penstock follows, for this machine.

One pair at a time, in one process and in several; sentence-transformers' CrossEncoder at its best batch size; penstock.
"""
