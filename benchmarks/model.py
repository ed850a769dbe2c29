"""`make bench-model`: steps a second of Swin V2 beside transformers', and what 16K tokens of context cost.

Each contender runs alone in a process of its own, transformers in an environment of its own. Where there is a
GPU, it is the GPU that is measured, with larger batches.
"""

from __future__ import annotations

import argparse
import sys

from harness import Claim, Contender, compare, environment, gpu, has_bf16, machine, medians, publish

COMMAND = "make bench-model"
PEERS = ("torch==2.13.0", "numpy==2.4.6", "transformers==5.24.0")
SHAPES = {
    "Swin V2 tiny at 256 px": ("256", "8", "4", "96", "2,2,6,2", "3,6,12,24"),
    "Swin V2 of CIFAR-10's size": ("32", "4", "2", "32", "2,2,2", "2,4,8"),
}
BATCHES = {"Swin V2 tiny at 256 px": (4, 64), "Swin V2 of CIFAR-10's size": (64, 1024)}
"""Pictures of a step on a CPU and on a GPU."""
CONTEXTS = {  # memory and window at a context
    "a window of 2,048": lambda context: (context, 2048),
    "all of it remembered": lambda context: (context, 0),
}
SHORT, LONG = 2_048, 16_384
DEVICE = "GPU" if gpu() else "CPU"
PRECISIONS = ("float32", "bfloat16") if gpu() or has_bf16() else ("float32",)
"""A CPU without bf16 would take minutes a step to imitate it."""


def swin(name: str, dtype: str, mode: str, repeats: int, peers: str) -> list[Claim]:
    """Forward and backward steps a second at one shape and precision."""
    batch = BATCHES[name][DEVICE == "GPU"]
    arguments = (dtype, *SHAPES[name], str(batch), mode)
    contenders = [
        Contender("Eagleray", "swin_eagleray.py", sys.executable, arguments),
        Contender("transformers", "swin_transformers.py", peers, arguments),
    ]
    precision = "fp32" if dtype == "float32" else "bf16"
    title = f"{name}, {batch} a step, {precision}, {mode}, on a {DEVICE}: steps/s"
    print(title, flush=True)
    found = medians(compare(contenders, repeats), "steps_per_s")
    ours, theirs = found["Eagleray"], found["transformers"]
    return [Claim(title, ours, {"transformers": theirs}, ours / theirs, 1.3, COMMAND, machine())]


def text(repeats: int) -> list[Claim]:
    """Time a token and peak memory after 16,384 tokens, against those after 2,048."""
    claims: list[Claim] = []
    for name, sizes in CONTEXTS.items():
        contenders = [
            Contender(
                str(context),
                "text_eagleray.py",
                sys.executable,
                (str(context), *(str(size) for size in sizes(context))),
            )
            for context in (SHORT, LONG)
        ]
        print(f"Transformer-XL, {name}", flush=True)
        results = compare(contenders, repeats)
        for figure, unit, most in (("us_per_token", "µs a token", 1.2), ("peak_mb", "peak memory, MB", 1.5)):
            found = medians(results, figure)
            title = f"Transformer-XL, {name}: {unit} at 16K of context against 2K, on a {DEVICE}"
            ours, short = found[str(LONG)], found[str(SHORT)]
            claims.append(
                Claim(title, ours, {"2K": short}, ours / short, most, COMMAND, machine(), below=True)
            )
    return claims


def main() -> None:
    """Run all of it, or a part."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", choices=("swin", "compiled", "text"))
    parser.add_argument("--peers", help="interpreter that has transformers; by default one is made")
    options = parser.parse_args()
    for mode, part in (("eager", "swin"), ("compiled", "compiled")):
        if options.only in (None, part):
            peers = options.peers or environment("model", PEERS)
            for name in SHAPES:
                for dtype in PRECISIONS:
                    publish("model", swin(name, dtype, mode, options.repeats, peers))
    if options.only in (None, "text"):
        publish("model", text(options.repeats))


if __name__ == "__main__":
    main()
