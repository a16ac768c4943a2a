"""LoRA experts on a frozen transformer: layer, routing, injection, files."""

from regionroute.adapters.export import (
    expert_state_dict,
    load_expert_state_dict,
    load_experts,
    save_experts,
)
from regionroute.adapters.inject import PRESETS, inject, target_names
from regionroute.adapters.lora_import import import_lora
from regionroute.adapters.lora_moe import (
    LoRAMoELinear,
    adapter_layers,
    adapter_parameters,
    routed,
    routings,
)
from regionroute.adapters.registry import ExpertRegistry, read_registry
from regionroute.adapters.routers import (
    FixedRouter,
    RouteContext,
    Router,
    Routing,
    SimilarityRouter,
    StyleIdRouter,
)

__all__ = [
    "PRESETS",
    "ExpertRegistry",
    "FixedRouter",
    "LoRAMoELinear",
    "RouteContext",
    "Router",
    "Routing",
    "SimilarityRouter",
    "StyleIdRouter",
    "adapter_layers",
    "adapter_parameters",
    "expert_state_dict",
    "import_lora",
    "inject",
    "load_expert_state_dict",
    "load_experts",
    "read_registry",
    "routed",
    "routings",
    "save_experts",
    "target_names",
]
