"""Submitting a workflow through Ray's Jobs API, so that it stands in the dashboard with its logs."""

from __future__ import annotations

import shlex
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ..workflows.errors import EaglerayError


def submit(spec: Path, overrides: Sequence[str], address: str, wheel: Path, options: Sequence[str]) -> str:
    """Submit `eagleray run SPEC` as a job and return its submission id.

    Args:
        spec: the workflow file; it travels with the job.
        overrides: `--set` values.
        address: of the dashboard, `http://HEAD:8265`.
        wheel: this code, imported by the job and its workers.
        options: further words of the `run` command.

    Raises:
        EaglerayError: when no Jobs API answers at the address.
    """
    from ray.job_submission import JobSubmissionClient

    words = ["run", spec.name, "--address", "auto", *options]
    for override in overrides:
        words += ["--set", override]
    with tempfile.TemporaryDirectory() as folder:
        shutil.copyfile(spec, Path(folder) / spec.name)
        try:
            client = JobSubmissionClient(address)
            return client.submit_job(
                entrypoint=f"python -m eagleray.cli {shlex.join(words)}",
                runtime_env={"working_dir": folder, "py_modules": [str(wheel)]},
                metadata={"workflow": spec.stem},
            )
        except (ConnectionError, RuntimeError) as error:
            raise EaglerayError(
                f"no Jobs API answers at {address}: {str(error).splitlines()[0]}",
                "give the dashboard's address, http://HEAD:8265",
            ) from error
