"""Real fine-tunes of the digits CNN, by the ways a hub would: the next site's rows, a new head, all anew.

`make(recipe, folder)` trains the recipe and writes v1.onnx, head.onnx (only the head learned again), finetune.onnx (all weights,
five passes at a twentieth of the rate over another site's 400 rows) and retrain.onnx (another seed), each also as *-int8.onnx by
the recipe that the package would have: exported, head exposed, static QDQ over the hub's calibration rows.
"""

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from hub.train.datasets import digits
from hub.train.recipe import Schedule, accuracy, fit
from hub.train.tracking import Track
from model_formats.export.graph import load_graph, save_graph
from model_formats.export.head import expose_head
from model_formats.export.torch_module import TorchModule
from model_formats.quantize.layers import prepare
from model_formats.quantize.static import StaticQdq

__all__ = ["make"]


def make(recipe: Any, folder: Path) -> None:
    """Write the files, and what each of them reaches, into `folder`; does nothing where they are."""
    if (folder / "accuracy.json").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    schedule, data = recipe.schedule(), recipe.data()
    torch.set_num_threads(schedule.threads)
    site = replace(data, train=digits().sites["frankfurt"])
    first = _trained(recipe, data, schedule)
    little = replace(schedule, epochs=5, rate=schedule.rate / 20)
    made = {
        "v1": first,
        "finetune": fit(copy.deepcopy(first), site, little, _silent()),
        "head": _other_head(first, site, replace(schedule, epochs=5)),
        "retrain": _trained(recipe, data, replace(schedule, seed=schedule.seed + 1)),
    }
    for name, module in made.items():
        _save(module, recipe, folder, name)
    reached = {name: accuracy(module, data.held_out) for name, module in made.items()}
    (folder / "accuracy.json").write_text(json.dumps(reached))


def _trained(recipe: Any, data: Any, schedule: Schedule) -> Any:
    torch.manual_seed(schedule.seed)
    return fit(recipe.module(), data, schedule, _silent())


def _other_head(module: Any, data: Any, schedule: Schedule) -> Any:
    """The last linear layer learned on; the trunk stays as it is, to the bit."""
    changed, trunk = copy.deepcopy(module), module.state_dict()
    names = {name for name, _ in list(changed.named_parameters())[-2:]}
    for name, parameter in changed.named_parameters():
        parameter.requires_grad_(name in names)
    fit(changed, data, schedule, _silent())
    changed.load_state_dict({n: t if n in names else trunk[n] for n, t in changed.state_dict().items()})
    return changed.eval()


def _save(module: Any, recipe: Any, folder: Path, name: str) -> None:
    data, contract = recipe.data(), recipe.options(1).contract
    raw, fp32, ready = folder / "raw.onnx", folder / f"{name}.onnx", folder / "prepared.onnx"
    TorchModule(module, {n: a[:2] for n, a in data.held_out.inputs.items()}).export(raw, contract)
    model = load_graph(raw)
    expose_head(model, contract.outputs[0].name)
    save_graph(model, fp32)
    prepare(fp32, ready)
    StaticQdq(data.train.take(slice(0, 256)).inputs).quantize(ready, folder / f"{name}-int8.onnx")
    raw.unlink()
    ready.unlink()


def _silent() -> Track:
    return Track(lambda _line: None)
