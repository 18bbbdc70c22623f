"""``python -m hwloop``: the command, where its script is not on the PATH."""

from hwloop.cli.main import run

run()
