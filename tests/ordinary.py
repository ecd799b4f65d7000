"""A hundred checkpoints as training scripts ordinarily write them, made on the spot.

    python tests/ordinary.py FOLDER

writes them into FOLDER/ordinary. Classes of the same names stand in for those of libraries, since their names
are all that a pickle holds of classes.
"""

from __future__ import annotations

import argparse
import array
import collections
import datetime as dt
import decimal
import enum
import fractions
import functools
import ipaddress
import pathlib
import random
import sys
import types
import uuid
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import hostile
import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

_FAKED: list[type] = []


def faked(name: str, base: type = object, **members: Any) -> Any:
    """A class that pickles under the name of one of a library that need not be installed."""
    module, _, last = name.rpartition(".")
    made = type(last, (base,), {"__module__": module, "__qualname__": last, **members})
    _FAKED.append(made)
    return made


def faked_enum(name: str, **members: Any) -> Any:
    """An enumeration of a library that need not be installed."""
    module, _, last = name.rpartition(".")
    made = enum.Enum(last, members, module=module, qualname=last)
    _FAKED.append(made)
    return made


def filled(made: Any, **attributes: Any) -> Any:
    """An object with attributes."""
    made = made()
    vars(made).update(attributes)
    return made


@contextmanager
def importable() -> Iterator[None]:
    """Makes pickle find the stand-ins under their names, for as long as it writes."""
    before = dict(sys.modules)
    stood_in: dict[str, types.ModuleType] = {}
    for made in _FAKED:
        parts = made.__module__.split(".")
        for count in range(1, len(parts)):
            name = ".".join(parts[:count])
            sys.modules.setdefault(name, types.ModuleType(name))
        if made.__module__ not in stood_in:
            sys.modules[made.__module__] = stood_in[made.__module__] = types.ModuleType(made.__module__)
    for made in _FAKED:
        setattr(sys.modules[made.__module__], made.__name__, made)
    try:
        yield
    finally:
        for name in set(sys.modules) - set(before):
            del sys.modules[name]
        sys.modules.update(before)


def _mean(_: Any) -> float:
    """What a log has as one of its ways to be summed up."""
    return 0.0


class Result(NamedTuple):
    """What a training script of somebody's has at its top level."""

    accuracy: float
    epoch: int


DictConfig = faked("omegaconf.dictconfig.DictConfig")
ListConfig = faked("omegaconf.listconfig.ListConfig")
AnyNode = faked("omegaconf.nodes.AnyNode")
ContainerMetadata = faked("omegaconf.base.ContainerMetadata")
Metadata = faked("omegaconf.base.Metadata")
EasyDict = faked("easydict.EasyDict", dict)
Addict = faked("addict.addict.Dict", dict)
CfgNode = faked("yacs.config.CfgNode", dict)
DetectronNode = faked("detectron2.config.config.CfgNode", dict)
AttributeDict = faked("pytorch_lightning.utilities.parsing.AttributeDict", dict)
ConfigDict = faked(
    "mmengine.config.config.ConfigDict", dict, __reduce__=lambda self: (type(self), (dict(self),))
)
HistoryBuffer = faked("mmengine.logging.history_buffer.HistoryBuffer", mean=_mean)
AverageMeter = faked("fairseq.meters.AverageMeter")
TrainingArguments = faked("transformers.training_args.TrainingArguments")
UserConfig = faked("__mp_main__.TrainConfig")
SchedulerType = faked_enum("transformers.trainer_utils.SchedulerType", LINEAR="linear")
Strategy = faked_enum("fairseq.dataclass.constants.DDPBackend", PYTORCH="pytorch_ddp")
Stage = faked_enum("pytorch_lightning.trainer.states.TrainerFn", FITTING=1)
Version = faked("packaging.version.Version")
Path313 = faked("pathlib._local.PosixPath", pathlib.PurePosixPath)
Munch = faked("munch.Munch", dict)
Box = faked("box.box.Box", dict)
ScalarEma = faked("timm_local.utils.ScalarEma")
Label = faked("sklearn.preprocessing._label.LabelEncoder")


def omegaconf() -> Any:
    """A configuration as omegaconf pickles it."""
    metadata = filled(
        ContainerMetadata, ref_type=Any, object_type=dict, optional=True, key_type=Any, element_type=Any
    )
    leaf = filled(AnyNode, _metadata=filled(Metadata, ref_type=Any, object_type=None, key="lr"), _val=0.1)
    items = filled(ListConfig, _metadata=metadata, _content=[leaf])
    return filled(DictConfig, _metadata=metadata, _parent=None, _content={"lr": leaf, "steps": items})


