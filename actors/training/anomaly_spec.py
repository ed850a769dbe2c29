"""How an anomaly detector is fitted, and what is written down of it. Imports pydantic only."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from ...workflows.spec import Runtime, Spec


class AnomalySpec(Spec):
    """A Gaussian mixture over features of normal patches, and a threshold from other normal pictures."""

    encoder: bool = False
    """Take features from all scales of the checkpoint's vision encoder."""
    filters_px: tuple[float, ...] = (1.0, 2.0)
    """Deviations of fixed filters (Gaussian derivatives), whose answers are features; empty for none."""
    stride: int = Field(1, ge=1)
    """Pixels from one patch to the next."""
    components: int = Field(16, ge=1)
    """Gaussians of the mixture."""
    covariance: Literal["full", "tied"] = "full"
    """Each Gaussian has a covariance of its own, or all have the same."""
    regularisation: float = Field(1e-3, gt=0)
    """Added to each variance of the standardised features."""
    passes: int = Field(10, ge=1)
    """Over all patches."""
    max_pictures: int = Field(2000, ge=1)
    """Normal pictures that are fitted to, and as many that the threshold is set on; of more, some by lot."""
    patches_per_picture: int = Field(64, ge=1)
    """Drawn by lot."""
    held_out: float = Field(0.2, gt=0, lt=1)
    """Share of the groups whose normal pictures set the threshold; nothing is fitted to them."""
    rule: Literal["quantile", "pareto"] = "pareto"
    """How: the quantile of their greatest scores, or that of a generalised Pareto distribution fitted to the
    highest fifth of these (Siffer et al. 2017), which tells lower rates than there are pictures for."""
    false_alarms: float = Field(0.05, gt=0, lt=1)
    """Share of normal pictures in which anything is told."""
    seed: int = Field(0, ge=0)
    """Of all that is drawn by lot."""
    batch_rows: int = Runtime(32, ge=1)
    """Pictures taken together."""

    @model_validator(mode="after")
    def _has_features(self) -> AnomalySpec:
        if not self.encoder and not self.filters_px:
            raise ValueError("patches have no features: set encoder, or some filters_px")
        if min(self.filters_px, default=1.0) < 0.5:
            raise ValueError("filters_px must be at least 0.5: what is narrower than a pixel has no slope")
        return self


class AnomalyInfo(Spec):
    """`anomaly.json`: what was fitted to what."""

    spec: AnomalySpec
    checkpoint: str
    """Digest of the checkpoint whose encoder gives features."""
    pictures: int
    """That were fitted to."""
    patches: int
    """Of these."""
    held_out: int
    """Normal pictures that the threshold was set on."""
    log_likelihoods: tuple[float, ...]
    """Mean over patches before each pass, nats."""
    threshold: float
    """Negative log-density from which on a pixel is told, nats."""
    spread: float
    """Deviation of the held out pictures' greatest scores, nats."""
