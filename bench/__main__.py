"""`python -m bench`: the comparison with other engines."""

from bench.compare import main

main(prog_name="python -m bench")
