"""A dashboard for Grafana of what replicas measure, and how Prometheus collects it."""

from __future__ import annotations

import json
from importlib.resources import files


def grafana() -> str:
    """The dashboard, as JSON to import."""
    return files(__name__).joinpath("grafana.json").read_text("utf-8")


def prometheus(discovery: str) -> str:
    """Prometheus' configuration.

    Args:
        discovery: Ray's file of its nodes.
    """
    template = files(__name__).joinpath("prometheus.yml").read_text("utf-8")
    return template.replace("DISCOVERY", json.dumps(discovery))  # which is YAML, too
