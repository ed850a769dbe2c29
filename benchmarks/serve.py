"""`make bench-serve`: replicas by objective beside Ray Serve's default policy, in a simulation; a real
deployment beside what the simulation foretells; a served bundle beside the same model under FastAPI,
LitServe and BentoML; and what is left of it under faults and load.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from harness import ROOT, Claim, Contender, compare, environment, machine, medians, publish

COMMAND = "make bench-serve"
TRACES = ("steady", "burst", "diurnal", "flash crowd", "poison")
LATENCY_S, MOST = 0.2, 12
LEAST_SAVED = 0.7
"""Of the replica-seconds of Serve's default policy."""
PEERS = (
    *("aiohttp", "av", "fastapi", "numpy<3", "onnxruntime", "pillow", "pyarrow", "pydantic", "resvg-py"),
    *("simplejpeg", "soundfile", "soxr", "tokenizers", "uvicorn", "litserve==0.2.19", "bentoml==1.4.40"),
)
P99_MS, MORE_ALONE_MS, TIMES_AS_MANY = 100.0, 3.0, 1.2
ADMITTED_MS, MORE_MIB, RECOVERY_S = 200.0, 100, 10
"""Twice the objective of 100 ms; memory that replicas may grow by; and when all must be well again."""
PER_S, CLIENTS = 4, 32
"""As `contenders/serving.py` has them."""
MOST_APART, POINTS_APART = 1.2, 5.0
"""Of a real deployment from what the simulation foretells of it."""


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


def live(bundle: Path, repeats: int) -> list[Claim]:
    """Replica-seconds and requests in time of a real deployment beside what the simulation foretells."""
    contenders = [Contender("Eagleray", "scaling_live.py", sys.executable, (str(bundle),))]
    results = compare(contenders, repeats)
    figures = {
        name: medians(results, name)["Eagleray"]
        for name in ("replica_s", "simulated_replica_s", "within", "simulated_within")
    }
    seconds, foretold = figures["replica_s"], figures["simulated_replica_s"]
    share, said = 100 * figures["within"], 100 * figures["simulated_within"]
    return [
        Claim(
            "live: replica-seconds beside the simulation's, the larger over the smaller",
            seconds,
            {"simulated": foretold},
            max(seconds / foretold, foretold / seconds),
            MOST_APART,
            COMMAND,
            machine(),
            below=True,
        ),
        Claim(
            "live: % of requests in time beside the simulation's, points apart",
            share,
            {"simulated": said},
            abs(share - said),
            POINTS_APART,
            COMMAND,
            machine(),
            below=True,
        ),
    ]


def quickstart() -> Path:
    """The bundle of the quickstart's last run in this checkout."""
    bundles = sorted(
        (ROOT / ".eagleray" / "store").glob("content/*/bundle.json"), key=lambda path: path.stat().st_mtime
    )
    if not bundles:
        sys.exit("there is no bundle here: run `make run` first, or name one with --bundle")
    return bundles[-1].parent


def answering(bundle: Path, repeats: int) -> list[Claim]:
    """Picture, speech and question to answer, HTTP included."""
    python = environment("serve", PEERS)
    contenders = [
        Contender("Eagleray", "serve_eagleray.py", sys.executable, (str(bundle),)),
        *(
            Contender(name, f"serve_{name.lower()}.py", python, (str(bundle),))
            for name in ("FastAPI", "LitServe", "BentoML")
        ),
    ]
    results = compare(contenders, repeats)
    alone, steady = medians(results, "p50_alone_ms"), medians(results, "p99_steady_ms")
    full = medians(results, "answers_per_s")
    ours = {name: figures.pop("Eagleray") for name, figures in (("a", alone), ("s", steady), ("f", full))}

    def claim(what: str, mine: float, peers: dict[str, float], ratio: float, target: float) -> Claim:
        return Claim(f"served: {what}", mine, peers, ratio, target, COMMAND, machine(), below=target == 1.0)

    return [
        claim(f"p99, ms, at {PER_S} answers a second", ours["s"], steady, ours["s"] / P99_MS, 1.0),
        claim(
            f"p50, ms, alone, over FastAPI's and {MORE_ALONE_MS:g} ms",
            ours["a"],
            alone,
            ours["a"] / (alone["FastAPI"] + MORE_ALONE_MS),
            1.0,
        ),
        claim(
            f"answers a second to {CLIENTS} clients",
            ours["f"],
            full,
            ours["f"] / max(full.values()),
            TIMES_AS_MANY,
        ),
    ]


def faults(bundle: Path) -> list[Claim]:
    """Ten times what can be done, and parts of what serves killed under load."""
    contender = Contender("Eagleray", "serving_faults.py", sys.executable, (str(bundle),))
    (found,) = compare([contender], 1)["Eagleray"]

    def claim(what: str, ours: float, ratio: float, beside: dict[str, float], *, below: bool = True) -> Claim:
        return Claim(f"faults: {what}", ours, beside, ratio, 1.0, COMMAND, machine(), below=below)

    over = found["overload"]
    p99, share, grown = over["p99_admitted_ms"], over["refused_share_with_retry_after"], over["more_mib"]
    others, seconds = sum(over["other_statuses"].values()), over["recovery_s"]
    rates = {
        "capacity, a second": over["capacity_per_s"],
        "offered, times that": over["offered_times"],
        "answered, a second": over["answered_per_s"],
    }
    title = "ten times what can be done, 60 s:"
    claims = [
        claim(f"{title} p99 of what is answered, ms, in {ADMITTED_MS:g}", p99, p99 / ADMITTED_MS, rates),
        claim(f"{title} share of refusals with Retry-After", share, share, rates, below=False),
        claim(f"{title} outcomes but answers, 429 and 503", others, others, rates),
        claim(f"{title} MiB more in replicas, in {MORE_MIB}", grown, grown / MORE_MIB, rates),
        claim(f"{title} s until all is well again, in {RECOVERY_S}", seconds, seconds / RECOVERY_S, rates),
    ]
    for part in ("replica", "proxy", "controller"):
        one = found[part]
        beside = {"asked": one["asked"], "not answered, each with an error": one["not_answered"]}
        title = f"{part} killed under load: s until all are answered, in {RECOVERY_S}"
        claims.append(claim(title, one["recovery_s"], one["recovery_s"] / RECOVERY_S, beside))
    return claims


def main() -> None:
    """Run all of it, or a part."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=("scaling", "live", "answering", "faults"))
    parser.add_argument("--bundle", type=Path, help="of the quickstart: the folder of its export's artifact")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    if options.only in (None, "scaling"):
        publish("serve", scaling())
    if options.only in (None, "live"):
        publish("serve", live(options.bundle or quickstart(), options.repeats))
    if options.only in (None, "answering"):
        publish("serve", answering(options.bundle or quickstart(), options.repeats))
    if options.only in (None, "faults"):
        publish("serve", faults(options.bundle or quickstart()))


if __name__ == "__main__":
    main()
