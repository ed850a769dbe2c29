"""`make bench-train`: steps a second beside other loops, the pipeline's bubble, what half precision saves.

Each contender runs alone in a process of its own, peers in an environment of their own. Where there is a GPU,
it is the GPU that is measured, with a larger model; what needs one says so where there is none.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from harness import WORK, Claim, Contender, compare, environment, gpu, has_bf16, machine, medians, publish

COMMAND = "make bench-train"
PEERS = ("torch==2.13.0", "numpy==2.4.6", "pydantic==2.14.4", "accelerate==1.15.0", "lightning==2.6.6")
DEVICE = gpu() or "a CPU"
TEXTS = WORK / "corpus-texts" / "output"
STEPS = 400 if gpu() else 300
DENSITY, COMPRESSED_STEPS = 0.1, 1500
BUBBLES = (("gpipe", 4), ("1f1b", 4), ("1f1b", 8), ("zero-bubble", 8))
"""Schedules and microbatches whose bubble is measured, of two pipeline workers."""


def claim(
    title: str, ours: float, peers: dict[str, float], target: float, ratio: float | None = None, **more: bool
) -> Claim:
    """Ours over the best peer's, unless another ratio is meant."""
    found = ours / max(peers.values()) if ratio is None else ratio
    return Claim(title, ours, peers, found, target, COMMAND, machine(), **more)


def loops(repeats: int, peers: str) -> list[Claim]:
    """One process, the same model, batches, loss and optimizer."""
    print(f"one process on {DEVICE}: steps/s", flush=True)
    contenders = [
        Contender("Eagleray", "train_eagleray.py", sys.executable, ()),
        Contender("a bare loop", "train_plain.py", sys.executable, ()),
        Contender("Accelerate", "train_accelerate.py", peers, ()),
        Contender("Fabric", "train_fabric.py", peers, ()),
    ]
    found = medians(compare(contenders, repeats), "steps_per_s")
    ours = found.pop("Eagleray")
    ratio = ours / max(found["Accelerate"], found["Fabric"])
    return [claim(f"multimodal model, one process, fp32, on {DEVICE}: steps/s", ours, found, 1.0, ratio)]


def launched(repeats: int) -> list[Claim]:
    """The whole loop on a corpus through Ray Train, and the same under torchrun."""
    from inputs import texts

    title = "text model on speeches, two workers, on a CPU: steps/s through Ray Train and under torchrun"
    print(title, flush=True)
    contenders = [
        Contender(name, "train_launched.py", sys.executable, (how, "2", str(texts()), "80"))
        for name, how in (("Ray Train", "ray"), ("torchrun", "torchrun"))
    ]
    found = medians(compare(contenders, repeats), "steps_per_s")
    return [claim(title, found["Ray Train"], {"torchrun": found["torchrun"]}, 0.97)]


def bubbles(repeats: int) -> list[Claim]:
    """Share of a step in which a pipeline's worker waits, beside what its schedule says."""
    claims: list[Claim] = []
    for schedule, count in BUBBLES:
        title = f"pipeline of two, {schedule}, {count} microbatches, on a CPU: bubble against theory, %"
        print(title, flush=True)
        contender = Contender("Eagleray", "train_bubble.py", sys.executable, (schedule, str(count)))
        runs = compare([contender], repeats)
        ours, theory = (100 * medians(runs, key)["Eagleray"] for key in ("bubble", "theory"))
        off = abs(ours - theory) / theory
        claims.append(claim(title, ours, {"theory": theory}, 0.15, off, below=True))
    return claims


def saving(repeats: int) -> list[Claim]:
    """What training stands still for when a checkpoint is written beside it, and when it waits for that."""
    from inputs import texts

    title = "checkpoint of 20 million parameters and AdamW, two workers, on a CPU: training stands still, s"
    print(title, flush=True)
    runs = compare([Contender("Eagleray", "train_saving.py", sys.executable, ("2", str(texts())))], repeats)
    beside, alone = (medians(runs, f"{how}_s")["Eagleray"] for how in ("beside", "alone"))
    return [claim(title, beside, {"waiting for it": alone}, 0.1, beside / alone, below=True)]


