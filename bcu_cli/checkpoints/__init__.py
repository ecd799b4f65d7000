"""Bytes to named tensors and back: what a model file is, whether it is safe, its weights, and writing them.

Nothing here imports torch until tensors are read or written, and nothing that a file brings along is run. The
code of TorchScript (:func:`open_script`) and the graph of ONNX (:func:`load_graph`) are only data; bcu's own
code does what they name.
"""

from __future__ import annotations

from .checkpoint import Checkpoint, Description, Finding, Format, Outline, Plain
from .exported import Operation, Program, Value, load_program
from .onnx_file import Graph, Node, load_graph
from .operators import forbidden_operators, is_pure
from .reading import MODEL_SUFFIXES, WHOLE_BYTES, inspect_only, outline, read
from .rules import RULES, Rule
from .safetensors_file import Header, TensorInfo, count_not_finite, read_header
from .script_code import ScriptCode
from .sniff import sniff
from .torchscript import Script, ScriptObject, open_script
from .writing import atomic_write, check_writable, sha256_of, write, write_bytes, write_torchscript

__all__ = [
    "MODEL_SUFFIXES",
    "RULES",
    "WHOLE_BYTES",
    "Checkpoint",
    "Description",
    "Finding",
    "Format",
    "Graph",
    "Header",
    "Node",
    "Operation",
    "Outline",
    "Plain",
    "Program",
    "Rule",
    "Script",
    "ScriptCode",
    "ScriptObject",
    "TensorInfo",
    "Value",
    "atomic_write",
    "check_writable",
    "count_not_finite",
    "forbidden_operators",
    "inspect_only",
    "is_pure",
    "load_graph",
    "load_program",
    "open_script",
    "outline",
    "read",
    "read_header",
    "sha256_of",
    "sniff",
    "write",
    "write_bytes",
    "write_torchscript",
]
