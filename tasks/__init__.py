"""The contract that producers and workers share, and the Celery tasks. Never imports torch."""
