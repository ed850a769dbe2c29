"""Ray Serve's own scaling policy, to be simulated beside ours."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import ray.serve.autoscaling_policy as ray_policies
from ray.serve._private.common import DeploymentID
from ray.serve.config import AutoscalingConfig, AutoscalingContext

from .scaling import Seen
from .simulating import Policy


def serves_own(**options: Any) -> Policy:  # noqa: ANN401 - as Serve's `AutoscalingConfig` takes them
    """Ray Serve's own default policy, for a simulation, by whose clock it goes."""
    config = AutoscalingConfig(**options)
    policy = ray_policies._apply_autoscaling_config(  # pyright: ignore[reportPrivateUsage]
        ray_policies.replica_queue_length_autoscaling_policy
    )
    least, most = config.min_replicas, config.max_replicas
    state: dict[str, Any] = {}

    def decide(seen: Seen, target: int) -> int:
        nonlocal state
        context = AutoscalingContext(
            deployment_id=DeploymentID("simulated"),
            deployment_name="simulated",
            app_name=None,
            current_num_replicas=seen.running,
            target_num_replicas=target,
            running_replicas=[],
            total_num_requests=seen.ongoing,
            total_queued_requests=0.0,
            aggregated_metrics={},
            raw_metrics={},
            capacity_adjusted_min_replicas=least,
            capacity_adjusted_max_replicas=most,
            policy_state=state,
            last_scale_up_time=None,
            last_scale_down_time=None,
            current_time=seen.now_s,
            config=config,
        )
        with patch.object(ray_policies.time, "time", return_value=seen.now_s):
            wanted, state = policy(context)
        return min(max(wanted, least), most)

    return decide
