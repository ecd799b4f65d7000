"""Operators of TorchScript with hostile arguments: an error or a result, never a signal or a hang."""

from __future__ import annotations

import pytest
import torch
from hostile_calls import run_in_children
from script_subjects import subjects

from bcu_cli.checkpoints.torchscript.operators import ALLOWED
from bcu_cli.models.embedded.script_operators import LANGUAGE, SPECIAL, is_tensor_operator
from bcu_cli.models.embedded.script_values import PLAIN

CALLS = 8


def test_each_allowed_operator_has_a_function_and_no_other_has() -> None:
    assert {
        name for name in ALLOWED if is_tensor_operator(name)
    } | PLAIN.keys() | SPECIAL.keys() | LANGUAGE == ALLOWED


@pytest.mark.slow
def test_hostile_arguments_break_nothing() -> None:
    torch.empty(1, device="meta").add(1)  # what torch imports for its shape functions is imported once
    ended = {name: outcome.ended for name, outcome in run_in_children(subjects(), CALLS, seed=1).items()}
    assert {name: how for name, how in ended.items() if how != "ok"} == {}
