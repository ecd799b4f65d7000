"""Bytes to named tensors and back: what a model file is, whether it is safe, its weights, and writing them.

Nothing here imports torch until tensors are read or written, and nothing that a file brings along is run
before :func:`load_script`, which runs only TorchScript made of known tensor operations.
"""

from __future__ import annotations

from .checkpoint import Checkpoint, Description, Finding, Format, Plain
from .operators import forbidden_operators, is_pure
from .reading import inspect_only, read
from .safetensors_file import Header, TensorInfo, read_header
from .torchscript import load_script
from .writing import atomic_write, check_writable, sha256_of, write, write_torchscript

__all__ = [
    "Checkpoint",
    "Description",
    "Finding",
    "Format",
    "Header",
    "Plain",
    "TensorInfo",
    "atomic_write",
    "check_writable",
    "forbidden_operators",
    "inspect_only",
    "is_pure",
    "load_script",
    "read",
    "read_header",
    "sha256_of",
    "write",
    "write_torchscript",
]
