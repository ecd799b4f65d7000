"""The function that a file carries: made a network, tried with several sizes of batch, compared with another.

The names and shapes of tensors are a guess about what a network computes. Where a file says itself what it
computes (TorchScript, ONNX, ``torch.export``), that is the truth.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from bcu_cli.checkpoints import Format
from bcu_cli.errors import ArchitectureError, BcuError
from bcu_cli.models.classifier import Classifier, refuse_dependence
from bcu_cli.models.preprocessing import Preprocessing
from bcu_cli.models.registry import one_line

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor, nn

    from bcu_cli.checkpoints import Checkpoint
    from bcu_cli.models.foreign import ForeignNetwork

KINDS = {
    Format.TORCHSCRIPT: "TorchScript code",
    Format.ONNX: "ONNX graph",
    Format.EXPORTED: "exported graph",
}
"""How messages call the function of a file of each format that carries one."""
_SPREAD, _ROUNDING = 1e-4, 3e-5
"""How far equal networks may differ: shares of how much images change a logit, and of the largest logit."""


@dataclass(frozen=True, kw_only=True)
class Own:
    """The function that a file carries.

    Args:
        network: Normalised images to whatever the file answers, in evaluation mode and float32.
        what: How messages call it.
        input_size: Channels, height and width of its input, where the file fixes them.
        exported: For how many images it was exported, where the file says so.
        input_dtype: Of the images that the file takes.
    """

    network: ForeignNetwork
    what: str
    input_size: tuple[int, int, int] | None = None
    exported: int | None = None
    input_dtype: torch.dtype = torch.float32


def open_own(checkpoint: Checkpoint) -> Own:
    """Make a network of the function that a file carries.

    Raises:
        UnsafeFileError: There is something in it that is not allowed to run.
        CheckpointError: The file is damaged, or its graph is of a form that bcu does not run.
        ArchitectureError: It names an operator, or uses one in a way, that bcu does not compute.
    """
    what = f"own {KINDS[checkpoint.format]}"
    if checkpoint.format is Format.TORCHSCRIPT:
        from bcu_cli.checkpoints import open_script
        from bcu_cli.models.script import ScriptNetwork

        own = Own(network=ScriptNetwork(open_script(checkpoint)), what=what)
    elif checkpoint.format is Format.EXPORTED:
        from bcu_cli.checkpoints import load_program
        from bcu_cli.models.program import ProgramNetwork

        program = load_program(checkpoint)
        own = Own(
            network=ProgramNetwork(program, checkpoint.path.name),
            what=what,
            input_size=_fixed(program.input_shape),
            exported=_batch(program.input_shape),
            input_dtype=getattr(torch, program.input_dtype),
        )
    else:
        from bcu_cli.checkpoints import load_graph
        from bcu_cli.models.graph import GraphNetwork

        graph = load_graph(checkpoint)
        own = Own(
            network=GraphNetwork(graph, checkpoint.path.name),
            what=what,
            input_size=_fixed(graph.input_shape),
            exported=_batch(graph.input_shape),
            input_dtype=torch.float16 if graph.takes_half else torch.float32,
        )
    own.network.file = checkpoint.path.name
    own.network.float().eval()
    return own


def _fixed(shape: tuple[int | None, ...]) -> tuple[int, int, int] | None:
    """Channels, height and width of a graph's input ``[N, C, H, W]``, where all are fixed."""
    size = tuple(side for side in shape[1:] if side)
    return size if len(size) == 3 else None


def _batch(shape: tuple[int | None, ...]) -> int | None:
    return shape[0] if shape else None


def settle_batch(own: Own, size: tuple[int, int, int], name: str) -> None:
    """Find out how many images a network takes at a time, by its answers to noise.

    It must answer each image alike by itself and beside others. One that does not is given as many images at
    a time as it was exported for, which is one where the file does not say.

    Args:
        own: The network; its ``group`` is set.
        size: Channels, height and width of its input.
        name: How errors call it.

    Raises:
        ArchitectureError: It cannot run on such inputs.
        AnswersError: It answers with no logits, with NaN or infinity, or not to each image by itself.
    """
    exported = own.exported or 1
    inputs = noise(max(3, exported), size)
    classifier = Classifier(own.network, plain(size), 0, name=name).eval()
    own.network.group = None
    try:
        alone = torch.cat([answers(classifier, image[None], name) for image in inputs[:3]])
        for number in {3, exported} - {1}:
            refuse_dependence(alone[:number], answers(classifier, inputs[:number], name), name)
    except BcuError:
        own.network.group = exported
        first = answers(classifier, inputs[:1], name)
        refuse_dependence(first, answers(classifier, inputs, name), name)


def answers(classifier: Classifier, images: Tensor, name: str) -> Tensor:
    """What a network answers, without gradients: logits ``[N, K]``.

    Args:
        classifier: The network.
        images: ``float [N, C, H, W]`` in [0, 1].
        name: How errors call it.

    Raises:
        ArchitectureError: It cannot run on such inputs.
        AnswersError: It answers with no logits.
    """
    try:
        with torch.no_grad():
            logits: Tensor = classifier(images)
            return logits
    except BcuError:  # a graph that fails says so itself
        raise
    except Exception as error:
        size = "x".join(map(str, images.shape[1:]))
        raise ArchitectureError(
            f"{name} cannot run on {size} inputs: {one_line(error)}", "give the right --input-size or --arch"
        ) from error


def is_same(rebuilt: nn.Module, own: Own, pictures: Tensor | None, size: tuple[int, int, int]) -> bool:
    """Whether a rebuilt network gives the logits that the file's own function gives, by a few inputs.

    Args:
        rebuilt: Made after the names and shapes of the file's tensors; in evaluation mode.
        own: What the file computes.
        pictures: Some natural images ``float [N, C, H, W]`` in [0, 1], where there are any.
        size: Channels, height and width of the input.

    Raises:
        BcuError: The file's own function does not answer.
    """
    ours = Classifier(rebuilt, plain(size), 0).eval()
    theirs = Classifier(own.network, plain(size), 0).eval()
    for inputs in _inputs(pictures, size):
        expected = answers(theirs, inputs, own.network.file)
        try:
            found = answers(ours, inputs, own.network.file)
        except BcuError:  # of another shape, say: it is none that takes the place of the file's
            return False
        if found.shape != expected.shape or not _are_close(found, expected):
            return False
    return True


def _inputs(pictures: Tensor | None, size: tuple[int, int, int]) -> Iterator[Tensor]:
    """Batches of two sizes: images and noise as they are, normalised, and on the scale up to 255."""
    random = noise(2, size)
    some = random if pictures is None or len(pictures) < 2 else pictures[:: max(1, len(pictures) // 2)][:2]
    yield some[:1].float()
    for images in (some.float(), random):
        yield images
        yield (images - 0.5) / 0.25
    yield some.float() * 255


def _are_close(found: Tensor, expected: Tensor) -> bool:
    spread = (expected - expected.mean(0)).abs().max()
    allowed = float(_SPREAD * spread + _ROUNDING * expected.abs().max())
    return torch.allclose(found, expected, rtol=0.0, atol=allowed)


def noise(number: int, size: tuple[int, int, int]) -> Tensor:
    """So many images of noise, ``float [N, C, H, W]`` in [0, 1], the same each time."""
    return torch.rand(number, *size, generator=torch.Generator().manual_seed(0))


def plain(size: tuple[int, int, int]) -> Preprocessing:
    """The preprocessing that changes nothing but the size (C, H, W)."""
    return Preprocessing(input_size=size, mean=(0.0,) * size[0], std=(1.0,) * size[0])
