"""Damages the state of an interrupted run at random, and goes on from it. Writes one JSON file.

    python examples/benchmarks/states.py [--damages 10000] [--out examples/results/states.json]

A small training is stopped and its state kept. Each time some of its bytes are changed: a flipped bit, a hole
of zeros, a cut, or random bytes. A part may also be left out, inserted, moved, doubled or reversed. What
``--resume`` does with it is one of three. It is refused, in one line with a hint. It is the state as it was,
and the run ends with the same bytes as one that was never stopped. Anything else is a fault.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bcu_cli import __version__
from bcu_cli.checkpoints.resume import StateFile, path_of
from bcu_cli.errors import BcuError
from bcu_cli.runs import resuming
from bcu_cli.training.devices import choose
from bcu_cli.training.loop import Interrupted, Stage, Training
from bcu_cli.training.options import TrainingOptions

if TYPE_CHECKING:
    from collections.abc import Callable

STEPS, STOP_AFTER = 4, 2
RUN = "this run"


def stage() -> Stage:
    """A training of a few weights on a few images, the same each time."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 2))
    images = torch.randint(0, 256, (16, 3, 6, 6), dtype=torch.uint8)
    labels = torch.arange(16) % 2

    def objective(views: Tensor, index: Tensor, progress: float) -> Tensor:  # noqa: ARG001
        return F.cross_entropy(network(views), labels[index])

    options = TrainingOptions(epochs=STEPS, batch_size=16, ema=0.9)
    training = Training(network, images, objective, options, device=choose("cpu", "fp32"), seed=0)
    return Stage(title="training", training=training)


def stopped() -> Stage:
    """One that was stopped between two steps."""
    half = stage()

    def stop() -> None:
        if half.training.done == STOP_AFTER:
            raise Interrupted

    try:
        half.training.run(on_step=stop)
    except Interrupted:
        return half
    raise AssertionError


def weights(of: Stage) -> bytes:
    """The network's tensors as bytes."""
    return b"".join(each.numpy().tobytes() for each in of.training.model.state_dict().values())


def turn_a_bit(whole: bytes, chance: random.Random) -> bytes:
    """One bit is the other one."""
    at = chance.randrange(len(whole))
    return whole[:at] + bytes([whole[at] ^ (1 << chance.randrange(8))]) + whole[at + 1 :]


def hole(whole: bytes, chance: random.Random) -> bytes:
    """A part is zeros, as a file system may leave it."""
    at, end = _part(whole, chance)
    return whole[:at] + bytes(end - at) + whole[end:]


def cut(whole: bytes, chance: random.Random) -> bytes:
    """The end is missing."""
    return whole[: chance.randrange(len(whole))]


def leave_out(whole: bytes, chance: random.Random) -> bytes:
    """A part is missing."""
    at, end = _part(whole, chance)
    return whole[:at] + whole[end:]


def put_in(whole: bytes, chance: random.Random) -> bytes:
    """Random bytes stand between others, or behind the end."""
    at = chance.randrange(len(whole) + 1)
    return whole[:at] + chance.randbytes(chance.randint(1, 512)) + whole[at:]


def noise(whole: bytes, chance: random.Random) -> bytes:
    """A part is random bytes."""
    at, end = _part(whole, chance)
    return whole[:at] + chance.randbytes(end - at) + whole[end:]


def move(whole: bytes, chance: random.Random) -> bytes:
    """A part stands somewhere else."""
    at, end = _part(whole, chance)
    rest = whole[:at] + whole[end:]
    there = chance.randrange(len(rest) + 1)
    return rest[:there] + whole[at:end] + rest[there:]


def double(whole: bytes, chance: random.Random) -> bytes:
    """A part stands there twice."""
    at, end = _part(whole, chance)
    return whole[:end] + whole[at:]


def turn_round(whole: bytes, chance: random.Random) -> bytes:
    """A part stands there backwards."""
    at, end = _part(whole, chance)
    return whole[:at] + whole[at:end][::-1] + whole[end:]


def _part(whole: bytes, chance: random.Random) -> tuple[int, int]:
    at = chance.randrange(len(whole))
    return at, min(len(whole), at + chance.choice((1, 8, 64, 512, 4096)))


DAMAGES: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    *(turn_a_bit, hole, cut, leave_out, put_in),
    *(noise, move, double, turn_round),
)


def go_on(output: Path) -> Stage:
    """What ``--resume`` does."""
    (done,) = resuming.train([stage()], StateFile(output, RUN), resume=True)
    return done


def study(output: Path, damages: int, seed: int) -> tuple[dict[str, Counter[str]], list[str]]:
    """Counts by kind of damage, and what was neither refused nor harmless."""
    expected = stage()
    expected.training.run()
    path, chance = path_of(output), random.Random(seed)
    StateFile(output, RUN).save(resuming._state([stopped()]))
    whole = path.read_bytes()
    counts: dict[str, Counter[str]] = {damage.__name__: Counter() for damage in DAMAGES}
    faults = []
    for number in range(damages):
        damage = DAMAGES[number % len(DAMAGES)]
        content = damage(whole, chance)
        path.write_bytes(content)
        try:
            same = weights(go_on(output)) == weights(expected)
            what = "harmless, the bytes are as they were" if same and content == whole else "fault"
        except BcuError as error:
            what = "refused" if error.hint and "\n" not in error.message else "fault"
            if what == "refused":
                counts[damage.__name__][f"as: {error.message.replace(str(path), 'STATE')}"] += 1
        except Exception as error:  # each kind of it is what is looked for
            what = "fault"
            faults.append(f"{damage.__name__}: {type(error).__name__}: {error}")
        counts[damage.__name__][what] += 1
    return counts, faults


def main() -> None:
    """Damage, go on, and write what was counted."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--damages", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="bcu-states-") as name:
        counts, faults = study(Path(name, "out.safetensors"), given.damages, given.seed)
    total = sum(counts.values(), Counter[str]())
    document = {
        "made": {
            "bcu": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "seconds": round(time.monotonic() - started),
            "seed": given.seed,
        },
        "damages": given.damages,
        "refused": total["refused"],
        "harmless": total["harmless, the bytes are as they were"],
        "faults": total["fault"],
        "kinds": {name: dict(sorted(of.items())) for name, of in counts.items()},
        "what_went_wrong": faults[:20],
    }
    text = json.dumps(document, indent=2) + "\n"
    if given.out:
        given.out.write_text(text)
    print(text, end="")


if __name__ == "__main__":
    main()