def values() -> dict[str, Any]:
    """What stands beside weights, by a short name."""
    generator = np.random.default_rng(0)
    counts = collections.defaultdict(list, loss=[0.5, 0.25])
    HistoryBuffer.mean.__qualname__ = "HistoryBuffer.mean"
    HistoryBuffer.mean.__module__ = HistoryBuffer.__module__
    history = filled(
        HistoryBuffer,
        _max_length=10,
        _log_history=np.array([0.5, 0.25]),
        _statistics_methods={"mean": HistoryBuffer.mean},
    )
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    return {
        "path": pathlib.PosixPath("/runs/exp1"),
        "path_313": Path313("/runs/exp1"),
        "pure_path": pathlib.PureWindowsPath("C:/runs"),
        "torch_version": torch.__version__,
        "timedelta": dt.timedelta(seconds=3),
        "date": dt.date(2025, 1, 2),
        "time": dt.time(1, 2, 3),
        "datetime": dt.datetime(2025, 1, 2, tzinfo=dt.UTC),
        "deque": collections.deque([0.1, 0.2], 5),
        "counter": collections.Counter("aab"),
        "defaultdict": counts,
        "frozenset": frozenset([1, 2]),
        "set": {1, 2},
        "range": range(3),
        "slice": slice(1, 3),
        "bytearray": bytearray(b"x"),
        "bytes": b"\x00\xff",
        "complex": 1 + 2j,
        "simple_namespace": types.SimpleNamespace(lr=0.1),
        "fraction": fractions.Fraction(1, 3),
        "decimal": decimal.Decimal("0.1"),
        "uuid": uuid.UUID(int=5),
        "ip": ipaddress.ip_address("127.0.0.1"),
        "array": array.array("d", [0.5]),
        "random_state": random.getstate(),
        "random": random.Random(0),
        "exception": ValueError("diverged"),
        "type": int,
        "class_of_torch": torch.nn.ReLU,
        "function": torch.nn.functional.relu,
        "partial": functools.partial(torch.nn.LayerNorm, eps=1e-6),
        "namespace": argparse.Namespace(lr=0.1, data=pathlib.PosixPath("/data")),
        "numpy_float": np.float64(0.93),
        "numpy_int": np.int64(3),
        "numpy_bool": np.bool_(True),
        "numpy_float32": np.float32(0.5),
        "numpy_text": np.str_("cat"),
        "numpy_array": np.arange(3),
        "numpy_matrix": np.ones((2, 2)).view(np.matrix),
        "numpy_objects": np.array(["cat", None], dtype=object),
        "numpy_record": np.zeros(2, dtype=[("a", "f4"), ("b", "i8")]),
        "numpy_time": np.datetime64("2025-01-02"),
        "numpy_dtype": np.dtype("float32"),
        "numpy_type": np.float32,
        "numpy_state": np.random.RandomState(0).get_state(),
        "numpy_random_state": np.random.RandomState(0),
        "numpy_generator": generator,
        "bit_generator": np.random.MT19937(3),
        "torch_state": torch.get_rng_state(),
        "dtype": torch.bfloat16,
        "device": torch.device("cuda:0"),
        "size": torch.Size([3, 224, 224]),
        "layout": torch.strided,
        "optimizer_object": optimizer,
        "scheduler_object": torch.optim.lr_scheduler.StepLR(optimizer, 3),
        "enum": SchedulerType.LINEAR,
        "enum_of_a_number": Stage.FITTING,
        "enum_as_key": {Strategy.PYTORCH: 1},
        "named_tuple": Result(0.9, 3),
        "omegaconf": omegaconf(),
        "easydict": EasyDict(lr=0.1, nested=EasyDict(a=1)),
        "addict": Addict(lr=0.1),
        "munch": Munch(lr=0.1),
        "box": Box(lr=0.1),
        "yacs": CfgNode(MODEL=CfgNode(NAME="r50")),
        "config_dict": ConfigDict(type="ResNet", depth=50),
        "history_buffer": history,
        "meter": filled(AverageMeter, val=0.5, avg=0.4, count=3),
        "user_object": filled(UserConfig, lr=0.1, out=pathlib.PosixPath("out"), mode=Stage.FITTING),
        "version": filled(Version, _version=(2, 3)),
        "label_encoder": filled(Label, classes_=np.array(["cat", "dog"])),
        "ema_meter": filled(ScalarEma, decay=0.9),
    }