def compression(repeats: int) -> list[Claim]:
    """Bytes on the wire beside whole gradients summed up, and what is learned from what was sent."""
    from inputs import texts

    claims: list[Claim] = []
    for workers in (2, 4, 8, 16):
        print(f"bytes over loopback, {workers} workers", flush=True)
        contenders = [
            Contender(how, "train_wire.py", sys.executable, (how, str(workers), str(DENSITY)))
            for how in ("top-k", "dense")
        ]
        found = medians(compare(contenders, repeats), "bytes")
        claims.append(
            claim(
                f"top-k, density {DENSITY:g}, Adagrad, {workers} workers: kB a step over loopback, saved",
                found["top-k"] / 1000,
                {"all-reduce": found["dense"] / 1000},
                0.65,
                1 - found["top-k"] / found["dense"],
            )
        )
    print(f"text model on {DEVICE}, Adagrad: compressed gradients", flush=True)
    folder = TEXTS if gpu() else texts()
    contenders = [
        Contender(
            name, "precision_text.py", sys.executable, ("fp32", str(COMPRESSED_STEPS), str(folder), density)
        )
        for name, density in (("top-k", str(DENSITY)), ("dense", "1"))
    ]
    losses = medians(compare(contenders, 1), "val_loss")
    off = losses["top-k"] / losses["dense"] - 1
    kind = f"top-k of density {DENSITY:g}, four sources"
    title = f"text model, Adagrad, {COMPRESSED_STEPS} steps, {kind}, on {DEVICE}"
    claims.append(
        claim(
            f"{title}: validation loss beside whole gradients', nats",
            losses["top-k"],
            {"dense": losses["dense"]},
            0.01,
            off,
            below=True,
        )
    )
    return claims


def batching(repeats: int) -> list[Claim]:
    """Real tokens over padded ones, and what that is worth."""
    from inputs import prompts, stamps, texts

    claims: list[Claim] = []
    folders = {"captions": stamps(), "speeches": texts(), "clips": prompts()}
    titles = {"captions": "Tux Paint captions", "speeches": "State of the Union", "clips": "speech clips"}
    meshes = {
        "alone": "one worker, 4,096 tokens a step",
        "two": "two, 4,096",
        "eight": "eight, 8 × 4,096",
    }
    ways = {"in groups": "0.92", "longest of a step": "0.01", "longest of all": "0"}

    def contenders(name: str, what: str, hows: Sequence[str]) -> list[Contender]:
        script = "train_batching.py", sys.executable
        return [Contender(how, *script, (name, what, ways[how], str(folders[name]))) for how in hows]

    for name, title in titles.items():
        print(f"tokens and padding: {title}", flush=True)
        runs = compare(contenders(name, "fill", ("in groups", "longest of a step")), 1)
        for key, mesh in meshes.items():
            found = medians(runs, key)
            ours = found.pop("in groups")
            claims.append(claim(f"{title}, {mesh}: real over padded tokens", ours, found, 0.92, ours))
    found = medians(compare(contenders("clips", "speed", tuple(ways)), repeats), "tokens_per_s")
    title = f"{titles['clips']}, one worker, on {DEVICE}: tokens/s of training"
    return [*claims, claim(title, found.pop("in groups"), found, 1.0)]


def precision(repeats: int) -> list[Claim]:
    """Half precision and the controller beside fp32: memory, steps/s, validation loss."""
    if not (gpu() or has_bf16()):
        print("neither a GPU nor a CPU with bf16: what half precision saves is not measured here", flush=True)
        return []
    formats = ("fp32", "bf16", "fp16", "dynamic", *(("fp8",) if gpu() else ()))
    contenders = [
        Contender(name, "precision_text.py", sys.executable, (name, str(STEPS), str(TEXTS)))
        for name in formats
    ]
    print(f"text model on {DEVICE}: number formats", flush=True)
    runs = compare(contenders, repeats)
    losses, memory = medians(runs, "val_loss"), medians(runs, "first_steps_peak_mb")
    speeds = medians(runs, "steps_per_s")
    claims: list[Claim] = []
    for name in formats[1:]:
        title = f"text model in {name}, {STEPS} steps, on {DEVICE}"
        off = abs(losses[name] / losses["fp32"] - 1)
        claims += [
            claim(
                f"{title}: validation loss beside fp32's, nats",
                losses[name],
                {"fp32": losses["fp32"]},
                0.005,
                off,
                below=True,
            ),
            claim(f"{title}: steps/s beside fp32", speeds[name], {"fp32": speeds["fp32"]}, 1.0),
        ]
        if gpu():
            saved = 1 - memory[name] / memory["fp32"]
            claims.append(
                claim(
                    f"{title}: peak memory beside fp32's, MB, saved",
                    memory[name],
                    {"fp32": memory["fp32"]},
                    0.4,
                    saved,
                )
            )
    if gpu():
        for name, share in medians(runs, "mfu").items():
            print(f"  {name}: {share:.1%} of the device's best speed in that format (MFU)", flush=True)
    return claims


