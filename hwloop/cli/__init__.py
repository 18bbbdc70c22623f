"""The command line: parses, calls, prints."""

from hwloop.cli.main import run

__all__ = ["run"]
