"""Exact style-token attention: columns of the attention matrix, their recording, their losses."""

from regionroute.attention.columns import attend, attend_among
from regionroute.attention.losses import attention_loss, cover_loss, focus_loss
from regionroute.attention.maps import (
    combine_maps,
    map_scores,
    mean_map,
    normalised,
    region_map,
)
from regionroute.attention.plan import AttentionPlan
from regionroute.attention.recorder import AttentionRecorder

__all__ = [
    "AttentionPlan",
    "AttentionRecorder",
    "attend",
    "attend_among",
    "attention_loss",
    "combine_maps",
    "cover_loss",
    "focus_loss",
    "map_scores",
    "mean_map",
    "normalised",
    "region_map",
]
