"""`python -m enginesmith`: the command line."""

from enginesmith.cli import main

main()
