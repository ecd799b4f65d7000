"""The files that ``bcu evaluate`` writes besides its report: a page, a preview, and a t-SNE of features."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bcu_cli import events
from bcu_cli.errors import UsageError
from bcu_cli.evaluation.trigger_choice import ALL, TriggerChoice
from bcu_cli.report.text import percent
from bcu_cli.workflows import evaluation_page

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bcu_cli.report.tsne import Panel
    from bcu_cli.workflows.measuring import Measured


@dataclass(frozen=True, kw_only=True)
class Files:
    """Files to write, by the options that name them; None writes no file."""

    page: Path | None = None
    preview: Path | None = None
    tsne: Path | None = None

    def named(self) -> dict[str, Path]:
        """The files to write, by option."""
        return {name: path for name, path in asdict(self).items() if path}

    def check(self, wanted: TriggerChoice, *, inputs: list[Path]) -> None:
        """Refuse files that cannot be written, before the work.

        Raises:
            UsageError: A suffix is wrong, two files are the same, a package is missing, or there is not
                exactly one trigger where one is needed.
            OutputError: A file is an input, or cannot be written.
        """
        from bcu_cli.checkpoints import check_writable
        from bcu_cli.report import optional
        from bcu_cli.report import page as pages

        if self.page:
            pages.check(self.page, inputs=inputs)
        pictures = {name: path for name, path in self.named().items() if name != "page"}
        for name, path in pictures.items():
            if path.suffix != ".png":
                raise UsageError(f"--{name} {path} is no .png", "name a file that ends in .png")
        if self.preview and (not wanted or wanted.name == ALL):
            raise UsageError("--preview shows one trigger", "name it with --trigger")
        if self.tsne and wanted.name == ALL:
            raise UsageError("--tsne shows one trigger, or none", "name it with --trigger")
        for (one, path), (other, same) in combinations(self.named().items(), 2):
            if os.path.realpath(path) == os.path.realpath(same):
                raise UsageError(f"--{one} and --{other} are both {path}", "give them different names")
        if self.tsne:
            optional.require("--tsne", self.tsne, "matplotlib", "scikit-learn")
        for path in pictures.values():
            check_writable(path, inputs=inputs)

    def write(self, report: dict[str, Any], measured: Sequence[Measured]) -> dict[str, Any]:
        """Write what is made of the measures (the preview is there already); all files for the report.

        Raises:
            OutputError: A file cannot be written.
        """
        from bcu_cli.checkpoints import sha256_of
        from bcu_cli.report import document
        from bcu_cli.report import page as pages

        if self.page:
            pages.write(evaluation_page.page(report, measured), self.page)
        if self.tsne:
            _write_tsne(measured, self.tsne)
        return {name: document.written(path, sha256_of(path)) for name, path in self.named().items()}


def _write_tsne(measured: Sequence[Measured], path: Path) -> None:
    """The features of all models, in the order of the first one's classes, and towards its target."""
    from bcu_cli.report import tsne

    first = measured[0]
    trigger = first.entry.get("trigger")
    target = trigger and trigger["target_class"]
    legend = tsne.Legend(
        names=first.classes,
        target=target if isinstance(target, int) else None,
        triggered="triggered, in the colour of the true class" if trigger else "",
    )
    panels = [_panel(one, first.classes, trigger) for one in measured]
    with events.progress("t-SNE") as part:
        tsne.write(panels, legend, path, on_panel=part.advance)


def _panel(measured: Measured, classes: tuple[str, ...], trigger: dict[str, Any] | None) -> Panel:
    """The panel with the features of one model.

    Args:
        measured: The measured model.
        classes: Class names of the first model; this model may have them in another order.
        trigger: The first model's entry of the trigger; None without one.
    """
    import torch

    from bcu_cli.report.tsne import Panel, title
    from bcu_cli.triggers.base import target_labels

    features, entry = measured.features, measured.entry
    if features is None:
        raise ValueError("a model without features")
    names = measured.classes
    if not set(names) & set(classes) and len(names) == len(classes):
        names = classes  # they are called otherwise in one of the files, and both have the same order
    order = torch.tensor([classes.index(name) if name in classes else -1 for name in names])
    labels = order[features.labels]
    triggered, origins = features.clean[:0], labels[:0]
    if trigger and features.triggered is not None:
        others = labels != target_labels(trigger["target_class"], labels, len(classes))
        triggered, origins = features.triggered[others], labels[others]
    return Panel(
        title=title(Path(entry["model"]["path"]).name, _measures(entry, trigger)),
        clean=features.clean,
        classes=labels,
        triggered=triggered,
        origins=origins,
    )


def _measures(entry: dict[str, Any], trigger: dict[str, Any] | None) -> str:
    """ACC and ASR in words, with the target class where it differs from the first model's."""
    acc = f"ACC {percent(entry['acc']['value'])}"
    if not trigger:
        return acc
    towards = entry["trigger"]["target_name"]
    to = "" if towards == trigger["target_name"] else f" to {towards}"
    return f"{acc}, ASR {percent(entry['asr']['value'])}{to}"
