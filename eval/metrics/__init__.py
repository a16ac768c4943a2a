"""Regional metrics: pure functions, a file for each family, and the catalogue in words."""

from eval.metrics.base import EvalBatch, Metric, MetricInfo, SampleMetric
from eval.metrics.catalogue import CATALOGUE, build_metrics

__all__ = ["CATALOGUE", "EvalBatch", "Metric", "MetricInfo", "SampleMetric", "build_metrics"]
