"""The records that reading a model file gives."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from .inert import shown

if TYPE_CHECKING:
    from pathlib import Path

    import torch


class Placeholder(enum.Enum):
    """Stands in a table of a :class:`Checkpoint` for what is written there: a table, a weight, a text."""

    WEIGHTS = "weights"
    METADATA = "metadata"


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
class Omission:
    """An entry of a file that is not written back.

    Attributes:
        name: Its path, the keys joined with ``/``.
        why: The reason, for people.
        kind: The class of the object that it is or holds, where that is the reason; else empty.
    """

    name: str
    why: str
    kind: str = ""


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
        tables: The tables on the way to a pickle's weights, one for each key of ``nesting`` and one more, in
            the file's order: what is written back, and a :class:`Placeholder` where the next table, a weight or the
            metadata stood.
        omitted: Entries beside the weights that are not written back: objects, an optimizer, an average or
            another copy of the weights (it may hold a backdoor).
        others: The paths of other tables that hold as many tensors, and were not taken for the weights.
        choice: Why these weights were taken and not the others, for people; empty where there are none.
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
        """What stood beside the weights and is written back, keyed by its path joined with ``/``."""
        return {
            "/".join([*self.nesting[:depth], shown(key)]): value
            for depth, table in enumerate(self.tables)
            for key, value in table.items()
            if not isinstance(value, Placeholder)
        }

    @property
    def left_out(self) -> tuple[str, ...]:
        """The paths of what is not written back, each with the class of the object that it is."""
        return tuple(f"{each.name} ({each.kind})" if each.kind else each.name for each in self.omitted)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the tensors, by name."""
        return {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}

    @property
    def dtypes(self) -> dict[str, str]:
        """Of the tensors, as torch calls them (``float32``), by name."""
        return {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in self.tensors.items()}