def training(state: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Whole checkpoints in the layouts of training scripts, by library."""
    network = hostile.Small()
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.1)
    network(torch.rand(2, 3, 8, 8)).sum().backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10).state_dict()
    moments, scaler = optimizer.state_dict(), {"scale": 65536.0, "growth_factor": 2.0, "_growth_tracker": 3}
    average = {name: tensor * 0.9 for name, tensor in state.items()}
    random_states = {
        "python": random.getstate(),
        "numpy": np.random.RandomState(0).get_state(),
        "torch": torch.get_rng_state(),
        "cuda": [torch.get_rng_state()],
    }
    arguments = argparse.Namespace(lr=0.1, output=pathlib.PosixPath("out"), device=torch.device("cpu"))
    metrics = collections.OrderedDict(top1=np.float64(0.9), loss=np.float32(0.5))
    return {
        "lightning": {
            "state_dict": state,
            "optimizer_states": [moments],
            "lr_schedulers": [scheduler],
            "hyper_parameters": AttributeDict(lr=0.1),
            "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.9), "dirpath": "x"}},
            "loops": {"fit_loop": {"state_dict": {}}},
            "pytorch-lightning_version": "2.1.0",
        },
        "timm": {
            "state_dict": state,
            "state_dict_ema": average,
            "optimizer": moments,
            "amp_scaler": scaler,
            "args": arguments,
            "arch": "resnet18",
            "epoch": 3,
            "version": 2,
            "metric": np.float64(0.9),
        },
        "mmengine": {
            "meta": {
                "cfg": "model = dict()",
                "time": "20250102",
                "dataset_meta": ConfigDict(classes=("cat", "dog")),
                "seed": np.int64(3),
            },
            "message_hub": {"log_scalars": {"train/loss": values()["history_buffer"]}},
            "state_dict": state,
            "optimizer": moments,
            "param_schedulers": [scheduler],
        },
        "detectron": {
            "model": state,
            "optimizer": moments,
            "scheduler": scheduler,
            "iteration": 9,
            "cfg": DetectronNode(MODEL=DetectronNode(META="r50")),
        },
        "fairseq": {
            "args": None,
            "cfg": omegaconf(),
            "model": state,
            "criterion": None,
            "optimizer_history": [{"num_updates": 3, "lr_scheduler_state": {"best": 0.1}}],
            "extra_state": {"metrics": [("default", [(0, "loss", filled(AverageMeter, val=1.0))])]},
            "backend": Strategy.PYTORCH,
            "last_optimizer_state": moments,
        },
        "torchvision": {
            "model": state,
            "optimizer": moments,
            "lr_scheduler": scheduler,
            "epoch": 3,
            "args": arguments,
            "scaler": scaler,
            "model_ema": {"n_averaged": torch.tensor(3), **{f"module.{n}": t for n, t in average.items()}},
        },
        "imagenet_example": {
            "epoch": 3,
            "arch": "resnet18",
            "state_dict": {f"module.{name}": tensor for name, tensor in state.items()},
            "best_acc1": torch.tensor(71.2),
            "optimizer": moments,
            "scheduler": scheduler,
        },
        "resume": {"model": state, "rng": random_states, "optimizer": moments, "epoch": 3},
        "dino": {"student": state, "teacher": average, "epoch": 3, "args": arguments, "dino_loss": {}},
        "trainer": {
            "model": state,
            "args": filled(TrainingArguments, lr_scheduler_type=SchedulerType.LINEAR),
        },
        "fastai": {"model": state, "opt": {"state": [], "hypers": [{"lr": np.float64(0.1)}]}},
        "ignite": {"model": state, "trainer": collections.OrderedDict(epoch_length=5, iteration=3)},
        "metrics": {"net": state, "acc": np.float64(0.93), "metrics": metrics, "took": dt.timedelta(3)},
        "parameters": {"params": dict(network.named_parameters()), "log": collections.deque([0.1])},
        "half": {
            "ema": {name: tensor.half() for name, tensor in average.items()},
            "date": dt.date(2025, 1, 2),
        },
    }


def files() -> dict[str, bytes]:
    """The hundred files, by name."""
    state = hostile.Small().state_dict()
    hostile.saved(state)  # imports what torch.save needs
    beside, whole = values(), training(state)
    made = {}
    with importable():
        for name, value in beside.items():
            made[f"beside_{name}.pt"] = hostile.saved({"state_dict": state, "epoch": 3, "extra": value})
        for name, checkpoint in whole.items():
            made[f"{name}.pth"] = hostile.saved(checkpoint)
            made[f"{name}_protocol_4.pth"] = hostile.saved(checkpoint, pickle_protocol=4)
        for name in ("timm", "fairseq"):
            made[f"{name}_legacy.pth"] = hostile.saved(whole[name], _use_new_zipfile_serialization=False)
    return made


def write(folder: Path) -> list[Path]:
    """Write the files; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files().items():
        (folder / name).write_bytes(data)
    return sorted(folder.iterdir())


if __name__ == "__main__":
    sys.stdout.write(f"{len(write(Path(sys.argv[1]) / 'ordinary'))} ordinary files\n")
