"""`saliency-selector`: the command."""

import sys
from importlib.metadata import version
from typing import Annotated

import typer

from selector.cli import (
    choose,
    compare,
    deploy,
    doctor,
    explain,
    inspection,
    learn,
    measure,
    metrics,
    plan,
    prune,
    repair,
)
from selector.cli.command import REFUSED
from selector.cli.inputs import import_module
from selector.errors import SelectorError

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Prune trained networks, with the saliency metric to trust in each layer.\n\n"
    "A first run: [bold]saliency-selector prune --model torchvision:resnet18 --weights net.pth "
    "--data images/ --keep-macs 0.5 --output small.safetensors --report report.html[/bold]\n\n"
    "Exit status: 0 if all is done; 1 for a bug (with a traceback); 2 for input that cannot be "
    "used or a run that had to stop, with one line that says why; 3 if nothing could be removed; "
    "130 after Ctrl-C.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"saliency-selector {version('saliency-selector')}")
        raise typer.Exit


@app.callback()
def start(
    plugins: Annotated[
        list[str] | None,
        typer.Option("--import", help="Module that registers metrics of your own; imported first."),
    ] = None,
    show_version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version, and exit."
        ),
    ] = False,
) -> None:
    """Import what registers metrics, before the command runs."""
    for module in plugins or ():
        try:
            import_module(module, "--import")
        except SelectorError as error:
            print(f"error: {error}", file=sys.stderr)
            raise typer.Exit(REFUSED) from error


R18 = "--model torchvision:resnet18 --weights net.pth"
SMALL = "--model torchvision:resnet18 --weights small.safetensors"
PRUNED = f"{R18} --data images/ --plan plan.json --pruned small.safetensors"
"""Networks in the examples."""

NETWORK, PRUNE, AFTER, SELECTOR, HERE = (
    "Look at a network",
    "Make it smaller",
    "Use the small network",
    "The selector itself",
    "This installation",
)

COMMANDS = (
    (HERE, "demo", compare.demo, ""),
    (NETWORK, "inspect", inspection.inspect, "--model timm:mobilenetv3_small_100"),
    (NETWORK, "sensitivity", compare.sensitivity, f"{R18} --data images/ --plot heat.svg"),
    (NETWORK, "score", measure.score, f"{R18} --data images/ --metrics fisher,l1"),
    (NETWORK, "metrics", metrics.metrics, ""),
    (PRUNE, "choose", choose.choose, f"{R18} --data images/ --ratio 0.3 --output plan.json"),
    (
        PRUNE,
        "prune",
        prune.prune,
        f"{R18} --data images/ --keep-macs 0.5 --output small.safetensors --plan plan.json "
        "--report report.html",
    ),
    (PRUNE, "apply", plan.apply, f"{R18} --plan plan.json --output small.safetensors"),
    (PRUNE, "compare", compare.compare, f"{R18} --data images/ --keep-macs 0.5 --plot bars.svg"),
    (PRUNE, "explain", explain.explain, "--plan plan.json --group layer1.0.conv1"),
    (AFTER, "eval", deploy.evaluate_network, f"{SMALL} --data test-images/"),
    (AFTER, "export", deploy.export, f"{SMALL} --output small.onnx"),
    (AFTER, "repair", repair.repair, f"{PRUNED} --output repaired.safetensors"),
    (AFTER, "distil", repair.distil, f"{PRUNED} --minutes 1 --output distilled.safetensors"),
    (SELECTOR, "record", measure.record, f"{R18} --data images/ --network mine --output records"),
    (SELECTOR, "fit", learn.fit, "--records records --output my_selector"),
    (SELECTOR, "evaluate", learn.evaluate, "--records records --with others"),
    (HERE, "doctor", doctor.doctor, ""),
)
"""Panel of the help, name, function, and the arguments of an example."""

for _panel, _name, _command, _example in COMMANDS:
    app.command(
        _name,
        rich_help_panel=_panel,
        epilog=f"Example: saliency-selector {_name} {_example}".rstrip(),
    )(_command)


def main() -> None:
    """Run the command."""
    app()
