"""The Regional Style Editing Score: metrics, statistics and the report."""
