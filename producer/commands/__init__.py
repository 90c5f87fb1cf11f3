"""The subcommands of ``penstock``, a module for each group."""
