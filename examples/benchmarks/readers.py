"""Do bcu and the readers that users have see the same in one file? Damaged archives and pickles, compared.

    python examples/benchmarks/readers.py --cases 20000 --out examples/results/readers.json

Archives: bcu's members and bytes against those of torch's ``PyTorchFileReader`` and of Python's ``zipfile``.
Pickles: the globals that Python's unpickler (in C, on bytes and on a buffered file) and torch's weights-only
one ask for, against those that bcu lists. Nothing is imported or called. Each case is made from its number
alone. The cases run in a child process with a limit on its memory and time. Where another reader crashes on
what bcu refuses, the crash is counted and the next case goes on.
"""

from __future__ import annotations

import argparse
import collections
import functools
import io
import json
import pickle
import platform
import random
import resource
import signal
import struct
import subprocess
import sys
import tempfile
import warnings
import zipfile
from collections import Counter, OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import _weights_only_unpickler as weights_only

from bcu_cli.checkpoints.archive import TorchArchive
from bcu_cli.checkpoints.pickles.inspection import BrokenPickleError, inspect_pickle
from bcu_cli.checkpoints.pickles.machine import follow
from bcu_cli.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MEMORY, SECONDS = 4 * 2**30, 10


# Archives.


@functools.cache
def archives() -> list[tuple[str, bytes]]:
    """Small archives of every writer, each with the member that marks its top folder."""
    state = {"a.weight": torch.arange(12.0).reshape(3, 4), "a.bias": torch.ones(3), "empty": torch.zeros(0)}
    made = [("data.pkl", saved(state)), ("data.pkl", saved({"net": state, "step": 7, "raw": b"\x80\x81"}))]
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 1), torch.nn.ReLU())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        script, export = io.BytesIO(), io.BytesIO()
        torch.jit.save(torch.jit.script(network), script)
        torch.export.save(torch.export.export(network.eval(), (torch.rand(1, 3, 4, 4),)), export)
    made += [("data.pkl", script.getvalue()), ("archive_format", export.getvalue())]
    with zipfile.ZipFile(io.BytesIO(made[0][1])) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    plain, large, streamed = io.BytesIO(), io.BytesIO(), Unseekable()
    with (
        zipfile.ZipFile(plain, "w") as one,
        zipfile.ZipFile(large, "w") as two,
        zipfile.ZipFile(streamed, "w") as three,
    ):
        for name, data in members.items():
            one.writestr(name, data)
            three.writestr(name, data)
            with two.open(name, "w", force_zip64=True) as member:
                member.write(data)
    return made + [("data.pkl", file.getvalue()) for file in (plain, large)] + [("data.pkl", streamed.data)]


class Unseekable(io.RawIOBase):
    """A file that cannot be rewound, so that sizes stand behind the members."""

    data = b""

    def writable(self) -> bool:
        """Yes."""
        return True

    def write(self, data: Any) -> int:
        """Append."""
        self.data += bytes(data)
        return len(data)


