"""The `mgmae` command: dispatches to one thin file a command. Heavy imports wait inside the commands' functions."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from mgmae_cli import __version__
from mgmae_cli.cli import ablate, bench, convert, evaluate, features, finetune, mask, plugins, pretrain, probe, report
from mgmae_cli.errors import Interrupted, MgmaeError

app = typer.Typer(
    name="mgmae",
    help="Pre-train video masked autoencoders with motion guided masks, and find out which masking works, and why.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="First run, nothing prepared: [bold]mgmae pretrain --mask motion --warp backward[/bold]",
)
app.command("pretrain")(pretrain.pretrain)
app.command("finetune")(finetune.finetune)
app.command("evaluate")(evaluate.evaluate)
app.command("probe")(probe.probe)
app.command("features")(features.features)
app.command("ablate")(ablate.ablate)
app.command("report")(report.report)
app.add_typer(mask.app, name="mask")
app.command("bench")(bench.bench)
app.command("convert")(convert.convert)
app.command("plugins")(plugins.plugins)


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"mgmae {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line; what the user can mend becomes one line and exit code 2."""
    try:
        app()
    except Interrupted as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
    except MgmaeError as error:
        message = str(error).replace("\n", "\n       ")
        print(f"error: {message}", file=sys.stderr)
        sys.exit(2)
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's, named so that torch need not be imported
            raise
        reason = " ".join(str(error).split())[:120]
        print(f"error: the GPU's memory does not hold this ({reason}...): lower --batch-size", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output, such as `head`, has left
        sys.stderr.close()
        sys.exit(0)
