"""The front door: Client and Job for scripts, the penstock command. Never imports torch."""
