"""Is every classifier of timm and torchvision recognised by its file alone? Prints one JSON document.

    python examples/benchmarks/identification.py [--only "timm:vit_*"] [--limit 50] [--log FILE]

Each is built without memory for its weights where that works. It is written as a safetensors file without
metadata under a neutral name: a header with names, shapes and types, and a hole for the weights. bcu.models'
``identify`` then answers from the outline, as it does for ``bcu inspect``. It never looks at values, so zeros
stand for random weights here. ``bcu cleanse`` goes on to decide between rivals by BatchNorm statistics, which
random weights do not have. The verdicts:

- right: one architecture, presented as certain, that is the true one or one that bcu holds equal to it
- open: several rivals, the true one or one held equal to it among them
- lost: several rivals without the true one
- asked for: an error that asks for ``--arch``
- wrong: one architecture, presented as certain, that is another one
- no classifier: nothing in the network depends on the number of classes, or it cannot be built

Whether networks held equal are equal is tried where the answer names another network than the true one. Both
get the same weights, re-initialised so that no layer is switched off, and the same two images. Small rivals
are tried the same way and ought to differ. The order is drawn, so that a part of the run is a fair sample;
with --log it goes on where it stopped.

The first networks of that order are asked for again with tensors called t0, t1, … in the order of their
registration. There, "right" and "open" also need each tensor at its place.
"""

from __future__ import annotations

import argparse
import collections
import json
import math
import random
import sys
import tempfile
import time
import warnings
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

import timm
import torch
import torchvision
from torch import Tensor, nn

from bcu_cli import __version__
from bcu_cli.checkpoints import Description, Format, outline
from bcu_cli.errors import ArchitectureError
from bcu_cli.models import identify
from bcu_cli.models.architectures.identification import find
from bcu_cli.models.architectures.index import Shapes, counted, load_index

if TYPE_CHECKING:
    from collections.abc import Sequence

CLASSES = 1000
SMALL, MIDDLING = 30_000_000, 150_000_000
"""Rivals with fewer parameters than the one, and equals with fewer than the other, are run in pairs."""
SIZES = (64, 96, 128, 160, 192, 224, 240, 256, 288, 320, 384)
SAME, DISTINCT = 1e-7, 1e-5
"""Most difference of equal outputs, and least of two images, as shares of the largest output (float64)."""
RENAMED = " renamed"
"""Follows the name of a network whose tensors are called t0, t1, …"""
DTYPES = {torch.float32: "F32", torch.int64: "I64", torch.int32: "I32", torch.bool: "BOOL"}


def make(name: str) -> nn.Module:
    """Build the network of a name with its library, on the default device."""
    library, _, plain = name.partition(":")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if library == "timm":
            network: nn.Module = timm.create_model(plain, pretrained=False, num_classes=CLASSES)
        else:
            network = torchvision.models.get_model(plain, weights=None, num_classes=CLASSES)
    return network


def make_hollow(name: str) -> nn.Module:
    """The network without memory for its weights, or with it where its constructor computes with tensors."""
    try:
        with torch.device("meta"):
            return make(name)
    except Exception:  # whatever a constructor raises on a device that cannot compute
        return make(name)


