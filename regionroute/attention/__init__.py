"""Exact style-token attention: columns of the attention matrix, their recording, their losses."""

from regionroute.attention.columns import attend, attend_among
from regionroute.attention.losses import attention_loss, cover_loss, focus_loss
from regionroute.attention.recorder import (
    AttentionPlan,
    AttentionRecorder,
    layer_names,
    mean_map,
    region_map,
)

__all__ = [
    "AttentionPlan",
    "AttentionRecorder",
    "attend",
    "attend_among",
    "attention_loss",
    "cover_loss",
    "focus_loss",
    "layer_names",
    "mean_map",
    "region_map",
]
