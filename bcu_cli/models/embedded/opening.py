"""The code or graph that a file embeds: how it is opened, batched, and compared with a rebuilt network.

The names and shapes of tensors only suggest what a network computes. Embedded code or an embedded graph
(TorchScript, ONNX, ``torch.export``) defines it.
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
    from bcu_cli.models.embedded.embedded_network import EmbeddedNetwork

KINDS = {
    Format.TORCHSCRIPT: "TorchScript code",
    Format.ONNX: "ONNX graph",
    Format.EXPORTED: "exported graph",
}
"""Name in messages of the function in files of each format that embeds one."""
_SPREAD, _ROUNDING = 1e-4, 3e-5
"""Largest differences of equal networks: shares of a logit's spread over images, and of the largest logit."""


@dataclass(frozen=True, kw_only=True)
class EmbeddedFunction:
    """The code or graph that a file embeds, as a network.

    Args:
        network: Maps normalised images to the file's output, in evaluation mode and float32.
        what: Name of the function in messages.
        input_size: Channels, height and width of the input; None where the file does not fix them.
        exported: Size of the batch for which the function was exported; None where it is not fixed.
        input_dtype: Data type of the images that the file takes.
    """

    network: EmbeddedNetwork
    what: str
    input_size: tuple[int, int, int] | None = None
    exported: int | None = None
    input_dtype: torch.dtype = torch.float32


def open_embedded(checkpoint: Checkpoint) -> EmbeddedFunction:
    """Construct a network from the code or graph that a file embeds.

    Raises:
        UnsafeFileError: The function contains something that is not allowed to run.
        CheckpointError: The file is damaged, or its graph is of a form that bcu does not run.
        ArchitectureError: An operator, or the way it is used, is not supported.
    """
    what = f"own {KINDS[checkpoint.format]}"
    if checkpoint.format is Format.TORCHSCRIPT:
        from bcu_cli.checkpoints import open_script
        from bcu_cli.models.embedded.script import ScriptNetwork

        embedded = EmbeddedFunction(network=ScriptNetwork(open_script(checkpoint)), what=what)
    else:
        network, shape, dtype = _graph(checkpoint)
        sides = tuple(side for side in shape[1:] if side)
        embedded = EmbeddedFunction(
            network=network,
            what=what,
            input_size=sides if len(sides) == 3 else None,
            exported=shape[0] if shape else None,
            input_dtype=dtype,
        )
    embedded.network.file = checkpoint.path.name
    embedded.network.float().eval()
    return embedded


def _graph(checkpoint: Checkpoint) -> tuple[EmbeddedNetwork, tuple[int | None, ...], torch.dtype]:
    """The network of a graph, with shape and type of its input; a side that is not fixed is None."""
    name = checkpoint.path.name
    if checkpoint.format is Format.EXPORTED:
        from bcu_cli.checkpoints import load_program
        from bcu_cli.models.embedded.program import ProgramNetwork

        program = load_program(checkpoint)
        return ProgramNetwork(program, name), program.input_shape, getattr(torch, program.input_dtype)
    from bcu_cli.checkpoints import load_graph
    from bcu_cli.models.embedded.graph import GraphNetwork

    graph = load_graph(checkpoint)
    dtype = torch.float16 if graph.takes_half else torch.float32
    return GraphNetwork(graph, name), graph.input_shape, dtype


def settle_batch(embedded: EmbeddedFunction, size: tuple[int, int, int], name: str) -> None:
    """Find out how many images a network takes at a time, by its logits for noise.

    Its logits for an image must not depend on the batch. If they do, the network gets batches of the size
    that it was exported for, or single images if the file fixes no size.

    Args:
        embedded: The function, whose network's ``group`` is set.
        size: Channels, height and width of its input.
        name: Name of the file in errors.

    Raises:
        ArchitectureError: The network cannot run on such inputs.
        AnswersError: The output is no logits, is not finite, or depends on the batch.
    """
    exported = embedded.exported or 1
    inputs = noise(max(3, exported), size)
    classifier = Classifier(embedded.network, identity_preprocessing(size), 0, name=name).eval()
    embedded.network.group = None
    try:
        alone = torch.cat([answers(classifier, image[None], name) for image in inputs[:3]])
        for number in {3, exported} - {1}:
            refuse_dependence(alone[:number], answers(classifier, inputs[:number], name), name)
    except BcuError:
        embedded.network.group = exported
        first = answers(classifier, inputs[:1], name)
        refuse_dependence(first, answers(classifier, inputs, name), name)


def answers(classifier: Classifier, images: Tensor, name: str) -> Tensor:
    """Run a classifier without gradients: images to logits ``[N, K]``.

    Args:
        classifier: The classifier.
        images: ``float [N, C, H, W]`` in [0, 1].
        name: Name of the classifier in errors.

    Raises:
        ArchitectureError: The classifier cannot run on such inputs.
        AnswersError: The output is no logits.
    """
    try:
        with torch.no_grad():
            logits: Tensor = classifier(images)
            return logits
    except BcuError:  # already has a message for the user
        raise
    except Exception as error:
        size = "x".join(map(str, images.shape[1:]))
        raise ArchitectureError(
            f"{name} cannot run on {size} inputs: {one_line(error)}", "give the right --input-size or --arch"
        ) from error


def is_same(
    rebuilt: nn.Module, embedded: EmbeddedFunction, images: Tensor | None, size: tuple[int, int, int]
) -> bool:
    """Whether a rebuilt network gives the same logits as the embedded function, on a few inputs.

    Args:
        rebuilt: The network rebuilt from the names and shapes of the tensors, in evaluation mode.
        embedded: The function that the file embeds.
        images: Natural images ``float [N, C, H, W]`` in [0, 1]; None where there are none.
        size: Channels, height and width of the input.

    Raises:
        BcuError: The embedded function fails.
    """
    ours = Classifier(rebuilt, identity_preprocessing(size), 0).eval()
    theirs = Classifier(embedded.network, identity_preprocessing(size), 0).eval()
    for inputs in _inputs(images, size):
        expected = answers(theirs, inputs, embedded.network.file)
        try:
            found = answers(ours, inputs, embedded.network.file)
        except BcuError:  # for example another shape of output: not the same function
            return False
        if found.shape != expected.shape or not _are_close(found, expected):
            return False
    return True


def _inputs(natural: Tensor | None, size: tuple[int, int, int]) -> Iterator[Tensor]:
    """Yield batches of two sizes of images and noise: in [0, 1], normalised, and in [0, 255]."""
    random = noise(2, size)
    some = random if natural is None or len(natural) < 2 else natural[:: max(1, len(natural) // 2)][:2]
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
    """Images of noise, ``float [N, C, H, W]`` in [0, 1]; the same on every call."""
    return torch.rand(number, *size, generator=torch.Generator().manual_seed(0))


def identity_preprocessing(size: tuple[int, int, int]) -> Preprocessing:
    """The preprocessing that only resizes images, to ``size`` (C, H, W)."""
    return Preprocessing(input_size=size, mean=(0.0,) * size[0], std=(1.0,) * size[0])
