"""What all tests share: one started Ray."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A Ray of eight logical CPUs, started by the first test that needs one and shared by all."""
    import ray

    ray.init(
        address="local",  # never some other cluster of this machine
        num_cpus=8,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        runtime_env={"env_vars": {"OMP_NUM_THREADS": "1"}},
        _system_config={"prestart_worker_first_driver": False, "enable_worker_prestart": False},
    )
    yield
    ray.shutdown()
