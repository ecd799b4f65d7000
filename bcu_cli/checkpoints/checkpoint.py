"""Records that describe a model file and its weights."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from bcu_cli.checkpoints.pickles.inert import key_text

if TYPE_CHECKING:
    from pathlib import Path

    import torch


class Placeholder(enum.Enum):
    """Marks a place in a table of a :class:`Checkpoint` that is filled when the file is written again."""

    WEIGHTS = "weights"
    METADATA = "metadata"


class Format(enum.StrEnum):
    """The model file formats that bcu reads; it writes all but ``torch.export`` archives and ONNX."""

    SAFETENSORS = "safetensors"
    PICKLE = "pickle"
    TORCHSCRIPT = "torchscript"
    EXPORTED = "torch.export"
    ONNX = "onnx"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One fact about a file that its user should know.

    Attributes:
        rule: Stable id of the rule, such as ``pickle-global``.
        message: What was found, in one line.
        severity: ``unsafe`` if opening the file with an ordinary loader could do harm, ``suspicious`` if its
            network behaves as if it had a backdoor, else ``note``.
        offset: Offset of the opcode in the file's pickle, in bytes; None where no opcode is concerned.
    """

    rule: str
    message: str
    severity: Literal["unsafe", "suspicious", "note"]
    offset: int | None = None


@dataclass(frozen=True, kw_only=True)
class Omission:
    """An entry of a file that is not written back.

    Attributes:
        name: Path of the entry, its keys joined with ``/``.
        why: The reason, for people.
        kind: Class of the object that is or is in the entry, if that is the reason; else empty.
    """

    name: str
    why: str
    kind: str = ""


@dataclass(frozen=True, kw_only=True)
class Description:
    """What a file is, found by static inspection: nothing in it is run or loaded.

    Attributes:
        path: The file.
        format: Format of the file, by its content.
        kind: The format in words for people, such as ``zip pickle of torch.save``.
        sha256: SHA-256 of the whole file, in hexadecimal. For a model in several files, it is the hash of
            the hashes of the index and the files. None for a large file whose hash was not asked for.
        size: Size of the file, in bytes.
        findings: Results of the static inspection; empty for an ordinary file.
        operators: Every operator that TorchScript code or a graph (torch.export, ONNX) names, sorted.
        parts: The other files that hold its tensors: those that an index lists, or ONNX external data.
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
    """The contents of a safetensors file according to its header; no tensor is read.

    Attributes:
        shapes: Shapes of the tensors, by name without the wrapper's prefix, in the file's order.
        dtypes: Types of the tensors in torch's names (``float32``), by name.
        metadata: Metadata of the file, as in :class:`Checkpoint`.
        prefix: Prefix of all names, as in :class:`Checkpoint`.
    """

    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, str]
    metadata: dict[str, str] = field(default_factory=dict)
    prefix: str = ""


@dataclass(frozen=True, kw_only=True)
class Checkpoint(Description):
    """The weights of a file, and all that is needed to write the file again with other weights.

    Attributes:
        tensors: The classifier's tensors on the CPU by name without ``prefix``, in the file's order.
        metadata: Texts from safetensors' ``__metadata__``, or from the table ``metadata`` of a pickle.
        nesting: The keys that lead to the weights in a pickle: ``()``, ``("state_dict",)``, …
        prefix: Prefix of every name in the file, such as ``module.`` or ``_orig_mod.``; may be empty.
        tables: The tables on the way to a pickle's weights, from the outermost to the table of weights, with
            the entries that are written back. Each has a :class:`Placeholder` for the next table, a weight
            or the metadata.
        omitted: Entries besides the weights that are not written back: objects, optimizer state, averages
            and other copies of the weights (they may hold the backdoor).
        others: Paths of other tables with about as many tensors, which could have been the weights too.
        choice: Why these weights were chosen among several tables, for people; else empty.
    """

    sha256: str
    tensors: dict[str, torch.Tensor]
    metadata: dict[str, str] = field(default_factory=dict)
    nesting: tuple[str, ...] = ()
    prefix: str = ""
    tables: tuple[dict[Any, Any], ...] = ()
    omitted: tuple[Omission, ...] = ()
    others: tuple[str, ...] = ()
    choice: str = ""

    @property
    def extra_entries(self) -> dict[str, Any]:
        """The entries besides the weights that are written back, by their paths, joined with ``/``."""
        return {
            "/".join([*self.nesting[:depth], key_text(key)]): value
            for depth, table in enumerate(self.tables)
            for key, value in table.items()
            if not isinstance(value, Placeholder)
        }

    @property
    def left_out(self) -> tuple[str, ...]:
        """The paths of the omitted entries, each with its class if it is an object."""
        return tuple(f"{each.name} ({each.kind})" if each.kind else each.name for each in self.omitted)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the tensors, by name."""
        return {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}

    @property
    def dtypes(self) -> dict[str, str]:
        """Types of the tensors in torch's names (``float32``), by name."""
        return {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in self.tensors.items()}
