"""``bcu cleanse``: remove a backdoor by distillation on unlabeled images, or by another method."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bcu_cli import defenses
from bcu_cli.cli import cleanse_output, launching, output
from bcu_cli.cli.exit_codes import BAD, DONE, FAILED
from bcu_cli.cli.method_options import options_of
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
    model_options,
    size_in_bytes,
)
from bcu_cli.errors import UsageError
from bcu_cli.workflows.settings import settings_of

_METHOD = "The method; the defaults are its paper's"
_BCU = "Of method bcu alone"
_AUTO = "Of method auto alone"
_EXIT_CODES = {"cleansed": DONE, "not cleansed": BAD, "could not tell": FAILED}


@launching.as_rank
def cleanse(
    context: typer.Context,
    model: Model,
    out: Annotated[Path, typer.Option(help="The cleansed model to write.")],
    images: Annotated[
        Path | None,
        typer.Option(
            help="A folder of images, any depth, any sizes, any number; WebDataset shards (.tar) in it, or "
            "one itself, are read as they are. Methods that need labels take them from its subfolders. All "
            "methods but clp need it."
        ),
    ] = None,
    method: Annotated[
        str, typer.Option(help=f"One of {', '.join(defenses.names())}; bcu is the paper's recipe.")
    ] = "auto",
    pseudo_labels: Annotated[
        bool,
        typer.Option(
            "--pseudo-labels", help="Take the model's own answers for labels, in methods that need some."
        ),
    ] = False,
    format: Annotated[  # noqa: A002 - the name of the option
        str,
        typer.Option(
            help="same (as the original; of torch.export and ONNX: safetensors, or torchscript where a graph "
            "is all that is known), safetensors, pickle, torchscript."
        ),
    ] = "same",
    max_images: Annotated[
        int | None, typer.Option(min=1, help="Draw this many of the images at random.")
    ] = None,
    cache: Annotated[
        str,
        typer.Option(
            help="Memory for decoded images, like 500MB: where all of them take more, what fits is kept "
            "and the rest decoded each time it is used; methods that learn from labels refuse more."
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
            help="A number, or auto: 100 (method auto: 20 a cleansing), fewer for very large folders, "
            "more for very small ones; 0 (bcu) writes the student as it is initialised. "
            "(default: auto; i-bau: 5)",
            rich_help_panel=_METHOD,
        ),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=2, help="(default: 256; anp, auto: 128)", rich_help_panel=_METHOD)
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(min=0.0, help="(default: 0.01; anp: 0.2; auto: 0.05)", rich_help_panel=_METHOD),
    ] = None,
    momentum: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="(default: 0.9)", rich_help_panel=_METHOD)
    ] = None,
    weight_decay: Annotated[
        float | None, typer.Option(min=0.0, help="(default: 0.0005)", rich_help_panel=_METHOD)
    ] = None,
    crop_padding: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Pixels of the random crop. (default: an eighth of the image's side, the paper's 4 of 32)",
            rich_help_panel=_METHOD,
        ),
    ] = None,
    flip: Annotated[
        bool | None,
        typer.Option(
            help="Use mirror images too. (default: if the model takes them for the same)",
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
            help="Shares of weights drawn anew: first layer, layers in between, classifier. "
            "(default: 0.01,0.01,0.01,0.03,0.03,0.09,0.09,0.27,0.27,0.1)",
            rich_help_panel=_BCU,
        ),
    ] = None,
    init: Annotated[
        str | None,
        typer.Option(
            help="Where as many weights are drawn anew: adaptive (as --ratios), uniform, decreasing (the "
            "other way round), layer:1 to layer:4 (a quarter of the depth). (default: adaptive)",
            rich_help_panel=_BCU,
        ),
    ] = None,
    targets: Annotated[
        str | None,
        typer.Option(
            help="What is learnt of the model: soft, its probabilities, or hard, its answers. "
            "(default: soft)",
            rich_help_panel=_BCU,
        ),
    ] = None,
    temperature: Annotated[
        str | None,
        typer.Option(help="At the first and the last step. (default: 1,4)", rich_help_panel=_BCU),
    ] = None,
    quick: Annotated[
        bool | None,
        typer.Option(
            "--quick",
            help="One strength, not tried on backdoors of our own first: faster, and less is proved.",
            rich_help_panel=_AUTO,
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
            help="Train on so many devices of this machine, one process each: GPUs or, without any, parts of "
            "the CPU (methods auto, bcu, ft, nad). torchrun does so on several machines. "
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
            help="Say where the time went, and what share of the device's peak was reached.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Remove a backdoor: re-initialise part of each layer, and distil on unlabeled images.

    The result has the same tensor names, shapes and types as the original, and takes its place.
    The default finds its strength by itself and judges the result: where it is not cleansed (exit code 1), or
    that could not be told (2), nothing is written. --method bcu is the recipe of Pang et al., Backdoor
    Cleansing with Unlabeled Data, CVPR 2023; --method NAME is another method.
    """
    from bcu_cli.defenses.base import find
    from bcu_cli.training import ranks
    from bcu_cli.workflows import cleanse as workflow

    kind = find(method)
    said = {
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
    }
    settings = settings_of(method, setting or (), kind="method", owners=defenses.names(), like="clp.u=3")
    options = options_of(kind, seed, said, settings)
    request = workflow.CleanseRequest(
        model=model,
        images=images,
        out=out,
        method=method,
        options=options,
        options_of_model=model_options(arch, input_size, mean, std, weights_key),
        pseudo_labels=pseudo_labels,
        max_images=max_images,
        cache=size_in_bytes(cache, "--cache") // ranks.local_count(),
        format=format,
        force=force,
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
