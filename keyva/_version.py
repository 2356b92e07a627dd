"""The version, said once; setup.cfg reads it from here without importing keyva."""

__version__ = "0.1.0"
