"""Regional metrics: pure functions, a file for each family, and the catalogue in words."""

from eval.metrics.base import EvalBatch, MetricInfo, SampleMetric
from eval.metrics.catalogue import CATALOGUE, GROUPS, MAP_METRICS

__all__ = [
    "CATALOGUE",
    "GROUPS",
    "MAP_METRICS",
    "EvalBatch",
    "MetricInfo",
    "SampleMetric",
]
