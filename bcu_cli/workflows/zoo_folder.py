"""A zoo on the disk: models, their triggers and reports, and the index of them all."""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Self

from bcu_cli import __version__, events
from bcu_cli.checkpoints.unfinished import NAMES, remove_unfinished
from bcu_cli.errors import BcuError, CheckpointError, UsageError
from bcu_cli.evaluation.gates import Gate, judge
from bcu_cli.evaluation.trigger_choice import trigger_beside
from bcu_cli.report import json_file
from bcu_cli.report.schema import with_version
from bcu_cli.runs.locks import ANOTHER_FOLDER, locked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

ZOO_FORMAT = 1
CLEAN = "none"
"""Name of the clean model, with which the other models of its seed are compared."""
_NOT_READABLE = (OSError, ValueError, KeyError, TypeError, AttributeError)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One model of a zoo; a clean one has no target class."""

    attack: str
    target_class: int | None
    seed: int

    @property
    def name(self) -> str:
        """Name of its files without suffix."""
        target = "" if self.target_class is None else f"-t{self.target_class}"
        return f"{self.attack}{target}-s{self.seed}"

    @property
    def order(self) -> tuple[int, bool, str, int]:
        """Sort key: by seed, the clean model first."""
        return self.seed, self.attack != CLEAN, self.attack, self.target_class or 0


class Zoo:
    """A folder of models that are trained alike; one run at a time works on it.

    Entering the context creates the folder, waits for a run that is just ending, and refuses other content.

    Args:
        folder: The folder.
        data: The training data, as given.
        options: The other options that determine the models, as plain values by name.
        jobs: Number of models trained at a time; None if Ray decides.
        threads: Number of threads of each training.

    Raises:
        UsageError: Another run is at work, the folder holds something else, or was made otherwise.
        OutputError: The folder cannot be used.
    """

    def __init__(
        self, folder: Path, *, data: str, options: dict[str, Any], jobs: int | None, threads: int
    ) -> None:
        self.folder = folder
        self.lock = -1
        minor = ".".join(__version__.split(".")[:2])
        self._identity: dict[str, Any] = {
            "zoo_format": ZOO_FORMAT,
            "version": minor,
            "data": data,
            "options": options,
        }
        self._jobs, self._threads = jobs, threads
        self._rows: dict[Entry, dict[str, Any]] = {}

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.lock = stack.enter_context(locked(self.folder))
            self._rows = self._earlier_rows()
            remove_unfinished(self.folder)
            self._lock = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.close()

    def model(self, entry: Entry) -> Path:
        """The file of its model; trigger and report lie beside it."""
        return self.folder / f"{entry.name}.safetensors"

    def missing(self, entries: Iterable[Entry], *, on_each: Callable[[], None]) -> list[Entry]:
        """The missing and damaged entries; damage is reported, and ``on_each`` is called for each entry."""
        left = []
        for entry in entries:
            on_each()
            try:
                self._rows[entry] = self._read(entry)
            except BcuError as error:
                self._rows[entry] = _row(entry)
                left.append(entry)
                if self._report(entry).exists():
                    events.say(f"{entry.name} is trained again: {error.message}")
        return left

    def keep(self, entry: Entry, text: str) -> None:
        """Save the JSON report of an entry that has just been trained.

        Raises:
            BcuError: The report does not describe the files in the folder, or cannot be written.
        """
        try:
            report = json.loads(text)
            report["zoo"] = {**self._stamp(entry), "threads": self._threads}
        except (ValueError, TypeError) as error:
            raise CheckpointError("it ended without a report", "run the same command again") from error
        json_file.write(self._report(entry), report)
        self._rows[entry] = self._read(entry)

    def fail(self, entry: Entry, message: str, hint: str) -> None:
        """Record that an entry could not be trained."""
        self._rows[entry] = _row(entry) | {"error": {"message": message, "hint": hint}}

    def rows(self, entries: Iterable[Entry]) -> list[dict[str, Any]]:
        """The index's rows of entries, with their gates."""
        return [self._rows[entry] | {"gate": asdict(self._gate(entry))} for entry in entries]

    def index(self) -> dict[str, Any]:
        """The whole index, including entries that this run did not request."""
        rows = self.rows(sorted(self._rows, key=lambda entry: entry.order))
        return {
            "command": "attack all",
            "versions": {"bcu": __version__},
            **self._identity,
            "device": next((row["device"] for row in rows if row["device"]), None),
            "jobs": self._jobs,
            "threads": self._threads,
            "entries": rows,
        }

    def write_index(self) -> None:
        """Write the index, replacing the last one."""
        json_file.write(self._index, with_version(self.index()))

    @property
    def _index(self) -> Path:
        return self.folder / "index.json"

    def _report(self, entry: Entry) -> Path:
        return self.folder / f"{entry.name}.json"

    def _stamp(self, entry: Entry) -> dict[str, Any]:
        """Values in a report that identify the entry and the zoo."""
        from bcu_cli.report.document import fingerprint

        return {"format": ZOO_FORMAT, "fingerprint": fingerprint(asdict(entry), self._identity)}

    def _read(self, entry: Entry) -> dict[str, Any]:
        """The row of an intact entry; a missing or damaged one raises CheckpointError."""
        from bcu_cli.checkpoints import sha256_of

        path = self._report(entry)
        try:
            report = json.loads(path.read_text())
            row = _row(entry, report)
            is_ours = report["zoo"] == self._stamp(entry) | {"threads": report["zoo"]["threads"]}
        except _NOT_READABLE as error:
            raise CheckpointError(f"{path.name} is damaged") from error
        if not is_ours:
            raise CheckpointError(f"{path.name} is of other options")
        model = self.model(entry)
        files = {"model": model, "trigger": trigger_beside(model)}
        for what, sha256 in row["sha256"].items():
            if sha256 and sha256_of(files[what]) != sha256:
                raise CheckpointError(f"{files[what].name} is damaged")
        return row

    def _gate(self, entry: Entry) -> Gate:
        row = self._rows[entry]
        clean = self._rows.get(Entry(attack=CLEAN, target_class=None, seed=entry.seed))
        if not row["acc"]:
            return Gate(passed=None, reasons=("it is not trained",))
        has_clean = clean is not None and clean["acc"] is not None
        if clean and has_clean and clean["images_sha256"] != row["images_sha256"]:
            return Gate(passed=False, reasons=("its training images are not those of the clean model",))
        return judge(
            entry.attack,
            acc=row["acc"]["value"],
            asr=row["asr"]["value"] if row["asr"] else None,
            clean_acc=clean["acc"]["value"] if clean and has_clean else None,
        )

    def _earlier_rows(self) -> dict[Entry, dict[str, Any]]:
        """The rows that an earlier run recorded; none in an empty folder."""
        files = set(self.folder.iterdir()) - set(self.folder.glob(NAMES))
        if not files:
            return {}
        if self._index not in files:
            raise UsageError(f"{self.folder} is not empty, and is no zoo", ANOTHER_FOLDER)
        try:
            index = json.loads(self._index.read_text())
            made_with = {key: index[key] for key in self._identity}
            rows = {_entry_of(row): row for row in index["entries"]}
        except _NOT_READABLE as error:
            raise UsageError(f"{self._index} is no index of a zoo", ANOTHER_FOLDER) from error
        if files == {self._index}:  # nothing has been trained, so that nothing is lost
            return {}
        self._refuse_another(made_with)
        return rows

    def _refuse_another(self, made_with: dict[str, Any]) -> None:
        mine, theirs = self._identity, made_with
        for key in ("zoo_format", "version"):
            if theirs[key] != mine[key]:
                what = f"by another version of bcu ({key.replace('_', ' ')} {theirs[key]}, not {mine[key]})"
                raise UsageError(f"{self.folder} was made {what}", ANOTHER_FOLDER)
        theirs, mine = ({"data": side["data"], **side["options"]} for side in (theirs, mine))
        for key in mine | theirs:
            if theirs.get(key) != mine.get(key):
                what = f"--{key.replace('_', '-')} {theirs.get(key)}, not {mine.get(key)}"
                hint = "repeat the options that it was made with, or " + ANOTHER_FOLDER
                raise UsageError(f"{self.folder} was made with {what}", hint)


def _row(entry: Entry, report: dict[str, Any] | None = None) -> dict[str, Any]:
    """The index's row of an entry; without a report its values are None."""
    backdoored = report if entry.attack != CLEAN else None
    return {
        "name": entry.name,
        **asdict(entry),
        "acc": report and report["acc"],
        "asr": backdoored and backdoored["asr"],
        "ra": backdoored and backdoored["ra"],
        "seconds": report and report["seconds"]["total"],
        "threads": report and report["zoo"]["threads"],
        "device": report and report["device"],
        "images_sha256": report and report["images"]["sha256"],
        "sha256": {
            "model": report and report["outputs"]["model"]["sha256"],
            "trigger": backdoored and backdoored["outputs"]["trigger"]["sha256"],
        },
        "error": None,
    }


def _entry_of(row: dict[str, Any]) -> Entry:
    return Entry(attack=row["attack"], target_class=row["target_class"], seed=row["seed"])
