"""What all tests share: one started Ray, one S3 server."""

from __future__ import annotations

import logging
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent / "workflows" / "packages"))

from workflow_harness import KEY, SECRET

settings.register_profile("no-deadline", deadline=None)  # the machine may be busy
settings.load_profile("no-deadline")


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
        _system_config={
            "prestart_worker_first_driver": False,
            "enable_worker_prestart": False,
            "metrics_report_interval_ms": 1000,
        },
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def s3_uri() -> Iterator[Callable[[], str]]:
    """Gives URIs of fresh prefixes, keys included, on an S3-compatible server."""
    server_module = pytest.importorskip("moto.server")
    boto3 = pytest.importorskip("boto3")
    server = server_module.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    options = {"aws_access_key_id": KEY, "aws_secret_access_key": SECRET, "region_name": "us-east-1"}
    client = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}", **options)
    client.create_bucket(Bucket="artifacts")
    query = f"endpoint_override=127.0.0.1:{port}&scheme=http&region=us-east-1"
    yield lambda: f"s3://{KEY}:{SECRET}@artifacts/{uuid.uuid4().hex}?{query}"
    server.stop()
