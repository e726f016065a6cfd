"""The version, read by the build and put on every span and metric."""

__version__ = "0.2.0"
