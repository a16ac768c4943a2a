"""LoRA experts on a frozen transformer: layer, routing, injection, files."""

from regionroute.adapters.blend import blend_route, blend_weights, parse_blend
from regionroute.adapters.files.export import (
    expert_state_dict,
    load_expert_state_dict,
    load_experts,
    save_experts,
)
from regionroute.adapters.files.lora_import import experts_from_loras, import_lora
from regionroute.adapters.files.merge import merge
from regionroute.adapters.files.registry import ExpertRegistry, read_registry
from regionroute.adapters.group import ActiveRoute
from regionroute.adapters.inject import PRESETS, eject, inject, target_names
from regionroute.adapters.lora_moe import (
    LoRAMoELinear,
    adapter_layers,
    adapter_parameters,
)
from regionroute.adapters.route import routed, routings
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
    "ActiveRoute",
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
    "blend_route",
    "blend_weights",
    "eject",
    "expert_state_dict",
    "experts_from_loras",
    "import_lora",
    "inject",
    "load_expert_state_dict",
    "load_experts",
    "merge",
    "parse_blend",
    "read_registry",
    "routed",
    "routings",
    "save_experts",
    "target_names",
]
