"""The rules that model files are checked against, each with a stable id and an explanation.

The ids appear in reports, in SARIF and in users' configurations, so no id is ever renamed or reused.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

RESAVE = "if you trust it, open it and run torch.save(model.state_dict(), ...); bcu reads the result"
"""What to do with a whole pickled network, whose rule is ``pickle-object``."""


@dataclass(frozen=True)
class Rule:
    """One rule.

    Attributes:
        id: Stable id, in lower case with hyphens.
        title: What violates the rule, in a few words.
        help: What the violation means and what to do, in a few sentences.
        level: ``unsafe`` (an ordinary loader could do harm), ``suspicious`` (the network behaves as if it had
            a backdoor), ``unread`` (bcu did not read or judge the file) or ``note``.
    """

    id: str
    title: str
    help: str
    level: Literal["unsafe", "suspicious", "unread", "note"]


_REPORT = "Do not open it with anything else; report it to where you found it."
_AGAIN = "Download the file again, or compare its checksum with the publisher's."

_unsafe, _suspicious, _unread, _note = (
    partial(Rule, level=level) for level in ("unsafe", "suspicious", "unread", "note")
)

_ALL = (
    _unsafe(
        "pickle-global",
        "The pickle imports something that weights do not need",
        "A pickle is a program. Weights need only a few classes and functions of torch. This pickle imports "
        f"another one, which could run anything when the file is opened. {_REPORT}",
    ),
    _unsafe(
        "pickle-hidden-global",
        "The pickle hides what it imports",
        "It computes the name while it runs, or takes it from a registry or a persistent id. So nobody knows "
        f"the name without running the pickle. torch never writes such files. {_REPORT}",
    ),
    _unsafe(
        "pickle-object",
        "The pickle holds an object of a class",
        "Opening the file imports and runs the code of that class. If you trust the file, open it and save "
        "only the weights: torch.save(model.state_dict(), ...). Harmless objects, such as paths, dates and "
        "NumPy numbers, are only a note under this rule: bcu reads the weights and omits the objects.",
    ),
    _unsafe(
        "pickle-ambiguous",
        "The pickle is written so that programs read it differently",
        "No library writes frames, numbers or a protocol like this. Python's and torch's readers disagree "
        f"about such bytes: one sees something harmless, another runs code. {_REPORT}",
    ),
    _unsafe(
        "pickle-broken",
        "The pickle breaks after a harmful part",
        f"A loader would run the harmful part before it reached the broken one. {_REPORT}",
    ),
    _unsafe(
        "pickle-trailing",
        "There are hidden bytes after the end of the pickle",
        f"Other readers could take them for a second pickle. torch.save never writes any. {_REPORT}",
    ),
    _unsafe(
        "torchscript-operator",
        "The TorchScript code calls an operator that is no tensor arithmetic",
        "Operators such as aten::save and aten::from_file reach files. bcu runs only operators on its "
        "allow-list, and only if it cannot rebuild the architecture from the weights. An operator that is "
        "merely unknown is a note under this rule.",
    ),
    _unsafe(
        "torchscript-code",
        "The TorchScript code is not as torch writes it",
        f"So bcu cannot list the operators that the code calls. {_REPORT}",
    ),
    _unsafe(
        "export-operator",
        "The exported graph calls something that is no tensor arithmetic",
        f"The graph reaches files or custom code. bcu never runs exported graphs. {_REPORT}",
    ),
    _unsafe(
        "export-pickle",
        "The exported archive holds a pickle",
        "torch.export.load opens it without restrictions, so it can run anything. Export plain tensors.",
    ),
    _unsafe(
        "export-expression",
        "The exported graph holds an expression that is no arithmetic",
        f"torch evaluates such expressions as Python when it loads the archive. {_REPORT}",
    ),
    _unsafe(
        "export-name",
        "A name in the exported archive is no plain name",
        "torch pastes the names of inputs, values and modules into source code that it executes, so a name "
        f"can be a program. {_REPORT}",
    ),
    _unsafe(
        "export-spec",
        "The inputs or outputs of the exported graph are no plain containers",
        "torch imports any module that their description names. Only the containers of Python, torch and "
        f"transformers are known to be harmless. {_REPORT}",
    ),
    _note(
        "export-unchecked-operator",
        "The exported graph calls kernels that do not check their arguments",
        "Models exported with decompositions call such kernels. With tensors of the wrong size these read or "
        "write outside their memory. bcu never runs the graph; run it elsewhere only if you trust it.",
    ),
    _unread(
        "export-layout",
        "The exported archive is not as torch writes it",
        "bcu does not know one of its fields or types, or what torch would do with it. If a newer torch "
        "wrote the file, update bcu; otherwise get it from its publisher again.",
    ),
    _unsafe(
        "onnx-operator",
        "The ONNX graph calls an operator that ONNX does not have",
        "Its effects are unknown: runtimes load a shared library for it, run Python, or take compiled code "
        "from the file. bcu does none of that. If the architecture is known, name it with --arch. An "
        "operator that is built into ONNX Runtime is a note under this rule.",
    ),
    _unsafe(
        "onnx-external-path",
        "The ONNX model has tensors in a file outside its folder",
        "Programs that load the model read that file as weights, and it may be a file with your secrets. "
        f"{_REPORT}",
    ),
    _unsafe(
        "archive-program",
        "The archive carries something besides weights and graphs",
        "Other programs may run a shared library or source code in the archive when they load it. bcu reads "
        "weights only from archives without such members.",
    ),
    _unsafe(
        "polyglot",
        "The file has two formats at once",
        "It begins as one kind of file and ends as a zip archive. So other programs could open another model "
        f"in it than the one that was inspected. {_REPORT}",
    ),
    _note(
        "renamed-file",
        "The file's suffix belongs to another format",
        "bcu goes by the content; a program that goes by the name may treat the file differently.",
    ),
    _unread("file-missing", "The file is not there or cannot be opened", "Check path and permissions."),
    _unread(
        "not-a-model",
        "The file is no model",
        "It may be an image, a text or a failed download. Give bcu the model file itself.",
    ),
    _unread(
        "unsupported-format",
        "The format is one that bcu does not read",
        "bcu did not inspect the file. Convert it with the tools of the library that wrote it.",
    ),
    _unread("damaged-file", "The file is cut short or damaged", _AGAIN),
    _unread(
        "safetensors-header",
        "The safetensors header violates the format",
        f"Its size, its JSON, a dtype or an entry is invalid. {_AGAIN}",
    ),
    _unread(
        "safetensors-duplicate-key",
        "The safetensors header has a duplicate name",
        "Different readers see different tensors in such a file. Get it from its publisher again.",
    ),
    _unread(
        "safetensors-layout",
        "The tensors of the safetensors file overlap, leave gaps or do not fill it",
        "Data could be hidden between or after the tensors, or the file is cut short. Download it again.",
    ),
    _unread(
        "zip-layout",
        "The archive does not have torch's layout",
        "A member is duplicated or misplaced, or there are bytes before the first one. So different readers "
        "could see different models. Get the file from its publisher again.",
    ),
    _unread(
        "zip-path",
        "A zip member points out of the archive",
        "An absolute name, a name with .., or a symbolic link could overwrite files where it is unpacked. "
        f"{_REPORT}",
    ),
    _unread(
        "zip-compressed",
        "The archive unpacks to far more than its size, or is compressed where torch never compresses",
        "A zip bomb fills the memory like this. Get the file from its publisher again.",
    ),
    _unread(
        "zip-encrypted",
        "A zip member is encrypted",
        "bcu cannot read it, and scanners often skip such members. torch never writes such files.",
    ),
    _unread(
        "onnx-layout",
        "The ONNX model violates the format",
        "A field is cut short or duplicated, a shape is impossible, or graphs are nested too deeply. "
        f"{_AGAIN}",
    ),
    _unread(
        "onnx-duplicate-name",
        "Two values of the ONNX graph have one name",
        "Different readers see different networks in such a file. Get it from its publisher again.",
    ),
    _unread(
        "onnx-data-missing",
        "A file with tensors of the ONNX model is missing or too short",
        "Large models keep their weights in a second file. Put it beside the model, under its original name.",
    ),
    _unread(
        "shards",
        "A model in several files does not fit its index",
        "A file is missing, is in another folder, or holds other tensors than the index lists. Download the "
        "folder again.",
    ),
    _unread(
        "impossible-size",
        "The file claims more bytes than it has",
        f"Its tensors or members would allocate more memory than there are bytes to fill it. {_AGAIN}",
    ),
    _unread(
        "unsupported-weights",
        "The weights are of a kind that bcu cannot handle",
        "They are quantized, sparse, frozen, big-endian or without data. Save the model's ordinary weights.",
    ),
    _unread(
        "no-weights",
        "There are no weights in the file",
        "Save them with torch.save(model.state_dict(), ...).",
    ),
    _unread(
        "no-model-found",
        "There is no model file in the folder",
        "Nothing was inspected. Name a folder with model files in it.",
    ),
    _unread(
        "not-finite",
        "Weights are NaN or infinite",
        "The file is damaged or its training failed. Get another copy.",
    ),
    _note(
        "architecture-unknown",
        "The architecture cannot be identified from the tensors, or the network is no image classifier",
        "This says nothing of the file's safety. To scan or cleanse it, name the architecture with --arch.",
    ),
    _note(
        "architecture-own-graph",
        "The network is none of the known architectures, and runs by the code or graph in its file",
        "This says nothing of the file's safety. bcu evaluates the code or graph itself.",
    ),
    _unread(
        "graph-unread",
        "The architecture is unknown, and the code or graph in the file is none that bcu can read",
        "Name the architecture with --arch.",
    ),
    _unread(
        "architecture-mismatch",
        "The tensors do not fit the architecture that --arch names",
        "Leave --arch out to have the architecture found, or name another one.",
    ),
    _suspicious(
        "scan-suspicious",
        "The network behaves as if it had a backdoor",
        "One class is far easier to reach than all others, as in networks that were trained with a trigger. "
        "The report gives the rate of false alarms. Cleanse the model, or use another one.",
    ),
    _note(
        "scan-clean-looking",
        "The scan found no sign of a backdoor",
        "No class stands out. The report gives the rate of misses. A backdoor of a kind that the detectors "
        "do not look for can still be there.",
    ),
    _unread(
        "scan-undecided",
        "The scan could not decide whether the network has a backdoor",
        "Its scores lie between those of clean and of backdoored networks. Scan it with images, with more "
        "images, or with another seed.",
    ),
    _unread(
        "scan-failed",
        "The detectors could not scan the network",
        "It has too few classes, its outputs are NaN or infinite, or it needs too much memory; the message "
        "gives the reason. Its behaviour is unknown.",
    ),
    _unread(
        "reader-crashed",
        "The process that read the file crashed",
        f"The file was not judged. It may be designed to crash programs that open it. {_REPORT}",
    ),
    _unread(
        "reader-timeout",
        "Reading the file took too long",
        "The file was not judged. It may be designed to keep programs busy, or the disk is very slow.",
    ),
    _unread(
        "reader-out-of-memory",
        "Reading the file took too much memory",
        "The file was not judged. It needs far more memory than its size explains, or too little is free.",
    ),
)

RULES: dict[str, Rule] = {rule.id: rule for rule in _ALL}
"""All rules by their ids."""