def compiled(repeats: int) -> list[Claim]:
    """Layers compiled by torch.compile beside eager ones."""
    if not gpu():
        print("no GPU: torch.compile is not measured here", flush=True)
        return []
    contenders = [
        Contender(mode, "precision_text.py", sys.executable, ("bf16", "60", str(TEXTS), mode))
        for mode in ("eager", "compiled")
    ]
    speeds = medians(compare(contenders, repeats), "steps_per_s")
    title = f"text model in bf16 on {DEVICE}, layers compiled: steps/s beside eager"
    return [claim(title, speeds["compiled"], {"eager": speeds["eager"]}, 1.0)]


def eight_bits(repeats: int) -> list[Claim]:
    """A model whose products are large enough for 8 bits, beside 16."""
    if not gpu():
        print("no GPU: fp8 is not measured here", flush=True)
        return []
    contenders = [
        Contender(name, "precision_text.py", sys.executable, (name, "40", str(TEXTS), "wide"))
        for name in ("bf16", "fp8")
    ]
    runs = compare(contenders, repeats)
    for name, share in medians(runs, "mfu").items():
        print(f"  {name}: {share:.1%} of the device's best speed in that format (MFU)", flush=True)
    title = f"text model of 400 million parameters in fp8 on {DEVICE}"
    speeds, losses = medians(runs, "steps_per_s"), medians(runs, "val_loss")
    off = abs(losses["fp8"] / losses["bf16"] - 1)
    peer = {"bf16": losses["bf16"]}
    return [
        claim(f"{title}: steps/s", speeds["fp8"], {"bf16": speeds["bf16"]}, 1.0),
        claim(f"{title}, 40 steps: validation loss, nats", losses["fp8"], peer, 0.005, off, below=True),
    ]


def plans(repeats: int) -> list[Claim]:
    """What a plan foretells beside what a GPU takes."""
    if not gpu():
        print("no GPU: plans are not held to one here", flush=True)
        return []
    claims: list[Claim] = []
    for name in ("text", "multimodal"):
        for precision in ("fp32", "bf16"):
            one = Contender("Eagleray", "train_plan.py", sys.executable, (name, precision))
            runs = compare([one], repeats)
            foretold, measured = (medians(runs, f"{how}_mb")["Eagleray"] for how in ("foretold", "measured"))
            title = f"{name} model in {precision} on {DEVICE}: memory as planned, MB"
            off = abs(foretold / measured - 1)
            claims.append(claim(title, foretold, {"measured": measured}, 0.1, off, below=True))
    return claims


def main() -> None:
    """Run all of it, or a part."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parts = (
        "loops",
        "launched",
        "bubbles",
        "saving",
        "compression",
        "batching",
        "precision",
        "compiled",
        "fp8",
        "plans",
    )
    parser.add_argument("--only", choices=parts, nargs="*", default=parts)
    parser.add_argument("--peers", help="interpreter that has the peers; by default one is made")
    options = parser.parse_args()
    if "loops" in options.only:
        publish("train", loops(options.repeats, options.peers or environment("train", PEERS)))
    for name, part in (
        ("launched", launched),
        ("bubbles", bubbles),
        ("saving", saving),
        ("compression", compression),
        ("batching", batching),
        ("precision", precision),
        ("compiled", compiled),
        ("fp8", eight_bits),
        ("plans", plans),
    ):
        if name in options.only and (claims := part(options.repeats)):
            publish("train", claims)


if __name__ == "__main__":
    main()
