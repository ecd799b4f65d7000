"""The records that reading a model file gives."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias, Union

if TYPE_CHECKING:
    from pathlib import Path

    import torch

Plain: TypeAlias = Union[str, int, float, bool, list["Plain"], tuple["Plain", ...], dict[str, "Plain"], None]  # noqa: UP007 - the names in quotes cannot be joined with |
"""A value without tensors or objects: it can stand beside weights and be written back as it is."""


class Format(enum.StrEnum):
    """The model file formats that can be read; all but ``torch.export``'s and ONNX can be written."""

    SAFETENSORS = "safetensors"
    PICKLE = "pickle"
    TORCHSCRIPT = "torchscript"
    EXPORTED = "torch.export"
    ONNX = "onnx"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing about a file that its user should know.

    Attributes:
        rule: A stable id, such as ``pickle-global``.
        message: What was found, in one line.
        severity: ``unsafe`` if opening the file the ordinary way could do harm, ``suspicious`` if its network
            behaves as if it had a backdoor, else ``note``.
        offset: Where in the file's pickle the opcode stands, in bytes, where there is one.
    """

    rule: str
    message: str
    severity: Literal["unsafe", "suspicious", "note"]
    offset: int | None = None


@dataclass(frozen=True, kw_only=True)
class Description:
    """What a file is, found without running or loading anything in it.

    Attributes:
        path: The file.
        format: Its format, by content.
        kind: The format in words for people, such as ``zip pickle of torch.save``.
        sha256: Of the whole file, in hexadecimal (of a model in several files: over the hashes of its
            index and of each); None where that would take long and was not asked for.
        size: Of the file, in bytes.
        findings: What the static look found; empty for an ordinary file.
        operators: TorchScript, torch.export and ONNX only: every operator that is named in them, sorted.
        parts: The other files that its tensors are in: of an index, or the external data of ONNX.
    """

    path: Path
    format: Format
    kind: str
    sha256: str | None
    size: int
    findings: tuple[Finding, ...] = ()
    operators: tuple[str, ...] = ()
    parts: tuple[Path, ...] = ()

    @property
    def is_unsafe(self) -> bool:
        """Whether any finding is of severity ``unsafe``."""
        return any(finding.severity == "unsafe" for finding in self.findings)


@dataclass(frozen=True, kw_only=True)
class Outline(Description):
    """What a safetensors file holds, by its header alone.

    Attributes:
        shapes: Of the tensors, by name without the wrapper's prefix, in the file's order.
        dtypes: Of the tensors, as torch calls them (``float32``), by name.
        metadata: As of a :class:`Checkpoint`.
        prefix: As of a :class:`Checkpoint`.
    """

    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, str]
    metadata: dict[str, str] = field(default_factory=dict)
    prefix: str = ""


@dataclass(frozen=True, kw_only=True)
class Checkpoint(Description):
    """A file's weights, and what is needed to write others in their place.

    Attributes:
        tensors: The classifier's tensors on the CPU by name without ``prefix``, in the file's order.
        metadata: Text: safetensors' ``__metadata__``, or the table ``metadata`` beside a pickle's weights.
        nesting: The keys that lead to the weights in a pickle: ``()``, ``("state_dict",)``, …
        prefix: What stood before every name, such as ``module.`` or ``_orig_mod.``; may be empty.
        beside: Plain values that stood beside the weights, keyed by their path joined with ``/``.
        left_out: Entries beside the weights that are not written back: an optimizer, an average of the
            weights (it would still hold a backdoor), other tensors.
    """

    sha256: str
    tensors: dict[str, torch.Tensor]
    metadata: dict[str, str] = field(default_factory=dict)
    nesting: tuple[str, ...] = ()
    prefix: str = ""
    beside: dict[str, Plain] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the tensors, by name."""
        return {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}

    @property
    def dtypes(self) -> dict[str, str]:
        """Of the tensors, as torch calls them (``float32``), by name."""
        return {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in self.tensors.items()}
