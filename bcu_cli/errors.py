"""The errors a user can meet: each says what is wrong and, as its hint, what to do about it.

The library raises them; only ``bcu_cli.cli`` prints them and chooses the exit code.
"""

from __future__ import annotations


class BcuError(Exception):
    """Something that could not be done, in one line, with one line of advice.

    Args:
        message: What is wrong, naming the file, the option or the tensor.
        hint: What the user can do about it; empty where there is nothing to say.

    Example:
        >>> try:
        ...     bcu.load("missing.safetensors")
        ... except bcu.BcuError as error:
        ...     print(error.message)
        missing.safetensors does not exist
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(BcuError):
    """An option or argument that makes no sense, alone or with the others."""


class CheckpointError(BcuError):
    """A model file that cannot be read: missing, broken, or of a kind that bcu does not open.

    Args:
        message: As above.
        hint: As above.
        rule: The id of the rule that it broke, one of :data:`bcu_cli.checkpoints.rules.RULES`.
    """

    def __init__(self, message: str, hint: str = "", *, rule: str = "damaged-file") -> None:
        super().__init__(message, hint)
        self.rule = rule


class UnsafeFileError(CheckpointError):
    """A model file that would run code if it were opened the ordinary way; it was not opened."""


class ArchitectureError(BcuError):
    """Weights that cannot be made into a classifier: unknown, ambiguous or not matching."""


class AnswersError(BcuError):
    """Answers of a network that make no sense: of another shape or type than logits, NaN or infinite."""


class ImagesError(BcuError):
    """A folder that does not hold the images (or the class subfolders) that are needed."""


class TriggerError(BcuError):
    """A trigger that cannot be read or does not fit the images."""


class TrainingError(BcuError):
    """A training that cannot go on: out of memory, or a loss that is not a number."""


class RankLostError(TrainingError):
    """Another process of the training has ended; this one is as it was after the last whole step."""


class ScanError(BcuError):
    """A network that the detectors of backdoors cannot judge."""


class OutputError(BcuError):
    """A file that cannot be written: no permission, no space, or it would overwrite the input."""


class InstallationError(BcuError):
    """Packages that are missing or do not fit each other: no fault of any file."""


def faulty_installation(error: BaseException) -> InstallationError | None:
    """What is wrong with the installed packages, where that is what an error of theirs means; else None."""
    if "torchvision::nms does not exist" in str(error):
        return InstallationError(
            "the installed torch and torchvision were not built for each other",
            "install both together: pip install --force-reinstall torch torchvision",
        )
    if isinstance(error, ModuleNotFoundError):
        return InstallationError(
            f"the package {error.name} is not installed", "pip install bcu-cli installs all it needs"
        )
    return None
