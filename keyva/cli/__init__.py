"""The command line `keyva`."""
