"""Submitting a workflow through Ray's Jobs API, so that it stands in the dashboard with its logs."""

from __future__ import annotations

import asyncio
import logging
import shlex
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from ..workflows.errors import EaglerayError
from .connect import WORKER_ENVIRONMENT
from .package import package


def submit(spec: Path, overrides: Sequence[str], address: str, options: Sequence[str]) -> str:
    """Submit `eagleray run SPEC` as a job, with this code, and return its submission id.

    Args:
        spec: the workflow file; it travels with the job.
        overrides: `--set` values.
        address: of the dashboard, `http://HEAD:8265`.
        options: further words of the `run` command.

    Raises:
        EaglerayError: when no Jobs API answers at the address.
    """
    from ray.job_submission import JobSubmissionClient

    logging.getLogger("ray").setLevel(logging.ERROR)  # each package that is uploaded has two lines
    words = ["run", spec.name, "--address", "auto", *options]
    for override in overrides:
        words += ["--set", override]
    with tempfile.TemporaryDirectory() as folder:
        travelling = Path(folder) / "job"
        travelling.mkdir()
        shutil.copyfile(spec, travelling / spec.name)
        try:
            client = JobSubmissionClient(address)
            return client.submit_job(
                entrypoint=f"python -m eagleray.cli {shlex.join(words)}",
                runtime_env={
                    "working_dir": str(travelling),
                    "py_modules": [str(package(Path(folder)))],
                    "env_vars": WORKER_ENVIRONMENT,
                },
                metadata={"workflow": spec.stem},
            )
        except (ConnectionError, RuntimeError) as error:
            raise EaglerayError(
                f"no Jobs API answers at {address}: {str(error).splitlines()[0]}",
                "give the dashboard's address, http://HEAD:8265, and its token in RAY_AUTH_TOKEN",
            ) from error


def follow(job: str, address: str, write: Callable[[str], None]) -> bool:
    """Pass a job's log on until it ends; whether it succeeded."""
    from ray.job_submission import JobStatus, JobSubmissionClient

    client = JobSubmissionClient(address)

    async def tail() -> None:
        async for text in client.tail_job_logs(job):
            write(text.rstrip("\n"))

    asyncio.run(tail())
    return client.get_job_status(job) == JobStatus.SUCCEEDED
