"""The settings of timm for the weights that a name with a tag is of, as ``resnet50.a1_in1k``."""

from __future__ import annotations

from bcu_cli.errors import ArchitectureError
from bcu_cli.models.configs import timm_config, transformers_config
from bcu_cli.models.configs.claims import Claim, timm_claim
from bcu_cli.models.registry import TIMM, import_library, is_user_file, resolve
from bcu_cli.words import number_of

_MOST_NAMED = 8


def claim_of_tag(arch: str, num_classes: int, *, strict: bool = True) -> Claim | None:
    """What timm says of the preprocessing for the weights that a name is of.

    Args:
        arch: The name of an architecture: ``--arch``, or what a file claims.
        num_classes: The number of classes of the file.
        strict: Whether an unknown tag is an error, as in ``--arch``.

    Returns:
        The claim; None where the name has no tag, or the tag is of weights for another number of classes.

    Raises:
        ArchitectureError: timm has no such tag, or the architecture is not timm's.
    """
    base = timm_config.base_of(arch)
    plain, dot, tag = base.rpartition(":")[2].partition(".")
    if not dot or is_user_file(arch) or transformers_config.is_config(arch):
        return None
    timm = import_library("timm")
    tags = timm.list_pretrained(f"{plain}.*") if resolve(arch).startswith(TIMM) else []
    if f"{plain}.{tag}" not in tags:
        if not strict:
            return None
        hint = f"timm has {', '.join(tags[:_MOST_NAMED])}" if tags else f"give --arch {plain}"
        known = f"{number_of(len(tags), 'tag')} of {plain}" if tags else f"the names of {plain}"
        raise ArchitectureError(f"--arch {arch}: there is no tag {tag} among {known}", hint)
    config = timm.get_pretrained_cfg(f"{plain}.{tag}")
    if config.num_classes != num_classes or config.mean is None or config.input_size is None:
        return None
    return timm_claim(f"timm's settings of {plain}.{tag}", {"pretrained_cfg": config.to_dict()})