def write_hollow(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write a safetensors file whose data are a hole."""
    header, stop = {}, 0
    for name, tensor in tensors.items():
        start, stop = stop, stop + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, stop],
        }
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + stop)


def ask(name: str, folder: Path, *, renamed: bool = False) -> dict[str, Any]:
    """Identify one network with bcu, and judge the answer.

    Args:
        name: Full name of the network.
        folder: A folder for its file.
        renamed: Whether the file calls its tensors t0, t1, … in place of their names.
    """
    try:
        tensors = make_hollow(name).state_dict()
    except Exception as error:  # a constructor's own
        return {"verdict": "no classifier", "why": f"{type(error).__name__}: {error}"}
    if not any(CLASSES in tensor.shape for tensor in tensors.values()):
        return {"verdict": "no classifier", "why": "no tensor depends on the number of classes"}
    true_names = tuple(tensors)
    if renamed:
        tensors = {f"t{i}": tensor for i, tensor in enumerate(tensors.values())}
    path = folder / "model.safetensors"
    write_hollow(path, tensors)
    file = outline(
        Description(
            path=path,
            format=Format.SAFETENSORS,
            kind="safetensors",
            sha256=None,
            size=path.stat().st_size,
        )
    )
    parameters = sum(math.prod(shape) for shape in file.shapes.values())
    if renamed:
        return {**ask_renamed(name, file.shapes, true_names), "parameters": parameters}
    try:
        found = identify(file)
    except ArchitectureError as error:
        return {"verdict": "asked for", "why": error.message, "parameters": parameters}
    named = {found.name, *found.rivals}
    true = {name, found.name} if name in found.alternatives else {name}
    if found.rivals and not named & true:  # the true one may be held equal to a rival
        true |= set(identify(file, arch=name).alternatives)
    verdict = ("open" if named & true else "lost") if found.rivals else "right" if named & true else "wrong"
    return {
        "verdict": verdict,
        "first": found.name in true,
        "named": found.name,
        "rivals": found.rivals,
        "parameters": parameters,
    }


def ask_renamed(name: str, shapes: Shapes, true_names: Sequence[str]) -> dict[str, Any]:
    """What bcu answers for the tensors of a network under other names, and the verdict on it.

    An answer is the true one if it names the network, or one held equal to it, and pairs each tensor with the
    layer that it comes from.
    """
    try:
        groups = find(shapes, ()).groups
    except ArchitectureError as error:
        return {"verdict": "asked for", "why": error.message}
    pairing = {given: own for given, own in zip(shapes, true_names, strict=True) if counted(own)}
    fits = [
        any(one.name == name and pairing.items() <= one.renamed.items() for one in group) for group in groups
    ]
    verdict = ("open" if any(fits) else "lost") if len(groups) > 1 else "right" if fits[0] else "wrong"
    return {
        "verdict": verdict,
        "first": fits[0],
        "named": groups[0][0].name,
        "rivals": list(dict.fromkeys(group[0].name for group in groups[1:])),
    }


def redraw(network: nn.Module) -> None:
    """Weights and statistics that leave no layer without effect, as zeros from the constructor would."""
    statistics = {k: v for k, v in network.named_buffers() if k.endswith(("running_mean", "running_var"))}
    for name, tensor in (dict(network.named_parameters()) | statistics).items():
        if tensor.dim() >= 2:
            tensor.normal_(std=max(1, math.prod(tensor.shape[1:])) ** -0.5)
        elif name.endswith(("bias", "running_mean")):
            tensor.normal_(std=0.5)
        else:
            tensor.uniform_(0.5, 1.5)


@torch.no_grad()
def compare(one_name: str, other_name: str) -> dict[str, Any]:
    """Measure the difference of the outputs of two networks with the same weights on the same images."""
    torch.manual_seed(0)
    one, other = make(one_name).double().eval(), make(other_name).double().eval()
    redraw(one)
    unmatched = other.load_state_dict(one.state_dict(), strict=False)
    strange = [
        k for keys in unmatched for k in keys if not k.endswith("num_batches_tracked")
    ]  # which bcu passes over too, as evaluation does
    if strange:
        return {"pair": [one_name, other_name], "why": f"not the same tensors: {strange[0]}"}
    why = ""
    for size in SIZES:
        images = torch.randn(2, 3, size, size, dtype=torch.float64)
        try:
            first, second = one(images), other(images)
        except Exception as error:  # a network's own, which takes other sizes
            why = f"{type(error).__name__}: {error}"
            continue
        scale = first.abs().max()
        if not (first[0] - first[1]).abs().max() > DISTINCT * scale:
            return {"pair": [one_name, other_name], "why": "the output tells no two images apart"}
        apart = float((first - second).abs().max() / scale)
        return {"pair": [one_name, other_name], "size": size, "apart": apart, "same": apart <= SAME}
    return {"pair": [one_name, other_name], "why": f"no common input size: {why}"}


def try_pairs(pairs: list[tuple[str, str]], wanted: int, what: str) -> dict[str, Any]:
    """The comparison of a sample of pairs, drawn with a fixed seed."""
    sample = random.Random(0).sample(sorted(pairs), min(wanted, len(pairs)))
    tried = []
    for i, (one, other) in enumerate(sample):
        tried.append(compare(one, other))
        talk(f"{what} {i + 1} of {len(sample)}: {tried[-1]}")
    compared = [pair for pair in tried if "same" in pair]
    return {
        "pairs": len(pairs),
        "drawn": len(sample),
        "compared": len(compared),
        "same": sum(pair["same"] for pair in compared),
        "tried": tried,
    }


def summary(said: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Counts of the verdicts, and the answers that are not right."""
    return {
        "networks": len(said),
        "counts": collections.Counter(answer["verdict"] for answer in said),
        "first_named_is_right": sum(bool(answer.get("first")) for answer in said),
        "seconds": round(sum(answer["seconds"] for answer in said), 1),
        "not_right": [answer for answer in said if answer["verdict"] != "right"],
    }


def talk(text: str) -> None:
    """Print a line on stderr."""
    print(text, file=sys.stderr, flush=True)


def all_names() -> list[str]:
    """List every name of both libraries, shuffled with a fixed seed."""
    names = [f"timm:{name}" for name in timm.list_models()]
    names += [f"torchvision:{name}" for name in torchvision.models.list_models(module=torchvision.models)]
    random.Random(0).shuffle(names)
    return names


def main() -> None:
    """Ask for every network, then run the sample of pairs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", default="*", help="full names that fit this pattern")
    parser.add_argument("--limit", type=int, help="so many at most")
    parser.add_argument("--log", type=Path, help="a file of answers so far, to go on from")
    parser.add_argument(
        "--pairs", type=int, default=40, help="how many pairs to run, of equals and of rivals"
    )
    parser.add_argument(
        "--renamed", type=int, default=250, help="how many networks to ask for under other tensor names too"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    names = [name for name in all_names() if fnmatch(name, options.only)][: options.limit]
    answers: dict[str, dict[str, Any]] = {}
    if options.log is not None and options.log.is_file():
        for line in options.log.read_text().splitlines():
            answer = json.loads(line)
            answers[answer["name"]] = answer
    jobs = [(name, False) for name in names] + [(name, True) for name in names[: options.renamed]]
    with tempfile.TemporaryDirectory() as folder:
        for i, (name, renamed) in enumerate(jobs):
            key = name + RENAMED * renamed
            if key in answers:
                continue
            begun = time.monotonic()
            answers[key] = {"name": key, **ask(name, Path(folder), renamed=renamed)}
            answers[key]["seconds"] = round(time.monotonic() - begun, 3)
            if options.log is not None:
                with options.log.open("a") as log:
                    log.write(json.dumps(answers[key]) + "\n")
            if answers[key]["verdict"] not in ("right", "open"):
                talk(f"{key}: {answers[key]}")
            if i % 50 == 0:
                talk(f"{i} of {len(jobs)}")
    said = [answers[name] for name in names]
    equals = [
        (answer["name"], answer["named"])
        for answer in said
        if answer.get("first") and answer["name"] != answer["named"] and answer["parameters"] < MIDDLING
    ]
    small = [answer for answer in said if answer["verdict"] == "open" and answer["parameters"] < SMALL]
    rivals = [(answer["named"], rival) for answer in small for rival in answer["rivals"]]
    result = {
        "versions": {
            "bcu": __version__,
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "timm": timm.__version__,
            "index": dict(load_index().versions),
        },
        **summary(said),
        "renamed": summary([answers[name + RENAMED] for name in names[: options.renamed]]),
        "equals": try_pairs(sorted(set(equals)), options.pairs, "equals"),
        "rivals": try_pairs(sorted(set(rivals)), options.pairs, "rivals"),
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
