"""The form of metrics.json: what another program may rely on."""

from sparcom_analysis.schema.metrics import Metrics

__all__ = ["Metrics"]
