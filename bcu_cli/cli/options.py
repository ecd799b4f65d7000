"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Callable

RUN = "Running"


def panel(title: str | None = None) -> Callable[..., Any]:
    """Make options of one panel of the help, from a text, the option's names and its limits."""

    def option(text: str | None = None, *names: str, **limits: Any) -> Any:
        return typer.Option(*names, help=text, rich_help_panel=title, **limits)

    return option


_model = panel("Reading the model")
_run = panel(RUN)
_option = panel()


def _print_version(wanted: bool) -> None:
    if wanted:
        from bcu_cli import __version__

        typer.echo(__version__)
        raise typer.Exit


Version = Annotated[
    bool, _option("Print the version and exit.", "--version", callback=_print_version, is_eager=True)
]
Model = Annotated[
    Path,
    typer.Argument(
        help="The model: safetensors, a pickled .pt/.pth, TorchScript, ONNX, a folder as hubs have them, or "
        "hf-hub:OWNER/NAME\\[@REVISION]."
    ),
]
Arch = Annotated[
    str | None, _model("Architecture: a name of bcu, timm or torchvision, or FILE.py:FUNCTION for your own.")
]
InputSize = Annotated[int | None, _model("Height and width that the model takes, in pixels.", min=1)]
Mean = Annotated[str | None, _model("Mean of the normalisation, on a scale of 0 to 1: R,G,B.")]
Std = Annotated[str | None, _model("Deviation of the normalisation, on a scale of 0 to 1: R,G,B.")]
WeightsKey = Annotated[
    str | None,
    _model(
        "The weights to take from a pickle that holds several, like state_dict_ema or model/ema: keys "
        "joined with /. (default: the most complete; an average where the training script validated that)"
    ),
]
Data = Annotated[
    str,
    _option(
        "Labelled images: a folder with one subfolder for each class, a folder with train and test "
        "folders of such, a zip file of either, or cifar10:PATH, gtsrb:PATH, imagenet:PATH.",
        metavar="FOLDER|ZIP|NAME:PATH",
    ),
]
Download = Annotated[bool, _option("Download cifar10 or gtsrb into PATH if it is missing.", "--download")]
DeviceName = Annotated[str, _run("auto (CUDA, then MPS, then the CPU), cpu, cuda, cuda:1, mps.", "--device")]
Precision = Annotated[
    str, _run("auto (bf16 where the hardware has it, else fp16 on CUDA), bf16, fp16, fp32.")
]
Seed = Annotated[int, _run("Seed; on the CPU of one machine it determines every byte of the output.", min=0)]
Resume = Annotated[bool, _run("Continue an interrupted run.", "--resume")]
Json = Annotated[bool, _run("Print one JSON document and nothing else.", "--json")]