def saved(value: Any) -> bytes:
    """What torch.save writes of a value."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def damaged_archive(number: int) -> tuple[str, bytes]:
    """Case ``number``: the marker of an archive, and its bytes with one to three things changed."""
    random_ = random.Random(number)
    marker, data = random_.choice(archives())
    tricks = [
        flip,
        flip,
        cut,
        double,
        graft,
        renamed,
        field_of_header,
        field_of_header,
        field_of_end,
        commented,
    ]
    for _ in range(random_.choice([0, 1, 1, 1, 1, 2, 2, 3])):
        data = random_.choice(tricks)(data, random_)
    return marker, data


def flip(data: bytes, random_: random.Random) -> bytes:
    """A byte changed, more often in what describes the members."""
    at = random_.choice([random_.randrange(len(data)), structure(data, random_) + random_.randrange(46)])
    at = min(at, len(data) - 1)
    return data[:at] + bytes([data[at] ^ 1 << random_.randrange(8)]) + data[at + 1 :]


def cut(data: bytes, random_: random.Random) -> bytes:
    """Bytes left out or put in, also at the very start and end."""
    at = random_.choice([0, len(data), random_.randrange(len(data)), structure(data, random_)])
    put = random_.randbytes(random_.randrange(9))
    return data[:at] + put + data[at + random_.choice([0, 0, 1, 4, len(put), 30]) :]


def double(data: bytes, random_: random.Random) -> bytes:
    """A part of one archive put into another, or over a part of it."""
    other = random_.choice([data, random_.choice(archives())[1]])
    start, end = sorted([structure(other, random_), random_.choice([len(other), structure(other, random_)])])
    at = random_.choice([0, len(data), structure(data, random_)])
    return data[:at] + other[start:end] + data[at + random_.choice([0, end - start]) :]


def graft(data: bytes, random_: random.Random) -> bytes:
    """A second archive in front, behind, or within the comment of the first."""
    other = random_.choice(archives())[1]
    if random_.random() < 0.5:
        return other + data if random_.random() < 0.5 else data + other
    return commented(data, random_, other)


def commented(data: bytes, random_: random.Random, comment: bytes | None = None) -> bytes:
    """A comment behind the last end record, with an end record of its own."""
    end = data.rfind(b"PK\x05\x06")
    if end < 0 or len(data) < end + 22:
        return data
    comment = comment or random_.choice([b"x", data[end:], data[max(0, end - 76) :], bytes(30)])
    return data[: end + 20] + struct.pack("<H", len(comment) & 0xFFFF) + comment


def renamed(data: bytes, random_: random.Random) -> bytes:
    """A name changed in one of a member's two headers, or in both."""
    names = [b"data.pkl", b"data/0", b"version", b"byteorder", b"archive/"]
    name = random_.choice(names)
    places = [at for at in range(len(data)) if data.startswith(name, at)]
    if not places:
        return data
    new = random_.choice(
        [name.upper(), name[::-1], random_.choice(names)[: len(name)].ljust(len(name), b"_")]
    )
    for at in random_.sample(places, random_.choice([1, min(2, len(places)), len(places)])):
        data = data[:at] + new + data[at + len(name) :]
    return data


def field_of_header(data: bytes, random_: random.Random) -> bytes:
    """A field of a member's header set to a value of interest."""
    at = structure(data, random_) + random_.choice(
        [6, 8, 10, 14, 16, 18, 20, 22, 24, 26, 28, 30, 32, 34, 38, 42]
    )
    value = random_.choice([0, 1, 8, 0x800, 0xFFFF, 0xFFFFFFFF, len(data), random_.randrange(len(data))])
    form = random_.choice(["<H", "<L"])
    return put(data, at, struct.pack(form, value & (0xFFFF if form == "<H" else 0xFFFFFFFF)))


