"""What processes do that ``helpers.Telling`` starts, and those that they start.

Each says in a file that a stop would now wait for the end of a step. With ``BCU_FEW_STEPS`` the searches of
method auto are a few steps long.
"""

import os
import signal
from dataclasses import replace
from importlib.machinery import SourceFileLoader
from pathlib import Path

_handle = signal.signal


def _tell(number, handler):
    before = _handle(number, handler)
    if getattr(handler, "__qualname__", "").startswith("stoppable."):
        Path(os.environ["BCU_TELL"], str(os.getpid())).touch()
    return before


signal.signal = _tell

_execute = SourceFileLoader.exec_module


def _execute_with_few_steps(loader, module):
    _execute(loader, module)
    if module.__name__ == "bcu_cli.defenses.adversarial.effort":
        module.USUAL = replace(module.USUAL, search_steps=4, verification_steps=4)


if "BCU_FEW_STEPS" in os.environ:
    SourceFileLoader.exec_module = _execute_with_few_steps
