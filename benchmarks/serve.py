"""`make bench-serve`: replicas by objective beside Ray Serve's default policy, in a simulation."""

from __future__ import annotations

import argparse
import sys

from harness import Claim, Contender, compare, machine, medians, publish

COMMAND = "make bench-serve"
TRACES = ("steady", "burst", "diurnal", "flash crowd", "poison")
LATENCY_S, MOST = 0.2, 12
LEAST_SAVED = 0.7
"""Of the replica-seconds of Serve's default policy."""


def scaling() -> list[Claim]:
    """Replica-seconds, and requests within the objective, of each trace."""
    claims: list[Claim] = []
    for trace in TRACES:
        contenders = [
            Contender(name, "scaling_serving.py", sys.executable, (trace, who, str(LATENCY_S), str(MOST)))
            for name, who in (("Eagleray", "ours"), ("Serve's default", "default"), ("tuned", "tuned"))
        ]
        results = compare(contenders, 1)  # the same whenever it runs
        seconds, within = medians(results, "replica_s"), medians(results, "within")
        title = f"{trace}, simulated:"
        claims += [
            Claim(
                f"{title} replica-seconds against Serve's default policy",
                seconds.pop("Eagleray"),
                seconds,
                results["Eagleray"][0]["replica_s"] / seconds["Serve's default"],
                LEAST_SAVED,
                COMMAND,
                machine(),
                below=True,
            ),
            Claim(
                f"{title} % of requests within {LATENCY_S:g} s against Serve's default policy",
                100 * within.pop("Eagleray"),
                {name: 100 * share for name, share in within.items()},
                results["Eagleray"][0]["within"] / within["Serve's default"],
                1.0,
                COMMAND,
                machine(),
            ),
        ]
    return claims


def main() -> None:
    """Run all of it, or a part."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=("scaling",))
    parser.parse_args()
    publish("serve", scaling())


if __name__ == "__main__":
    main()
