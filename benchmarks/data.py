"""`make bench-data`: preparing and reading corpora, beside other libraries."""

from __future__ import annotations

import argparse
import sys

import inputs
from harness import WORK, Claim, Contender, compare, environment, machine, medians, publish

COMMAND = "make bench-data"
WORKERS = 2
BATCH = 64
PEERS = (
    "torch==2.14.1",  # what streaming's torchvision wants
    "torchvision==0.29.1",
    "datasets==4.8.5",  # 5.2 wants a name that no huggingface-hub which streaming takes has
    "mosaicml-streaming==0.13.0",
    "webdataset==1.0.2",
    "daft==0.7.26",
)


def decoding(name: str, size: int, repeats: int, peers: str) -> list[Claim]:
    """Decode, resize and normalise a folder of JPEG files."""
    folder = str(inputs.cifar() if name == "CIFAR-10" else inputs.photographs())
    arguments = (folder, str(size), str(WORKERS))
    ours = Contender("Eagleray", "decode_eagleray.py", sys.executable, arguments)
    others = [
        Contender("bare Pillow", "decode_pillow.py", sys.executable, arguments),
        Contender("DataLoader", "decode_torch.py", sys.executable, arguments),
        Contender("datasets", "decode_huggingface.py", peers, arguments),
        Contender("Daft", "decode_daft.py", peers, arguments),
    ]
    print(f"decode, resize and normalise {name} to {size} px, pictures/s", flush=True)
    rates = medians(compare([ours, *others], repeats), "items_per_s")
    mine = rates.pop("Eagleray")
    bare = rates.pop("bare Pillow")
    best = max(rates.values())
    where = machine()
    fastest, loop = (
        f"{name}: pictures/s against the fastest library",
        f"{name}: pictures/s against a bare loop",
    )
    return [
        Claim(fastest, mine, rates, mine / best, 1.0, COMMAND, where),
        Claim(loop, mine, {"bare Pillow": bare}, mine / bare, 0.85, COMMAND, where),
    ]


def listening(repeats: int) -> list[Claim]:
    """Decode recordings, bring them to 16 kHz, take their log-mel spectrograms."""
    arguments = (str(inputs.speech()), str(WORKERS))
    contenders = [
        Contender("Eagleray", "speech_eagleray.py", sys.executable, arguments),
        Contender("bare loop", "speech_bare.py", sys.executable, arguments),
        Contender("DataLoader", "speech_torch.py", sys.executable, arguments),
    ]
    print("decode speech clips to log-mel spectrograms, clips/s", flush=True)
    rates = medians(compare(contenders, repeats), "items_per_s")
    mine, bare, loader = rates["Eagleray"], rates["bare loop"], rates["DataLoader"]
    where = machine()
    name = "speech clips: clips/s against"
    return [
        Claim(f"{name} a DataLoader", mine, {"DataLoader": loader}, mine / loader, 1.0, COMMAND, where),
        Claim(f"{name} a bare loop", mine, {"bare loop": bare}, mine / bare, 0.85, COMMAND, where),
    ]


def reading(name: str, size: int, repeats: int, peers: str) -> list[Claim]:
    """Read a corpus back in shuffled batches of 64."""
    pictures = inputs.cifar() if name == "CIFAR-10" else inputs.photographs()
    corpus = str(inputs.corpus(pictures, size))
    contenders = [Contender("Eagleray", "read_eagleray.py", sys.executable, (corpus, str(size), str(BATCH)))]
    for peer in ("streaming", "webdataset"):
        work = str(WORK / f"{peer}-{pictures.name}-{size}")
        contenders.append(Contender(peer, f"read_{peer}.py", peers, (corpus, str(size), str(BATCH), work)))
    print(f"read {name} at {size} px in batches of {BATCH}, samples/s", flush=True)
    rates = medians(compare(contenders, repeats), "items_per_s")
    mine = rates.pop("Eagleray")
    ratio = mine / max(rates.values())
    return [Claim(f"{name}: samples/s read back", mine, rates, ratio, 1.5, COMMAND, machine())]


def memory(repeats: int) -> list[Claim]:
    """Prepare a corpus, and one of ten times the size."""
    folder = str(inputs.photographs())
    contenders = [
        Contender(str(count), "memory_eagleray.py", sys.executable, (folder, str(count), "224"))
        for count in (1_000, 10_000)
    ]
    print("peak memory of a preprocess stage, MB", flush=True)
    peaks = medians(compare(contenders, repeats), "peak_mb")
    ratio = peaks["10000"] / peaks["1000"]
    claim = "peak memory on 10,000 photographs against 1,000, MB"
    return [
        Claim(claim, peaks["10000"], {"1,000": peaks["1000"]}, ratio, 1.1, COMMAND, machine(), below=True)
    ]


def main() -> None:
    """Run all of it, or a part."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", choices=("decoding", "listening", "reading", "memory"))
    options = parser.parse_args()
    peers = environment("data", PEERS)
    claims: list[Claim] = []
    for name, size in (("CIFAR-10", 32), ("photographs", 224)):
        if options.only in (None, "decoding"):
            claims += decoding(name, size, options.repeats, peers)
        if options.only in (None, "reading"):
            claims += reading(name, size, options.repeats, peers)
    if options.only in (None, "listening"):
        claims += listening(options.repeats)
    if options.only in (None, "memory"):
        claims += memory(max(1, options.repeats // 2))
    publish("data", claims)


if __name__ == "__main__":
    main()
