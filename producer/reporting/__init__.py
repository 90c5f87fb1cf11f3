"""The report of a job: its receipts, read from the store, as one page with plots."""
