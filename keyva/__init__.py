"""keyva: a durable key-value store for Python programs, served by processes of its own."""

__version__ = "0.1.0"
