"""Regional metrics: pure functions, a file for each family, and the catalogue in words."""

from eval.metrics.base import EvalBatch, Metric, MetricInfo, SampleMetric
from eval.metrics.catalogue import CATALOGUE, MAP_METRICS, build_metrics

__all__ = [
    "CATALOGUE",
    "MAP_METRICS",
    "EvalBatch",
    "Metric",
    "MetricInfo",
    "SampleMetric",
    "build_metrics",
]
