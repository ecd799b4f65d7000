"""``bcu cleanse``: remove a backdoor by distillation on unlabeled images, or by another method."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bcu_cli import defenses
from bcu_cli.cli import cleanse_output, launching, output
from bcu_cli.cli.exit_codes import BAD, DONE, FAILED
from bcu_cli.cli.options import (
    RUN,
    Arch,
    DeviceName,
    InputSize,
    Json,
    Mean,
    Model,
    Precision,
    Resume,
    Seed,
    Std,
    WeightsKey,
)
from bcu_cli.errors import UsageError
from bcu_cli.workflows.method_options import options_of
from bcu_cli.workflows.texts import model_options, size_in_bytes

_METHOD = "Options of methods; the defaults are the papers', for auto its own"
_BCU = "Only for method bcu"
_AUTO = "Only for method auto"
_EXIT_CODES = {"cleansed": DONE, "not cleansed": BAD, "could not tell": FAILED}


@launching.as_rank
def cleanse(
    context: typer.Context,
    model: Model,
    out: Annotated[Path, typer.Option(help="The cleansed model to write.")],
    images: Annotated[
        Path | None,
        typer.Option(
            help="A folder of images, at any depth, or a WebDataset shard (.tar), or a folder of shards. "
            "Methods that need labels take them from the subfolders. All methods except clp need it."
        ),
    ] = None,
    method: Annotated[
        str, typer.Option(help=f"One of {', '.join(defenses.names())}; bcu is the paper's recipe.")
    ] = "auto",
    pseudo_labels: Annotated[
        bool,
        typer.Option(
            "--pseudo-labels", help="Use the model's predictions as labels, in methods that need labels."
        ),
    ] = False,
    format: Annotated[  # noqa: A002 - the name of the option
        str,
        typer.Option(
            help="same (as the original; for torch.export and ONNX: safetensors, or torchscript where only "
            "the graph is known), safetensors, pickle, torchscript."
        ),
    ] = "same",
    max_images: Annotated[
        int | None, typer.Option(min=1, help="Draw this many of the images at random.")
    ] = None,
    cache: Annotated[
        str,
        typer.Option(
            help="Memory for decoded images, like 500MB. Images beyond it are decoded at each use; methods "
            "that need labels refuse them."
        ),
    ] = "4GB",
    arch: Arch = None,
    input_size: InputSize = None,
    mean: Mean = None,
    std: Std = None,
    weights_key: WeightsKey = None,
    epochs: Annotated[
        str | None,
        typer.Option(
            help="A number, or auto: 100 (method auto: 20 a cleansing, 3 on images of more than "
            "64x64 pixels), fewer for very large folders, more for very small ones; 0 (bcu) only "
            "re-initialises the student. (default: auto; i-bau: 5)",
            rich_help_panel=_METHOD,
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            min=2,
            help="(default: 256; anp, auto: 128; auto on images of more than 64x64 pixels: 12)",
            rich_help_panel=_METHOD,
        ),
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            help="(default: 0.01; anp: 0.2; auto: 0.05, but 0.01 above 64x64 pixels or with neither "
            "BatchNorm nor LayerNorm; by AdamW, for networks with LayerNorm alone, 0.001, "
            "above 64x64 pixels 0.0003)",
            rich_help_panel=_METHOD,
        ),
    ] = None,
    momentum: Annotated[
        float | None,
        typer.Option(min=0.0, max=1.0, help="Momentum of SGD. (default: 0.9)", rich_help_panel=_METHOD),
    ] = None,
    weight_decay: Annotated[
        float | None, typer.Option(min=0.0, help="(default: 0.0005)", rich_help_panel=_METHOD)
    ] = None,
    crop_padding: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Padding of the random crop, in pixels. (default: an eighth of the image's side)",
            rich_help_panel=_METHOD,
        ),
    ] = None,
    flip: Annotated[
        bool | None,
        typer.Option(
            help="Mirror images at random. (default: if the model's predictions do not change by it)",
            rich_help_panel=_METHOD,
        ),
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option(
            help="A setting of a method, NAME=NUMBER, like u=3 of clp; repeatable.", rich_help_panel=_METHOD
        ),
    ] = None,
    strength: Annotated[
        float | None,
        typer.Option(
            help="Factor on the re-initialisation ratios: more removes more. (default: 1)",
            rich_help_panel=_BCU,
        ),
    ] = None,
    ratios: Annotated[
        str | None,
        typer.Option(
            help="Shares of weights to re-initialise: first layer, layers in between, classifier. "
            "(default: 0.01,0.01,0.01,0.03,0.03,0.09,0.09,0.27,0.27,0.1)",
            rich_help_panel=_BCU,
        ),
    ] = None,
    init: Annotated[
        str | None,
        typer.Option(
            help="How the re-initialised weights are spread: adaptive (as --ratios), uniform, decreasing "
            "(reversed), layer:1 to layer:4 (a quarter of the depth). (default: adaptive)",
            rich_help_panel=_BCU,
        ),
    ] = None,
    targets: Annotated[
        str | None,
        typer.Option(
            help="What the student learns: soft, the model's probabilities, or hard, its predicted classes. "
            "(default: soft)",
            rich_help_panel=_BCU,
        ),
    ] = None,
    temperature: Annotated[
        str | None,
        typer.Option(help="Temperature at the first and the last step. (default: 1,4)", rich_help_panel=_BCU),
    ] = None,
    quick: Annotated[
        bool | None,
        typer.Option(
            "--quick",
            help="Weaker levels alone, without canary backdoors: faster, with less evidence.",
            rich_help_panel=_AUTO,
        ),
    ] = None,
    prefer: Annotated[
        str | None,
        typer.Option(
            help="What counts more: accuracy, which may leave more of the backdoor, or removal, which costs "
            "accuracy. (default: between them)",
            rich_help_panel=_AUTO,
        ),
    ] = None,
    card: Annotated[
        bool,
        typer.Option(
            "--card",
            help="Write a model card for hubs, README.md, beside the result; never over another one.",
        ),
    ] = False,
    page: Annotated[
        Path | None,
        typer.Option(
            help="An .html file that shows the verdict, what worked before and after, the found triggers on "
            "your images, and the held-out images with another answer; written whatever the verdict.",
        ),
    ] = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Write the result whatever the verdict; the exit code stays the verdict's.",
            rich_help_panel=_AUTO,
        ),
    ] = False,
    seed: Seed = 0,
    device: DeviceName = "auto",
    devices: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Number of devices of this machine to train on, one process each: GPUs or, without any, "
            "parts of the CPU (methods auto, bcu, ft, nad). Use torchrun for several machines. "
            "(default: 1)",
            rich_help_panel=RUN,
        ),
    ] = None,
    precision: Precision = "auto",
    resume: Resume = False,
    profile: Annotated[
        bool,
        typer.Option(
            "--profile",
            help="Print the time of each part, and the reached share of the device's peak speed.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Remove a backdoor by distillation on unlabeled images, and judge the result.

    The result has the same tensor names, shapes and types as the original, and takes its place.
    The default method chooses its strength. Without --force nothing is written where the verdict is
    "not cleansed" (exit code 1) or "could not tell" (2). --method bcu is the recipe of Pang et al., Backdoor
    Cleansing with Unlabeled Data, CVPR 2023; --method NAME is another method.
    """
    from bcu_cli.training import ranks
    from bcu_cli.workflows import cleanse as workflow

    given = {
        "strength": strength,
        "ratios": ratios,
        "init": init,
        "targets": targets,
        "temperature": temperature,
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "momentum": momentum,
        "weight_decay": weight_decay,
        "crop_padding": crop_padding,
        "flip": flip,
        "quick": quick,
        "prefer": prefer,
    }
    request = workflow.CleanseRequest(
        model=model,
        images=images,
        out=out,
        method=method,
        options=options_of(method, seed, given, setting or ()),
        options_of_model=model_options(arch, input_size, mean, std, weights_key),
        pseudo_labels=pseudo_labels,
        max_images=max_images,
        cache=size_in_bytes(cache, "--cache") // ranks.local_count(),
        format=format,
        force=force,
        card=card,
        page=page,
        device=device,
        precision=precision,
        resume=resume,
        with_profile=profile,
    )
    workflow.check(request)
    if max(devices or 1, ranks.count()) > 1 and method not in workflow.SEVERAL_DEVICES:
        raise UsageError(
            f"--method {method} runs on one device", f"{', '.join(workflow.SEVERAL_DEVICES)} train on several"
        )
    if launching.started_by_torchrun():
        launching.check(devices)
    elif devices not in {None, 1}:
        raise typer.Exit(launching.launch(context.obj, devices))
    result = workflow.cleanse(request)
    if ranks.rank() > 0:
        return
    if profile:
        cleanse_output.show_profile(result.document["profile"])
    if as_json:
        output.document(result.document)
    else:
        cleanse_output.show(result.document)
    if result.verdict and (code := _EXIT_CODES[result.verdict]) != DONE:
        cleanse_output.explain(result.document)
        raise typer.Exit(code)
