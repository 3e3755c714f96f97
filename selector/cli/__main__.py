"""`python -m selector.cli`: the command, without installing its script."""

from selector.cli.app import main

main()
