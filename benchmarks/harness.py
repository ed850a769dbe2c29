"""What all benchmarks share: peers in environments of their own, runs in turn, claims in a file."""

from __future__ import annotations

import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import venv
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / ".eagleray" / "benchmarks"
RESULTS = ROOT / "benchmarks" / "results"


@dataclass(frozen=True)
class Contender:
    """A program that does the work once and prints a JSON object as its last line.

    Attributes:
        name: for people.
        script: file in `contenders/`.
        python: interpreter of its environment.
        arguments: of the script.
    """

    name: str
    script: str
    python: str
    arguments: tuple[str, ...]

    def run(self) -> dict[str, Any]:
        """Run it once.

        Raises:
            RuntimeError: when it fails, with what it said.
        """
        command = [self.python, str(ROOT / "benchmarks" / "contenders" / self.script), *self.arguments]
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONWARNINGS": "ignore",
            "PYTHONPATH": str(_package()),  # peers train Eagleray's model, too
        }
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        if done.returncode:
            raise RuntimeError(f"{self.name} failed:\n{done.stderr[-3000:]}")
        return json.loads(done.stdout.strip().splitlines()[-1])


@dataclass(frozen=True)
class Claim:
    """A figure of ours beside others'.

    Attributes:
        claim: what is claimed.
        ours: our figure.
        peers: name → figure.
        ratio: ours over the best peer's, or the share that is meant.
        target: the least (or, with `below`, the most) that `ratio` may be.
        below: whether a smaller ratio is better.
        command: what prints it.
        machine: where.
    """

    claim: str
    ours: float
    peers: Mapping[str, float]
    ratio: float
    target: float
    command: str
    machine: str
    below: bool = False

    @property
    def met(self) -> bool:
        """Whether the target is reached."""
        return self.ratio <= self.target if self.below else self.ratio >= self.target


def environment(name: str, packages: Sequence[str]) -> str:
    """The interpreter of an environment with these packages, made if need be."""
    folder = WORK / f"venv-{name}"
    marker = folder / "installed"
    wanted = "\n".join(packages)
    if not marker.is_file() or marker.read_text() != wanted:
        print(f"installing {', '.join(packages)}", flush=True)
        venv.create(folder, with_pip=True, clear=True)
        pip = [str(folder / "bin" / "pip"), "install", "--quiet"]
        for package in packages:  # one by one, so that torch is there before what asks for it
            subprocess.run([*pip, package], check=True, stderr=subprocess.DEVNULL)
        marker.write_text(wanted)
    return str(folder / "bin" / "python")


def _package() -> Path:
    """A folder that the package is found in by its name, whatever this one's is."""
    link = WORK / "package" / "eagleray"
    link.parent.mkdir(parents=True, exist_ok=True)
    if not link.exists():
        link.symlink_to(ROOT, target_is_directory=True)
    return link.parent


def compare(contenders: Sequence[Contender], repeats: int) -> dict[str, list[dict[str, Any]]]:
    """Run contenders in turn, so that a busy moment of the machine hits all of them alike."""
    results: dict[str, list[dict[str, Any]]] = {one.name: [] for one in contenders}
    for _ in range(repeats):
        for one in contenders:
            results[one.name].append(one.run())
            print(f"  {one.name}: {results[one.name][-1]}", flush=True)
    return results


def medians(results: Mapping[str, Sequence[Mapping[str, float]]], figure: str) -> dict[str, float]:
    """Median of a figure by contender."""
    return {name: statistics.median(one[figure] for one in runs) for name, runs in results.items()}


def gpu() -> str:
    """Name of the GPU, which contenders use if there is one; empty if there is none."""
    if shutil.which("nvidia-smi") is None:
        return ""
    query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    found = subprocess.run(query, capture_output=True, text=True, check=False).stdout.splitlines()
    return found[0].strip() if found else ""


def has_bf16() -> bool:
    """Whether this CPU computes in bf16."""
    cpuinfo = Path("/proc/cpuinfo")
    return not cpuinfo.is_file() or "bf16" in cpuinfo.read_text()


def machine() -> str:
    """What this ran on."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [
            line.partition(":")[2].strip()
            for line in cpuinfo.read_text().splitlines()
            if "model name" in line
        ]
        model = names[0] if names else model
    words = [gpu(), f"{os.cpu_count()} cores", model, f"Python {sys.version.split()[0]}"]
    return ", ".join(word for word in words if word)


def publish(name: str, claims: Sequence[Claim]) -> None:
    """Print a line for each claim and write them to `results/NAME.json`."""
    RESULTS.mkdir(exist_ok=True)
    for one in claims:
        peers = ", ".join(f"{peer} {figure:,.1f}" for peer, figure in one.peers.items())
        sign = "at most" if one.below else "at least"
        verdict = "met" if one.met else "NOT met"
        print(
            f"{one.claim}: {one.ours:,.1f} against {peers}: {one.ratio:.2f}, {sign} {one.target}: {verdict}"
        )
    path = RESULTS / f"{name}.json"
    measured = {one.claim: {**asdict(one), "met": one.met} for one in claims}
    before = json.loads(path.read_text()) if path.is_file() else []
    others = {
        row["claim"]: row for row in before if row["claim"] not in measured
    }  # of a part that wasn't run
    path.write_text(json.dumps([*others.values(), *measured.values()], indent=1) + "\n")
