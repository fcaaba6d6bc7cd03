"""The version, read by the build and by ``deltaw --version``."""

__version__ = "0.1.0"
