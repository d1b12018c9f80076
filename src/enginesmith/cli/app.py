"""The command group: global options, errors as one message, close matches of a misspelt command."""

from __future__ import annotations

import difflib
from typing import IO, Any

import click

from enginesmith.cli.bench import bench
from enginesmith.cli.build import build
from enginesmith.cli.check import check
from enginesmith.cli.diff import diff
from enginesmith.cli.display import console
from enginesmith.cli.doctor import doctor
from enginesmith.cli.inspect import inspect
from enginesmith.cli.run import run
from enginesmith.cli.tune import tune
from enginesmith.errors import EnginesmithError


class Failure(click.ClickException):
    """An error shown as one message on stderr; exit code 1."""

    def show(self, file: IO[Any] | None = None) -> None:
        out = console(stderr=True)
        out.print("error: ", style="bold red", end="")
        out.print(self.message, soft_wrap=True)


class Commands(click.Group):
    """A group that reports errors without a traceback and knows what was meant."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            close = difflib.get_close_matches(args[0], self.list_commands(ctx), n=2, cutoff=0.5)
            meant = f"did you mean {' or '.join(close)}?" if close else ""
            known = ", ".join(self.list_commands(ctx))
            ctx.fail(f"no command {args[0]!r}; {meant or f'there are {known}'}")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:
            if ctx.params["debug"]:
                raise
            raise Failure(_message(error)) from error


def _message(error: BaseException) -> str:
    if isinstance(error, EnginesmithError):
        return str(error)
    if isinstance(error, ModuleNotFoundError) and not str(error.name).startswith("enginesmith"):
        return (
            f"this command needs the package {error.name!r}; "
            "install it with: pip install 'enginesmith[build]'"
        )
    if isinstance(error, MemoryError):
        return "out of memory"
    if isinstance(error, OSError):
        return str(error)
    return (
        f"internal error, {type(error).__name__}: {error}\n"
        "This is a defect of Enginesmith; `enginesmith --debug ...` shows where."
    )


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="""\b
Example:
  enginesmith build model.onnx -o model.plan
  enginesmith bench model.plan --layers""",
)
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.version_option(package_name="enginesmith")
def app(debug: bool) -> None:
    """Turns a trained model into the fastest engine for one machine."""


for command in (build, tune, run, bench, inspect, diff, check, doctor):
    app.add_command(command)
