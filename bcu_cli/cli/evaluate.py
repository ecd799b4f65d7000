"""``bcu evaluate``: measure models on labelled images, clean and triggered, and check conditions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bcu_cli import triggers
from bcu_cli.cli import output
from bcu_cli.cli.exit_codes import BAD
from bcu_cli.cli.options import (
    Arch,
    Data,
    DeviceName,
    Download,
    InputSize,
    Json,
    Mean,
    Std,
    WeightsKey,
    panel,
)
from bcu_cli.workflows.texts import model_options

_own = panel("A custom trigger")
_out = panel("Output")
_option = panel()


def evaluate(
    models: Annotated[list[Path], typer.Argument(help="One model or several to compare.")],
    data: Data,
    trigger: Annotated[
        str | None,
        _option(
            f"{', '.join(triggers.names(learnt=False))}; a .trigger.safetensors that bcu attack wrote, the "
            "only way for iab; or all: every named trigger, and the file beside the model."
        ),
    ] = None,
    target_class: Annotated[
        str | None,
        _option(
            "Index of the attack's target; next: the class after the true one; all: every class, "
            "of which the worst is shown. (default: the trigger file's, else all)"
        ),
    ] = None,
    against: Annotated[
        Path | None,
        _option("A model to compare predictions with, for example the original of a cleansed one."),
    ] = None,
    fail_if: Annotated[
        list[str] | None,
        _out(
            "Exit 1 where this holds for any model and trigger, like asr>0.05 or acc<0.9; also ra, "
            "agreement, worst_class_acc. Can be repeated."
        ),
    ] = None,
    page: Annotated[
        Path | None, _out("Write a page with the results: .html, or .png (needs matplotlib).")
    ] = None,
    preview: Annotated[Path | None, _out("Write a PNG of some images with and without the trigger.")] = None,
    tsne: Annotated[
        Path | None,
        _out(
            "Write a PNG of the penultimate features by t-SNE, a panel for each model (needs "
            "scikit-learn and matplotlib)."
        ),
    ] = None,
    trigger_image: Annotated[Path | None, _own("An image that is laid over each image.")] = None,
    trigger_mask: Annotated[
        Path | None, _own("Mask of the trigger: white where it acts, black elsewhere; replace needs it.")
    ] = None,
    trigger_mode: Annotated[str, _own("replace, add or blend.")] = "replace",
    alpha: Annotated[
        float | None, _own("Strength of add and blend. (default: 0.2)", min=0.0, max=1.0)
    ] = None,
    download: Download = False,
    arch: Arch = None,
    input_size: InputSize = None,
    mean: Mean = None,
    std: Std = None,
    weights_key: WeightsKey = None,
    device: DeviceName = "auto",
    as_json: Json = False,
) -> None:
    """Measure models on labelled images: clean accuracy (ACC), and with a trigger ASR and RA.

    ASR, the attack success rate, and RA, the robust accuracy, leave out the images of the target class.
    """
    from bcu_cli.evaluation.trigger_choice import Own, TriggerChoice, parse_target
    from bcu_cli.workflows.evaluate import EvaluateRequest
    from bcu_cli.workflows.evaluate import evaluate as measure
    from bcu_cli.workflows.evaluation_files import Files
    from bcu_cli.workflows.evaluation_table import table

    own = Own(picture=trigger_image, mask=trigger_mask, mode=trigger_mode, alpha=alpha)
    request = EvaluateRequest(
        models=tuple(models),
        data=data,
        triggers=TriggerChoice(
            name=trigger,
            target_class=parse_target(target_class),
            target_said=target_class is not None,
            own=own,
        ),
        fail_if=tuple(fail_if or ()),
        against=against,
        model=model_options(arch, input_size, mean, std, weights_key),
        outputs=Files(page=page, preview=preview, tsne=tsne),
        download=download,
        device=device,
    )
    result = measure(request)
    if as_json:
        output.document(result.document)
    else:
        output.table(*table(result.models))
    for line in result.failures:
        output.say(line)
    if result.error:
        output.fail(result.error.message, result.error.hint)
    if not result.passed:
        raise typer.Exit(BAD)
