"""Reading and writing model files, and checking whether they are safe to open.

No code from a file is run. TorchScript code (:func:`open_script`) and ONNX graphs (:func:`load_graph`) are
read as data; bcu implements the operators that they name. torch is imported only when tensors are read or
written.
"""

from __future__ import annotations

from bcu_cli.checkpoints.exported.exported_file import Operation, Program, Value, load_program
from bcu_cli.checkpoints.onnx.onnx_file import Graph, Node, load_graph
from bcu_cli.checkpoints.torchscript.operators import forbidden_operators, is_pure
from bcu_cli.checkpoints.torchscript.script_code import ScriptCode
from bcu_cli.checkpoints.torchscript.script_file import Script, ScriptObject, open_script

from .checkpoint import Checkpoint, Description, Finding, Format, Omission, Outline, Placeholder
from .reading import WHOLE_BYTES, inspect_only, outline, read
from .rules import RULES, Rule
from .safetensors_file import Header, TensorInfo, count_not_finite, read_header
from .sniff import sniff
from .suffixes import MODEL_SUFFIXES, check_suffix
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
    "Omission",
    "Operation",
    "Outline",
    "Placeholder",
    "Program",
    "Rule",
    "Script",
    "ScriptCode",
    "ScriptObject",
    "TensorInfo",
    "Value",
    "atomic_write",
    "check_suffix",
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
