"""``python -m optimplug``."""

from optimplug.cli import main

main()
