"""``router.safetensors``: what experts have in common, the shared expert and the layers' gates."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from regionroute.adapters.files.lora_file import PREFIX, check_state, read_lora_file, write_tensors
from regionroute.adapters.files.precision import rounded
from regionroute.adapters.files.registry import RouterEntry
from regionroute.adapters.lora_moe import LoRAMoELinear, adapter_layers
from regionroute.adapters.routers import SimilarityRouter, StyleIdRouter


def router_entry(model: nn.Module) -> RouterEntry | None:
    """How a model's experts are routed, for its registry; None: by style and nothing shared.

    Raises:
        ValueError: no adapted layers, or routers that cannot be saved.
    """
    layer = next(iter(adapter_layers(model).values()))
    router, shared = layer.router, layer.shared_rank
    if isinstance(router, SimilarityRouter):
        return RouterEntry(
            kind="similarity",
            shared_rank=shared,
            style_dim=router.style_dim,
            top_k=router.top_k,
            normalize=router.normalize,
            compat=router.compat,
        )
    if not isinstance(router, StyleIdRouter):
        raise ValueError(f"experts under a {type(router).__name__} cannot be saved")
    return RouterEntry(shared_rank=shared) if shared else None


def write_router(path: Path, state: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    """Writes what `router_state_dict` gave, complete or not at all.

    Args:
        path: replaced if it is there.
        state: the tensors.
        dtype: of the file; gates, which are small and choose, have 16 bits at least.

    Raises:
        UserError: a value beyond the type's range.
    """
    gates = {key: tensor for key, tensor in state.items() if key.endswith(".gate.weight")}
    shared = {key: tensor for key, tensor in state.items() if key not in gates}
    least = torch.float16 if dtype.itemsize == 1 else dtype
    where = str(path)
    write_tensors(path, rounded(shared, dtype, where) | rounded(gates, least, where), {})


def router_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """Shared experts and gates, fp32 copies on the CPU.

    Under ZeRO-3 call it inside ``GatheredParameters(adapter_parameters(model))``.

    Returns:
        "transformer.<module>.shared_A" [rs,in], "….shared_B" [out,rs] and
        "….router.gate.weight" [E,Ds], those that there are.

    Raises:
        ValueError: no adapted layers.
    """
    return {
        f"{PREFIX}{name}.{key}": tensor
        for name, layer in adapter_layers(model).items()
        for key, tensor in layer.router_state_dict().items()
    }


def read_router(
    path: Path, sizes: Mapping[str, tuple[int, int]], entry: RouterEntry, num_experts: int
) -> dict[str, Tensor]:
    """Reads and checks what `write_router` wrote.

    Args:
        path: the file.
        sizes: (in, out) by the names of the adapted modules.
        entry: what the registry says of it.
        num_experts: E.

    Raises:
        UserError: missing or damaged, or for other experts.
    """
    state, _ = read_lora_file(path)
    shapes: dict[str, tuple[int, ...]] = {}
    for name, (inputs, outputs) in sizes.items():
        if entry.shared_rank:
            shapes[f"{PREFIX}{name}.shared_A"] = (entry.shared_rank, inputs)
            shapes[f"{PREFIX}{name}.shared_B"] = (outputs, entry.shared_rank)
        if entry.style_dim:
            shapes[f"{PREFIX}{name}.router.gate.weight"] = (num_experts, entry.style_dim)
    check_state(state, shapes, str(path))
    return {key: tensor.float() for key, tensor in state.items()}


def load_router_state_dict(
    layers: Mapping[str, LoRAMoELinear], state: Mapping[str, Tensor]
) -> None:
    """Overwrites shared experts and gates with tensors that were checked against the layers."""
    for name, layer in layers.items():
        start = f"{PREFIX}{name}."
        own = {key.removeprefix(start): x for key, x in state.items() if key.startswith(start)}
        layer.load_router_state_dict(own)
