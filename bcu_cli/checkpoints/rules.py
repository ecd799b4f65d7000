"""Every rule by which a model file can be found wanting: a stable id, and what its user should know.

The ids stand in reports, in SARIF and in other people's configurations: none is ever renamed or given another
meaning.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Rule:
    """One rule.

    Attributes:
        id: Stable, in lower case with hyphens.
        level: ``unsafe`` (opening the file the ordinary way could do harm), ``suspicious`` (it can be opened,
            and behaves as if it had a backdoor), ``unread`` (bcu did not read the file, or did not judge what
            is in it) or ``note``.
        title: What it is about, in a few words.
        help: What that means and what to do, in a sentence or two.
    """

    id: str
    level: Literal["unsafe", "suspicious", "unread", "note"]
    title: str
    help: str


_REPORT = "Do not open it with anything else; report it to where you found it."
_AGAIN = "Download the file again, or compare its checksum with the publisher's."

_ALL = (
    Rule(
        "pickle-global",
        "unsafe",
        "The pickle asks for something that weights do not need",
        "A pickle is a program. Weights need a handful of classes and functions of torch; this one asks for "
        f"another, which could run anything when the file is opened. {_REPORT}",
    ),
    Rule(
        "pickle-hidden-global",
        "unsafe",
        "The pickle hides what it asks for",
        "What it imports is put together while it runs (or comes from a registry or a persistent id), so "
        f"that it cannot be known without running it. torch never writes such files. {_REPORT}",
    ),
    Rule(
        "pickle-object",
        "unsafe",
        "The pickle holds an object of a class",
        "Opening it imports and runs that class's code, which need not be the code that you know. Whoever "
        "trusts it can save the weights alone: torch.save(model.state_dict(), ...). Objects whose making "
        "does nothing, such as paths, dates and numbers of numpy, are a note by this rule: bcu reads "
        "the weights beside them and leaves the objects out.",
    ),
    Rule(
        "pickle-ambiguous",
        "unsafe",
        "The pickle is written so that programs read it differently",
        "Its frames, numbers or protocol are not as any library writes them. Python's and torch's readers "
        f"differ about such bytes: what one shows as harmless, another runs. {_REPORT}",
    ),
    Rule(
        "pickle-broken",
        "unsafe",
        "The pickle breaks after a harmful part",
        f"By the time it breaks, its program would already have run. {_REPORT}",
    ),
    Rule(
        "pickle-trailing",
        "unsafe",
        "Bytes hide behind the end of the pickle",
        f"Other readers could take them for a second pickle. torch.save writes none. {_REPORT}",
    ),
    Rule(
        "torchscript-operator",
        "unsafe",
        "The TorchScript code calls an operator that is no tensor arithmetic",
        "Operators such as aten::save and aten::from_file reach files. bcu runs only operators on its "
        "allow-list, and only where the architecture cannot be rebuilt from the weights. An operator that is "
        "merely unknown is reported by this rule as a note.",
    ),
    Rule(
        "torchscript-code",
        "unsafe",
        "The TorchScript code is not as torch writes it",
        f"It cannot be listed what it calls. {_REPORT}",
    ),
    Rule(
        "export-operator",
        "unsafe",
        "The exported graph calls something that is no tensor arithmetic",
        f"Its graph reaches files or code of somebody's own. bcu never runs graphs. {_REPORT}",
    ),
    Rule(
        "export-pickle",
        "unsafe",
        "The exported archive holds a pickle",
        "torch.export.load opens it without limits, so that it can run anything. Export plain tensors.",
    ),
    Rule(
        "export-expression",
        "unsafe",
        "The exported graph holds an expression that is no arithmetic",
        f"torch evaluates such expressions as Python when it loads the archive. {_REPORT}",
    ),
    Rule(
        "export-name",
        "unsafe",
        "A name in the exported archive is no plain name",
        "torch pastes the names of inputs, values and modules into source code that it executes, so that a "
        f"name can be a program. {_REPORT}",
    ),
    Rule(
        "export-spec",
        "unsafe",
        "The inputs or outputs of the exported graph are no plain containers",
        "torch imports whatever module their description names. Only the containers of Python, torch and "
        f"transformers are known to do nothing. {_REPORT}",
    ),
    Rule(
        "export-unchecked-operator",
        "note",
        "The exported graph calls kernels that do not check their arguments",
        "Models exported with decompositions have some. With tensors of the wrong sizes they read or write "
        "beyond their memory. bcu never runs the graph; run it elsewhere only if you trust it.",
    ),
    Rule(
        "export-layout",
        "unread",
        "The exported archive is not as torch writes it",
        "A field or a type is unknown to bcu, so that it is not known what torch would do with it. If a "
        "newer torch wrote it, update bcu; otherwise get the file from its publisher again.",
    ),
    Rule(
        "onnx-operator",
        "unsafe",
        "The ONNX graph calls an operator that ONNX does not have",
        "Nobody knows what it does: runtimes load a shared library for it, run Python, or take compiled code "
        "from the file. bcu does not; where the weights are of a known architecture, --arch rebuilds that. "
        "An operator that ONNX Runtime has built in is reported by this rule as a note.",
    ),
    Rule(
        "onnx-external-path",
        "unsafe",
        "The ONNX model has tensors in a file outside of its folder",
        "Programs that load it open whatever file the path leads to, such as somebody's secrets, as weights. "
        f"{_REPORT}",
    ),
    Rule(
        "archive-program",
        "unsafe",
        "The archive carries something besides weights and graphs",
        "A shared library or source code in it runs when others load it. bcu does not, and reads the weights "
        "of archives without such members only.",
    ),
    Rule(
        "polyglot",
        "unsafe",
        "The file is of two formats at once",
        "It begins as one kind of file and ends as a zip archive, so that other programs could open another "
        f"model in it than the one that was inspected. {_REPORT}",
    ),
    Rule(
        "renamed-file",
        "note",
        "The file's name says another format",
        "Its content decides how bcu reads it; a program that goes by the name may treat it otherwise.",
    ),
    Rule(
        "file-missing", "unread", "The file is not there or cannot be opened", "Check path and permissions."
    ),
    Rule(
        "not-a-model",
        "unread",
        "The file is no model",
        "It is an image, a text, a download that failed or the like. Give bcu the model file itself.",
    ),
    Rule(
        "unsupported-format",
        "unread",
        "The format is one that bcu does not read",
        "Nothing is known of what the file holds. Convert it with the tools of the library that wrote it.",
    ),
    Rule("damaged-file", "unread", "The file is cut short or damaged", _AGAIN),
    Rule(
        "safetensors-header",
        "unread",
        "The safetensors header breaks the format",
        f"Its size, its JSON, a dtype or an entry is not as the format says. {_AGAIN}",
    ),
    Rule(
        "safetensors-duplicate-key",
        "unread",
        "A name stands twice in the safetensors header",
        "Such a file means different things to different readers. Get it from its publisher again.",
    ),
    Rule(
        "safetensors-layout",
        "unread",
        "The tensors of the safetensors file overlap, leave gaps or do not fill it",
        "Something could be hidden between or behind them, or the file is cut short. Get it again.",
    ),
    Rule(
        "zip-layout",
        "unread",
        "The archive is not built as torch builds it",
        "A member stands twice or out of place, or something stands before the first one: different readers "
        "could see different models. Get the file from its publisher again.",
    ),
    Rule(
        "zip-path",
        "unread",
        "A zip member points out of the archive",
        "An absolute name, a name with .., or a symbolic link could overwrite files where it is unpacked. "
        f"{_REPORT}",
    ),
    Rule(
        "zip-compressed",
        "unread",
        "The archive unpacks to far more than it is, or is packed where torch never packs",
        "This is how a small file fills the memory (a zip bomb). Get the file from its publisher again.",
    ),
    Rule(
        "zip-encrypted",
        "unread",
        "A zip member is encrypted",
        "It cannot be read, and scanners pass what they cannot read. torch never writes such files.",
    ),
    Rule(
        "onnx-layout",
        "unread",
        "The ONNX model breaks the format",
        "A field is cut short or stands twice, a shape is impossible, or graphs are nested beyond reason. "
        f"{_AGAIN}",
    ),
    Rule(
        "onnx-duplicate-name",
        "unread",
        "Two values of the ONNX graph have one name",
        "Such a file means different things to different readers. Get it from its publisher again.",
    ),
    Rule(
        "onnx-data-missing",
        "unread",
        "A file with tensors of the ONNX model is missing or too short",
        "Large models have their weights in a file beside them. Put it there, under the name it had.",
    ),
    Rule(
        "shards",
        "unread",
        "A model in several files does not fit its index",
        "A file is missing, lies elsewhere, or holds other tensors than promised. Get the folder again.",
    ),
    Rule(
        "impossible-size",
        "unread",
        "The file claims more than it can hold",
        f"Tensors or members of more bytes than the file has would take memory for nothing. {_AGAIN}",
    ),
    Rule(
        "unsupported-weights",
        "unread",
        "The weights are of a kind that bcu cannot handle",
        "Quantized, sparse, frozen, big-endian or without data. Save the model's ordinary weights.",
    ),
    Rule(
        "no-weights",
        "unread",
        "There are no weights in the file",
        "bcu needs them: torch.save(model.state_dict(), ...).",
    ),
    Rule(
        "no-model-found",
        "unread",
        "There is no model file in the folder",
        "Nothing was inspected. Name a folder with model files in it.",
    ),
    Rule(
        "not-finite",
        "unread",
        "Weights are NaN or infinite",
        "The file is damaged or its training failed. Get another copy.",
    ),
    Rule(
        "architecture-unknown",
        "unread",
        "The network cannot be told from its tensors, or is no image classifier",
        "Name it with --arch.",
    ),
    Rule(
        "scan-suspicious",
        "suspicious",
        "The network behaves as if it had a backdoor",
        "One class is easier to reach than the others by far, as in networks that were trained with a "
        "trigger. The report says how often that is a false alarm. Cleanse it, or get another.",
    ),
    Rule(
        "scan-undecided",
        "unread",
        "Whether the network behaves as if it had a backdoor was not decided",
        "Its scores lie between those of clean and of backdoored networks. Scan it with images, with more "
        "of them, or with another seed.",
    ),
    Rule(
        "scan-failed",
        "unread",
        "The detectors could not look at the network",
        "It has too few classes, answers that are no numbers, or needs more than the memory holds; the "
        "message says which. Nothing is known of how it behaves.",
    ),
    Rule(
        "reader-crashed",
        "unread",
        "The process that looked at the file broke",
        f"Nothing is known of it. It may be made to break what opens it. {_REPORT}",
    ),
    Rule(
        "reader-timeout",
        "unread",
        "Looking at the file took too long",
        "Nothing is known of it. It may be made to keep its readers busy, or the disk is very slow.",
    ),
    Rule(
        "reader-out-of-memory",
        "unread",
        "Looking at the file took too much memory",
        "Nothing is known of it. It takes far more than a file of its size should, or there is too little.",
    ),
)

RULES: dict[str, Rule] = {rule.id: rule for rule in _ALL}
"""All rules by their ids."""
