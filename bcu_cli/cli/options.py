"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_MODEL = "Reading the model"
RUN = "Running"


def _print_version(wanted: bool) -> None:
    if wanted:
        from bcu_cli import __version__

        typer.echo(__version__)
        raise typer.Exit


Version = Annotated[
    bool,
    typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
]
Model = Annotated[
    Path,
    typer.Argument(
        help="The model: safetensors, a pickled .pt/.pth, TorchScript, ONNX, a folder as hubs have them, or "
        "hf-hub:OWNER/NAME\\[@REVISION]."
    ),
]
Arch = Annotated[
    str | None,
    typer.Option(
        help="Architecture: a name of bcu, timm or torchvision, or FILE.py:FUNCTION for your own.",
        rich_help_panel=_MODEL,
    ),
]
InputSize = Annotated[
    int | None,
    typer.Option(min=1, help="Height and width that the model takes, in pixels.", rich_help_panel=_MODEL),
]
Mean = Annotated[
    str | None,
    typer.Option(help="Mean of the normalisation, on a scale of 0 to 1: R,G,B.", rich_help_panel=_MODEL),
]
Std = Annotated[
    str | None,
    typer.Option(help="Deviation of the normalisation, on a scale of 0 to 1: R,G,B.", rich_help_panel=_MODEL),
]
WeightsKey = Annotated[
    str | None,
    typer.Option(
        help="The weights to take from a pickle that holds several, like state_dict_ema or model/ema: keys "
        "joined with /. (default: the most complete; an average where the training script validated that)",
        rich_help_panel=_MODEL,
    ),
]
Data = Annotated[
    str,
    typer.Option(
        help="Labelled images: a folder with one subfolder for each class, a folder with train and test "
        "folders of such, a zip file of either, or cifar10:PATH, gtsrb:PATH, imagenet:PATH.",
        metavar="FOLDER|ZIP|NAME:PATH",
    ),
]
Download = Annotated[
    bool, typer.Option("--download", help="Download cifar10 or gtsrb into PATH if it is missing.")
]
DeviceName = Annotated[
    str,
    typer.Option(
        "--device", help="auto (CUDA, then MPS, then the CPU), cpu, cuda, cuda:1, mps.", rich_help_panel=RUN
    ),
]
Precision = Annotated[
    str,
    typer.Option(
        help="auto (bf16 where the hardware has it, else fp16 on CUDA), bf16, fp16, fp32.",
        rich_help_panel=RUN,
    ),
]
Seed = Annotated[
    int,
    typer.Option(
        min=0,
        help="Seed; on the CPU of one machine it determines every byte of the output.",
        rich_help_panel=RUN,
    ),
]
Resume = Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.", rich_help_panel=RUN)]
Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON document and nothing else.", rich_help_panel=RUN)
]
