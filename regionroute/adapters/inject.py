"""Puts LoRA experts into a transformer."""

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase

import torch
from torch import nn

from regionroute.adapters.group import AdapterGroup
from regionroute.adapters.lora_moe import LoRAMoELinear
from regionroute.adapters.routers import Router
from regionroute.diffusion.families import family_of
from regionroute.errors import UserError, nearest

# From few layers to many; what they mean is the family's, see `Family.targets`.
PRESETS = ("regionroute", "styleexpert", "all")


def inject(
    transformer: nn.Module,
    targets: str | Sequence[str],
    num_experts: int,
    rank: int,
    alpha: float,
    dropout: float = 0.0,
    *,
    shared_rank: int = 0,
    router: Callable[[], Router] | None = None,
    generator: torch.Generator | None = None,
) -> list[str]:
    """Freezes `transformer` and replaces its target linear layers by `LoRAMoELinear`.

    Args:
        transformer: the diffusers model itself, not a wrapper: the names end up in files.
        targets: a preset's name or module suffixes, each of whole name parts ("to_q",
            "attn.to_out.0", "single_transformer_blocks.*.attn.*", or a full module name).
        num_experts: experts a layer.
        rank: LoRA rank.
        alpha: scale numerator.
        dropout: input dropout of the adapters while training.
        shared_rank: rank of the expert for all samples, 0: none.
        router: makes the router of a layer, called once a layer; None: `StyleIdRouter`.
        generator: CPU generator that draws A, None: the global one.

    Returns:
        The names of the replaced modules.

    Raises:
        UserError: an unknown preset, or a suffix without a linear layer.
        ValueError: the transformer already has experts.
    """
    if any(isinstance(module, LoRAMoELinear) for module in transformer.modules()):
        raise ValueError("the transformer already has experts")
    names = target_names(transformer, targets)
    transformer.requires_grad_(False)
    group = AdapterGroup(targets if isinstance(targets, str) else list(targets))
    for name in names:
        parent, _, child = name.rpartition(".")
        base = transformer.get_submodule(name)
        assert isinstance(base, nn.Linear)
        layer = LoRAMoELinear(
            base, num_experts, rank, alpha,
            router=router() if router else None, shared_rank=shared_rank, dropout=dropout,
            name=name, group=group, generator=generator,
        )  # fmt: skip
        setattr(transformer.get_submodule(parent), child, layer)
    return names


def eject(transformer: nn.Module) -> list[str]:
    """Remove the experts: every `LoRAMoELinear` becomes its plain linear layer again.

    Args:
        transformer: with or without experts.

    Returns:
        The names of the restored modules.
    """
    layers = [(n, m) for n, m in transformer.named_modules() if isinstance(m, LoRAMoELinear)]
    for name, layer in layers:
        parent, _, child = name.rpartition(".")
        setattr(transformer.get_submodule(parent), child, layer.base)
    return [name for name, _ in layers]


def target_names(transformer: nn.Module, targets: str | Sequence[str]) -> list[str]:
    """Names of the linear layers that `targets` means, in the model's order.

    Raises:
        UserError: an unknown preset, or a suffix without a linear layer.
        ValueError: a preset, and the transformer is of no known family.
    """
    if isinstance(targets, str):
        if targets not in PRESETS:
            raise UserError(
                f'experts.targets: there is no preset "{targets}", known: {", ".join(PRESETS)}; '
                "or give a list of module suffixes"
            )
        suffixes: Sequence[str] = family_of(transformer).targets[targets]
    else:
        suffixes = targets
    if not suffixes:
        raise UserError("experts.targets: the list is empty, name at least one module suffix")
    linears = [name for name, m in transformer.named_modules() if isinstance(m, nn.Linear)]
    if isinstance(targets, str) and targets != "all":  # the transformer has its own proj_out
        linears = [name for name in linears if "transformer_blocks." in name]
    for suffix in suffixes:
        if not any(_matches(name, suffix) for name in linears):
            raise UserError(_no_such_target(suffix, linears))
    return [name for name in linears if any(_matches(name, suffix) for suffix in suffixes)]


def _matches(name: str, suffix: str) -> bool:
    """Whether a name ends with the parts of a suffix, of which each may have a wildcard."""
    wanted = suffix.split(".")
    parts = name.split(".")[-len(wanted) :]
    return len(parts) == len(wanted) and all(map(fnmatchcase, parts, wanted))


def _no_such_target(suffix: str, linears: Sequence[str]) -> str:
    parts = suffix.count(".") + 1
    known = {".".join(name.split(".")[-parts:]) for name in linears}
    hint = f', the nearest is "{nearest(suffix, sorted(known))}"' if known else ""
    return f'experts.targets: no linear layer is named "{suffix}"{hint}'
