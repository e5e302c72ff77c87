"""`python -m coretune` is the command `coretune`."""

from coretune.cli import main

main()
