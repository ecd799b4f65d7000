"""The model of the public API: a network that takes images in [0, 1], and what is known of it."""

from __future__ import annotations

import hashlib
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn

from bcu_cli.checkpoints.checkpoint import Checkpoint, Format
from bcu_cli.models import Architecture, metadata_for
from bcu_cli.models.loading import Loaded, as_classifier

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bcu_cli.models import Preprocessing


class Model(nn.Module):
    """An image classifier: images in [0, 1] to logits.

    Args:
        loaded: The classifier and the file that it came from.

    Attributes:
        architecture: Name of the architecture, such as ``timm:resnet50``.
        preprocessing: Size, cropping and normalisation; the normalisation is part of the model.
        classes: Names of the classes in the order of the outputs; empty where they are not known.
        num_classes: Number of outputs.

    Example:
        >>> model = bcu.load("model.safetensors")
        >>> model(torch.zeros(1, 3, 32, 32)).argmax(1).shape
        torch.Size([1])
    """

    def __init__(self, loaded: Loaded) -> None:
        super().__init__()
        self.loaded = loaded
        self.classifier = loaded.classifier
        self.architecture = loaded.architecture.name
        self.preprocessing = loaded.preprocessing
        self.num_classes = loaded.classifier.num_classes
        self.classes = loaded.classes
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Images ``float [N, C, H, W]`` in [0, 1] to logits ``[N, K]``."""
        logits: Tensor = self.classifier(images)
        return logits


def of_module(network: nn.Module, preprocessing: Preprocessing, classes: Sequence[str] = ()) -> Loaded:
    """A network of the caller's own as a loaded model.

    Args:
        network: Normalised images ``float [N, C, H, W]`` to logits ``[N, K]``. It stays as it is: bcu works
            on a copy.
        preprocessing: Size, cropping and normalisation of its input.
        classes: Names of its classes; may be empty.

    Raises:
        ArchitectureError: It cannot run on images of that size.
        AnswersError: It answers with no logits, or not each image by itself.
    """
    copied = deepcopy(network).cpu().float().eval()
    name = type(network).__name__
    classifier, remarks = as_classifier(copied, preprocessing, name)
    tensors = {key: tensor.detach().cpu().clone() for key, tensor in network.state_dict().items()}
    digest = hashlib.sha256()
    for key, tensor in tensors.items():
        digest.update(key.encode() + tensor.contiguous().reshape(-1).view(-1).numpy(force=True).tobytes())
    architecture = Architecture(
        name=name, source="the module that was given", num_classes=classifier.num_classes
    )
    checkpoint = Checkpoint(
        path=Path(f"<{name}>"),
        format=Format.SAFETENSORS,
        kind="a module in memory",
        sha256=digest.hexdigest(),
        size=sum(tensor.nbytes for tensor in tensors.values()),
        tensors=tensors,
        metadata=metadata_for(architecture, preprocessing, list(classes)) if classes else {},
    )
    evidence = ("architecture: the module that was given", *remarks)
    return Loaded(classifier=classifier, architecture=architecture, checkpoint=checkpoint, evidence=evidence)
