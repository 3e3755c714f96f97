"""The options of the command line, each described once."""

from pathlib import Path
from typing import Annotated

import typer

IMAGES = 512
BATCH_SIZE = 64
"""Images that are read, and of a batch, unless others are asked for."""

_NETWORK, _IMAGES, _METHOD = "The network", "The images", "What is removed, and how"

_MODEL = typer.Option(
    "--model",
    help="timm:NAME, torchvision:NAME, transformers:FOLDER, or package.module:factory, called "
    "without arguments; the current folder is searched.",
    rich_help_panel=_NETWORK,
)
Model = Annotated[str, _MODEL]
OptionalModel = Annotated[str | None, _MODEL]
Weights = Annotated[
    Path | None,
    typer.Option(
        help="Weights of that network: safetensors, a checkpoint (.pt, .pth, .ckpt, .bin), or a "
        "network that prune wrote; by default the factory's own, or the published ones. "
        "'random' for none.",
        rich_help_panel=_NETWORK,
    ),
]
WeightsKey = Annotated[
    str | None,
    typer.Option(
        help="Which weights of a checkpoint that holds several, as in state_dict_ema.",
        rich_help_panel=_NETWORK,
    ),
]
Device = Annotated[
    str,
    typer.Option(help="cpu, cuda, cuda:1, mps; auto for a GPU if any.", rich_help_panel=_NETWORK),
]
Seed = Annotated[int, typer.Option(min=0, help="Of all that is random.", rich_help_panel=_NETWORK)]
_DATA = typer.Option(
    "--data",
    help="A folder with a folder of images per class; a Parquet file, a folder or a pattern of "
    "them; a CSV file of paths and labels; a saved Hugging Face data set; or "
    "package.module:factory that returns re-iterable batches of (inputs, targets). Where labels "
    "are not needed, also a folder of images alone.",
    rich_help_panel=_IMAGES,
)
Data = Annotated[str, _DATA]
OptionalData = Annotated[str | None, _DATA]
ImageColumn = Annotated[
    str | None,
    typer.Option(
        help="Column of the images; 'image' by default, in CSV 'path'.", rich_help_panel=_IMAGES
    ),
]
LabelColumn = Annotated[
    str | None,
    typer.Option(help="Column of the labels; 'label' by default.", rich_help_panel=_IMAGES),
]
TestData = Annotated[
    str | None,
    typer.Option(
        help="Like --data, read whole: images for the report's losses and accuracies. "
        "The images of --data by default.",
        rich_help_panel=_IMAGES,
    ),
]
Images = Annotated[
    int | None,
    typer.Option(
        min=1,
        help=f"Number of images to read from --data, from the start; {IMAGES} by default. "
        "A Parquet file should not be sorted by label.",
        rich_help_panel=_IMAGES,
    ),
]
BatchSize = Annotated[
    int | None,
    typer.Option(
        min=1, help=f"Images in a batch; {BATCH_SIZE} by default.", rich_help_panel=_IMAGES
    ),
]
Mean = Annotated[
    str | None,
    typer.Option(
        help="Subtracted from pixel/255: one number, or one per plane, as in "
        "0.485,0.456,0.406. Give what the network was trained with; by default what timm or "
        "torchvision say, else 0.5, so that with --std 0.5 pixels become -1 to 1.",
        rich_help_panel=_IMAGES,
    ),
]
Std = Annotated[
    str | None,
    typer.Option(
        help="Divides what is left after --mean, like it.",
        rich_help_panel=_IMAGES,
    ),
]
Size = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Resize the shorter side to this many pixels and crop the centre. By default images "
        "keep their size, unless timm or torchvision name a smaller one, or they differ.",
        rich_help_panel=_IMAGES,
    ),
]
Bgr = Annotated[
    bool,
    typer.Option(
        "--bgr",
        help="Planes in the order B, G, R; so are --mean and --std.",
        rich_help_panel=_IMAGES,
    ),
]
KeepMacs = Annotated[
    float | None,
    typer.Option(help="Share of the multiply-accumulates that stays.", rich_help_panel=_METHOD),
]
KeepParams = Annotated[
    float | None,
    typer.Option(help="Share of the parameters that stays.", rich_help_panel=_METHOD),
]
KeepWeights = Annotated[
    float | None,
    typer.Option(help="Share of the convolutions' weights that stays.", rich_help_panel=_METHOD),
]
KeepLatency = Annotated[
    float | None,
    typer.Option(
        help="Share of the time of a forward pass on this machine that stays.",
        rich_help_panel=_METHOD,
    ),
]
Ratio = Annotated[
    float | None,
    typer.Option(help="Share of every group's channels to remove.", rich_help_panel=_METHOD),
]
Criterion = Annotated[
    str,
    typer.Option(help="selector, oracle, or a name that `metrics` lists.", rich_help_panel=_METHOD),
]
VerifyText = Annotated[
    str,
    typer.Option(
        "--verify",
        help="Candidates of the selector to measure in the whole plan, where most damage is "
        "predicted; all: every metric's candidates, in every group.",
        rich_help_panel=_METHOD,
    ),
]
SelectorFolder = Annotated[
    Path | None,
    typer.Option(
        "--selector", help="A saved selector; the shipped one by default.", rich_help_panel=_METHOD
    ),
]
Ignore = Annotated[
    str | None,
    typer.Option(help="Groups or layers not to prune, as in a,b.", rich_help_panel=_METHOD),
]
AllocationName = Annotated[
    str,
    typer.Option(
        "--allocation",
        help="even: the same share everywhere; damage: where the least loss change is predicted; "
        "measured: where the least is measured, group by group; "
        "myopic: with --criterion oracle, one channel at a time where the least is measured; auto: "
        "for a budget of the selector damage, or measured where it knows no such networks; else "
        "even.",
        rich_help_panel=_METHOD,
    ),
]
MaxRatio = Annotated[
    float,
    typer.Option(help="Largest share of a group's channels to remove.", rich_help_panel=_METHOD),
]
RoundTo = Annotated[
    int,
    typer.Option(help="Remaining widths are multiples of this.", rich_help_panel=_METHOD),
]
MinChannels = Annotated[
    int,
    typer.Option(help="Fewest channels that a layer keeps.", rich_help_panel=_METHOD),
]
Ratios = Annotated[
    str | None,
    typer.Option(
        help="Shares to remove from single groups, as in conv1=0.3,conv2=0.5.",
        rich_help_panel=_METHOD,
    ),
]
MaxRatios = Annotated[
    str | None,
    typer.Option(help="Like --max-ratio, for single groups: conv1=0.3.", rich_help_panel=_METHOD),
]
Compensate = Annotated[
    bool,
    typer.Option(
        "--compensate/--no-compensate",
        help="Keep the removed channels' means as constants in the layers that read them.",
        rich_help_panel=_METHOD,
    ),
]
Rounds = Annotated[
    int | None,
    typer.Option(
        help="Number of cuts; channels are scored again before each. By default each cut takes a "
        "tenth of what is left.",
        rich_help_panel=_METHOD,
    ),
]
MaxLossChange = Annotated[
    float | None,
    typer.Option(
        help="Stop before the loss on --data rises by more than this, in nats; exit status 3 if "
        "nothing could be removed.",
        rich_help_panel=_METHOD,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run", help="Check everything, say what would be done and written, and do nothing."
    ),
]
Output = Annotated[
    Path | None,
    typer.Option(
        "--output", help="Write the small network (safetensors); an input of --weights elsewhere."
    ),
]
Plot = Annotated[Path | None, typer.Option(help="Write a plot: NAME.svg, NAME.png or NAME.pdf.")]
Checkpoint = Annotated[
    Path | None,
    typer.Option(
        help="Folder for the state, where a stopped run goes on; by default beside the output, "
        "and taken away at the end."
    ),
]


def kind_of(plot: Path) -> str:
    """The format of a plot, by its suffix."""
    return plot.suffix.lower().lstrip(".") or "svg"
