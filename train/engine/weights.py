"""The trained weights: whole, by name, in a file, or this process's part of them.

Under ZeRO-3 every process keeps an equal slice of each flattened weight (``ds_tensor``), the last
one filled up with zeros. Without it a process's part is the weight itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from regionroute.adapters import adapter_parameters
from regionroute.adapters.files.lora_file import check_state, write_tensors
from regionroute.compat import is_partitioned, own_part, whole_size
from regionroute.errors import UserError
from train.engine import distributed


def named_adapters(module: nn.Module) -> dict[str, nn.Parameter]:
    """The trained parameters by their names in the transformer, in the order of training."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    return {names[id(parameter)]: parameter for parameter in adapter_parameters(module)}


def part_of(parameter: nn.Parameter, whole: Tensor) -> Tensor:
    """This process's part of a whole tensor, as `own_part` cuts the parameter.

    Args:
        parameter: says how.
        whole: of the parameter's full shape.
    """
    if not is_partitioned(parameter):
        return whole
    part = own_part(parameter)
    padded = torch.zeros(part.numel() * dist.get_world_size(), dtype=whole.dtype)
    padded[: whole.numel()] = whole.flatten()
    return padded.view(dist.get_world_size(), -1)[dist.get_rank()]


def write_adapters(path: Path, module: nn.Module, *, main: bool) -> None:
    """Writes all trained weights whole; all processes must call it, the first one writes."""
    named = named_adapters(module)
    with distributed.gathered(named.values()):
        if main:
            write_tensors(path, {n: p.detach().cpu().contiguous() for n, p in named.items()}, {})


def read_adapters(path: Path, module: nn.Module) -> dict[str, Tensor]:
    """What `write_adapters` wrote, checked against the model; of any number of processes.

    Raises:
        UserError: the file is missing or damaged, or of other adapters.
    """
    try:
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{path}: these weights cannot be read ({error}): delete the checkpoint's folder, and "
            "the same command continues from the one before"
        ) from error
    shapes = {
        name: tuple(whole_size(parameter)) for name, parameter in named_adapters(module).items()
    }
    check_state(state, shapes, str(path))
    return state


@torch.no_grad()
def load_adapters(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Overwrites the trained weights of a transformer that is not yet inside an engine."""
    for name, parameter in named_adapters(module).items():
        parameter.copy_(state[name])


def differing(module: nn.Module, state: Mapping[str, Tensor]) -> str | None:
    """The first trained weight of which this process's part is not that of `state`; or None."""
    for name, parameter in named_adapters(module).items():
        own = own_part(parameter).cpu()
        if not torch.equal(own, part_of(parameter, state[name]).view_as(own)):
            return name
    return None
