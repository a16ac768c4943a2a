"""Where the base's networks are while a run caches and trains."""

from __future__ import annotations

from typing import TYPE_CHECKING

from train.engine import distributed
from train.engine.engine import engine_settings

if TYPE_CHECKING:
    from regionroute.config.run import RunConfig
    from regionroute.models.backbone import Backbone
    from train.engine.distributed import Ranks


def place(backbone: Backbone, config: RunConfig, ranks: Ranks) -> None:
    """Moves the networks to this process's device; all processes must call it.

    Where weights are to wait in the host's memory (``train.offload=all``, or a DeepSpeed file with
    ``offload_param``) the transformer is never on the device as a whole: DeepSpeed takes its
    parameters over one by one, before the encoders come.
    """
    settings = engine_settings(config, ranks.world, 1)
    zero = settings["zero_optimization"]
    if zero["stage"] < 3 or "offload_param" not in zero:
        backbone.to(ranks.device)
        return
    import deepspeed

    with distributed.quiet():
        deepspeed.zero.Init(module=backbone.transformer, config_dict_or_path=settings)
    for buffer in backbone.transformer.buffers():
        buffer.data = buffer.data.to(ranks.device)
    for network in backbone.networks():
        if network is not backbone.transformer:
            network.to(ranks.device)
