"""The command line: `enginesmith build|run|bench|inspect|diff|check|doctor`."""

from __future__ import annotations

import sys


def main() -> None:
    """The console script's entry. Exit codes: 0 done, 1 failed, 2 wrong usage."""
    try:
        from enginesmith.cli.app import app
    except ModuleNotFoundError as error:
        if error.name not in {"click", "rich"}:
            raise
        print(
            f"error: the command line needs the package {error.name!r}; "
            "install it with: pip install 'enginesmith[build]'",
            file=sys.stderr,
        )
        sys.exit(1)
    app(prog_name="enginesmith")
