"""`python -m mgmae_cli`, which torchrun needs."""

from mgmae_cli.cli.app import main

main()
