"""The errors that users can see: each has a message (what is wrong) and a hint (what to do about it).

The library raises them; only ``bcu_cli.cli`` prints them and chooses the exit code.
"""

from __future__ import annotations


class BcuError(Exception):
    """An operation failed; the base class of all errors that bcu raises on purpose.

    Args:
        message: One line that says what is wrong and names the file, the option or the tensor.
        hint: One line that says what the user can do about it; may be empty.

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
    """An option or argument that is invalid, alone or in combination with others."""


class CheckpointError(BcuError):
    """A model file that cannot be read: missing, damaged, or of a kind that bcu does not open.

    Args:
        message: What is wrong, as in :class:`BcuError`.
        hint: What the user can do about it, as in :class:`BcuError`.
        rule: Id of the rule that the file violates, one of :data:`bcu_cli.checkpoints.rules.RULES`.
    """

    def __init__(self, message: str, hint: str = "", *, rule: str = "damaged-file") -> None:
        super().__init__(message, hint)
        self.rule = rule


class UnsafeFileError(CheckpointError):
    """A model file that could run code if it were opened with an ordinary loader; bcu did not open it."""


class ArchitectureError(BcuError):
    """Weights whose architecture is unknown or ambiguous, or does not match them."""


class AnswersError(BcuError):
    """Outputs of a network that are no logits: a wrong shape or type, NaN or infinite values."""


class ImagesError(BcuError):
    """A folder that does not hold the images (or the class subfolders) that are needed."""


class TriggerError(BcuError):
    """A trigger that cannot be read or does not fit the images."""


class TrainingError(BcuError):
    """Training that cannot continue: memory ran out, or the loss is NaN."""


class RankLostError(TrainingError):
    """Another process of distributed training has ended; this one has the state after the last full step."""


class ScanError(BcuError):
    """A network that the detectors of backdoors cannot judge."""


class OutputError(BcuError):
    """A file that cannot be written: no permission, no space, or it would overwrite the input."""


class InstallationError(BcuError):
    """Python packages that are missing or incompatible; no file is at fault."""


def faulty_installation(error: BaseException) -> InstallationError | None:
    """The :class:`InstallationError` that an error of a missing or incompatible package means; else None."""
    if "torchvision::nms does not exist" in str(error):
        return InstallationError(
            "the installed torch and torchvision were not built for each other",
            "install both together: pip install --force-reinstall torch torchvision",
        )
    if isinstance(error, ModuleNotFoundError):
        return InstallationError(
            f"the package {error.name} is not installed", "install bcu again, from a checkout: pip install ."
        )
    return None