def field_of_end(data: bytes, random_: random.Random) -> bytes:
    """A field of an end record or of the locator set to a value of interest."""
    signature = random_.choice([b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"])
    at = data.rfind(signature)
    if at < 0:
        return data
    value = random_.choice([0, 1, 2, at, 0xFFFF, 0xFFFFFFFF, 2**63, random_.randrange(len(data))])
    size = random_.choice([2, 4, 8])
    return put(data, at + 4 + 2 * random_.randrange(25), value.to_bytes(8, "little")[:size])


def put(data: bytes, at: int, value: bytes) -> bytes:
    """The bytes with some replaced."""
    return data[:at] + value + data[at + len(value) :] if at + len(value) <= len(data) else data


def structure(data: bytes, random_: random.Random) -> int:
    """Where one of the headers or records of an archive begins."""
    places = [at for at in range(len(data)) if data.startswith(b"PK", at)]
    return random_.choice(places or [0])


def of_bcu(path: Path, marker: str) -> dict[str, bytes] | None:
    """The members as bcu reads them; None where it refuses the archive."""
    try:
        with TorchArchive(path, marker=marker) as archive:
            return {name: archive.read(name) for name in archive.names}
    except CheckpointError:
        return None


def of_torch(path: Path) -> dict[str, bytes] | None:
    """The members as torch reads them; None where it cannot."""
    try:
        reader = torch._C.PyTorchFileReader(str(path))
        return {name: reader.get_record(name) for name in reader.get_all_records()}
    except Exception:  # it cannot always show its own errors
        return None


def of_python(path: Path) -> dict[str, bytes] | None:
    """The members as Python's zipfile reads them, without their top folder; None where it cannot."""
    try:
        with zipfile.ZipFile(path) as archive:
            return {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    except Exception:
        return None


def compare_archive(number: int, folder: Path) -> Iterator[str]:
    """What bcu does with one archive, then what came of the comparison."""
    marker, data = damaged_archive(number)
    path = folder / "archive"
    path.write_bytes(data)
    ours = of_bcu(path, marker)
    yield "refused" if ours is None else "read"
    theirs, python = of_torch(path), of_python(path)
    if ours is None:
        yield "refused" if theirs is None else "refused, torch reads it"
    elif theirs is None:
        yield "read, torch refuses it"
    else:
        yield "same" if ours == theirs == python else "differs"


# Pickles.


@functools.cache
def pickles() -> list[bytes]:
    """Small pickles of every protocol, of torch's and of Python's values."""
    state = {"a.weight": torch.ones(2, 3), "b": torch.nn.Parameter(torch.zeros(2)), "c": torch.Size([1])}
    values: list[Any] = [
        OrderedDict(state),
        {"state": state, "raw": b"\x80", "z": 1j, "kinds": {1, 2}, "type": torch.float32},
        Counter("hello"),
    ]
    made = []
    for value in values:
        for protocol in (2, 3, 4):
            buffer = io.BytesIO()
            torch.save(value, buffer, pickle_protocol=protocol)
            with zipfile.ZipFile(buffer) as archive:
                made.append(archive.read("archive/data.pkl"))
    plain: list[Any] = [
        {
            "a": 1,
            "b": [1.5, -(2**70), None, True],
            "é": "\N{EURO SIGN}\\u",
            ("x", 1): {2},
            "": frozenset("ab"),
        },
        collections.deque([1, 2]),
        [functools.partial(len), "a\nb", b"bytes", bytearray(b"more"), "x" * 300, 10**20],
    ]
    made += [pickle.dumps(value, protocol) for value in plain for protocol in range(6)]
    return made


FRAGMENTS = [
    *(b"cos\nsystem\n", b"ios\nsystem\n", b"c__builtin__\neval\n", b"\x8c\x02os\x8c\x06system\x93", b"\x93"),
    *(
        b"\x8c\x02os\x94",
        b"\x8c\x06system\x94",
        b"S'os'\n",
        b"S'o\\x73'\n",
        b"Vsyst\\u0065m\n",
        b"U\x06system",
    ),
    *(b"I01\n", b"I 5\n", b"I0x10\n", b"I1_0\n", b"L5\n", b"L5L\n", b"F1e5\n", b"F 1\n", b"I\n", b"I010\n"),
    *(b"p0\n", b"p 1\n", b"p-1\n", b"g0\n", b"g00\n", b"q\x00", b"h\x00", b"q\x01", b"h\x01", b"\x94"),
    *(b"\x80\x02", b"\x80\x04", b"\x80\x00", b"(", b"t", b"l", b"0", b"1", b"2", b"R", b"b", b"o", b"\x81"),
    *(b"a", b"e", b"s", b"u", b"d", b"}", b"]", b")", b"\x85", b"\x86", b"\x87", b"\x8f", b"\x90", b"\x91"),
    *(b"P1\n", b"Q", b"\x82\x01", b"\x97", b"\x98", b"N", b"K\x01", b"\x8b\x02\0\0\0\x05\x06", b"."),
    *(
        b"\x8b\xff\xff\xff\xff",
        b"T\x02\0\0\0os",
        b"X\x02\0\0\0os",
        b"B\x02\0\0\0os",
        b"C\x02os",
        b"\x8a\x01\x05",
    ),
]


def damaged_pickle(number: int) -> bytes:
    """Case ``number``: a pickle with some bytes changed, cut out, or opcodes put in."""
    random_ = random.Random(number)
    data = random_.choice(pickles())
    for _ in range(random_.choice([0, 1, 1, 2, 3, 5])):
        at = random_.randrange(len(data))
        new = random_.choice(
            [
                b"".join(random_.choices(FRAGMENTS, k=random_.randrange(1, 5))),
                frame(random_),
                random_.randbytes(1),
            ]
        )
        data = data[:at] + new + data[at + random_.choice([0, 0, 1, 2, len(new)]) :]
    if random_.random() < 0.3:  # a program from the start, with nothing of a library
        data = b"".join(random_.choices(FRAGMENTS, k=random_.randrange(2, 25))) + b"."
        data = random_.choice([b"", b"\x80\x02", b"\x80\x04" + frame(random_)]) + data
    return data


def frame(random_: random.Random) -> bytes:
    """The opcode that says how long a frame is."""
    return b"\x95" + struct.pack("<Q", random_.choice([0, 1, 4, 7, 12, 30, 100]))


class Inert:
    """Takes the place of whatever a pickle asks for, and does nothing."""

    def __new__(cls, *_: Any, **__: Any) -> Inert:
        """Take any arguments."""
        return super().__new__(cls)

    def __call__(self, *_: Any, **__: Any) -> Inert:
        """Take any arguments."""
        return self

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, item: Any) -> None:
        """Nothing."""

    def extend(self, items: Any) -> None:
        """Nothing."""

    def add(self, item: Any) -> None:
        """Nothing."""


class Recording(pickle.Unpickler):
    """Python's unpickler in C, with what it asks for written down and not given."""

    def __init__(self, file: Any) -> None:
        super().__init__(file)
        self.asked: set[str] = set()

    def find_class(self, module: str, name: str) -> Any:
        """Note the name."""
        self.asked.add(f"{module}.{name}")
        return Inert

    def persistent_load(self, _: Any) -> Any:
        """Nothing."""
        return Inert()


def asked_of_python(data: bytes) -> set[str]:
    """What Python's unpickler asks for, given bytes and given a buffered file."""
    asked: set[str] = set()
    for file in (io.BytesIO(data), io.BufferedReader(io.BytesIO(data), 16)):
        unpickler = Recording(file)
        attempt(unpickler.load)
        asked |= unpickler.asked
    return asked


def asked_of_torch(data: bytes) -> set[str]:
    """What torch's weights-only unpickler asks for, and refuses or gives."""
    asked: set[str] = set()
    original = weights_only._read_global_instruction

    def spy(readline: Callable[[], bytes]) -> tuple[str, str]:
        lines = [readline(), readline()]
        asked.add(".".join(line[:-1].decode("utf-8", "replace") for line in lines))
        return original(iter(lines).__next__)

    weights_only._read_global_instruction = spy
    try:
        unpickler = weights_only.Unpickler(io.BytesIO(data), encoding="utf-8")
        unpickler.persistent_load = lambda _: Inert()  # type: ignore[method-assign]
        attempt(unpickler.load)
    finally:
        weights_only._read_global_instruction = original
    return asked


def attempt(load: Callable[[], Any]) -> None:
    """Run a reader as far as it comes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            load()
        except Exception:
            return


def compare_pickle(number: int, _: Path) -> Iterator[str]:
    """What bcu says of one pickle, then what came of the comparison."""
    data = damaged_pickle(number)
    try:
        ours = "found" if inspect_pickle(data) else "harmless"
    except BrokenPickleError:
        ours = "refused"
    yield ours
    asked = asked_of_python(data) | asked_of_torch(data)
    try:
        listed = {use.name for use in follow(data).uses}
    except BrokenPickleError:
        yield ours
    else:
        yield ours if None in listed or asked <= listed else "differs"


# Running many.

KINDS: dict[str, Callable[[int, Path], Iterator[str]]] = {
    "archives": compare_archive,
    "pickles": compare_pickle,
}


def run_cases(kind: str, first: int, last: int) -> None:
    """As a child: print for each case what bcu does and then what came of it, to show how far it came."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    archives(), pickles()  # made before the clock runs
    with tempfile.TemporaryDirectory() as folder:
        for number in range(first, last):
            signal.alarm(SECONDS)
            outcomes = KINDS[kind](number, Path(folder))
            print(next(outcomes), end="\t", flush=True)
            print(next(outcomes), flush=True)
            signal.alarm(0)


def count(kind: str, cases: int) -> dict[str, Any]:
    """How often what came of the cases of one kind, and the numbers of those that differ."""
    counts: Counter[str] = Counter()
    differing: list[int] = []
    done = 0
    while done < cases:
        command = [sys.executable, __file__, "--child", kind, str(done), str(cases)]
        ran = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - itself
        *lines, cut = ran.stdout.split("\n")
        said = [line.partition("\t")[2] for line in lines]
        if ran.returncode > 0:
            raise SystemExit(ran.stderr)
        if ran.returncode:
            ended = signal.Signals(-ran.returncode).name
            said.append(f"{cut.strip()}, another reader ends in {ended}" if cut else f"bcu ends in {ended}")
        differing += [done + index for index, word in enumerate(said) if word == "differs"]
        counts.update(said)
        done += len(said)
    return {"cases": done, "counts": dict(sorted(counts.items())), "differing": differing}


def main() -> None:
    """Compare the readers on many files and write how it went."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--out", type=Path, default=Path("examples/results/readers.json"))
    parser.add_argument("--child", nargs=3, metavar=("KIND", "FIRST", "LAST"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        kind, first, last = options.child
        run_cases(kind, int(first), int(last))
        return
    results: dict[str, Any] = {"torch": torch.__version__, "python": platform.python_version()}
    results |= {kind: count(kind, options.cases) for kind in KINDS}
    options.out.write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
