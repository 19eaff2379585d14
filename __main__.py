"""`python -m sedaq`."""

from .cli.main import run

run()
