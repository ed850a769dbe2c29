"""`make bench-domains`: what the three domains' models take, and what simpler means find.

It reads what `eagleray run examples/financial_reports.yaml` left, by stages, and of
`examples/circuit_boards.yaml` the corpus `boards` and the bundle.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path

import numpy as np
import onnx
from harness import WORK, Claim, Contender, compare, environment, machine, medians, publish

from eagleray.actors.training.anomalies import gather, told
from eagleray.actors.training.anomaly import marks_of, normal_rows
from eagleray.actors.training.metrics import Bootstrap, shown
from eagleray.pipelines.bundle import DOCUMENT, graph_file, read_info
from eagleray.pipelines.reading import CorpusReader

COMMAND = "make bench-domains"
PARTS = {
    "segment": ("checkpoint", "bundle"),
    "pages": ("bundle", "corpus"),
    "topics": ("corpus", "report"),
    "anomalies": ("boards",),
    "edge": ("board_bundle",),
}
"""Part → the arguments that it reads."""
ANOMALIB = ("torch==2.13.0", "torchvision==0.28.0", "anomalib==2.7.0", "pydantic>=2.14")
PEERS = ("patchcore-filters", "padim-filters", "patchcore-resnet18", "padim-resnet18")
NORMAL_TILES = 100
"""That all learn from: PatchCore's choice of what to remember takes time by their square."""
PAGES = (25, 50, 100, 200)
TILE, TILES = 640, 40
"""Side of a board's tile in pixels, and how many are assessed."""


def main() -> None:
    """Run the parts that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=PARTS, action="append", help="parts to run; all by default")
    parser.add_argument("--checkpoint", type=Path, help="of the stage `topics`")
    parser.add_argument("--bundle", type=Path, help="of the stage `export`, with its int8 form")
    parser.add_argument("--corpus", type=Path, help="of the stage `news`")
    parser.add_argument("--report", type=Path, help="of the stage `evaluate-topics`")
    parser.add_argument("--boards", type=Path, help="of the stage `boards`")
    parser.add_argument("--board-bundle", type=Path, help="of circuit boards' `export`, with its int8 form")
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    parts = given.only or PARTS
    missing = sorted({name for part in parts for name in PARTS[part] if getattr(given, name) is None})
    if missing:
        parser.error(f"the parts {', '.join(parts)} need {', '.join(f'--{name}' for name in missing)}")
    claims: list[Claim] = []
    functions = {
        **{"segment": segment, "pages": pages, "topics": topics},
        **{"anomalies": anomalies, "edge": edge},
    }
    for part in parts:
        claims += functions[part](given)
    publish("domains", claims)


def segment(given: argparse.Namespace) -> list[Claim]:
    """One segment at a time: eight bits beside eager torch; and what the weights take."""
    reading = read_info(given.bundle).document
    assert reading is not None
    length = str(reading.length)
    contenders = [
        Contender(name, "domain_segment.py", sys.executable, (kind, str(where), length))
        for name, kind, where in (
            ("int8", "int8", given.bundle),
            ("ONNX fp32", "onnx", given.bundle),
            ("torch fp32", "eager", given.checkpoint),
        )
    ]
    found = medians(compare(contenders, given.repeats), "p50_ms")
    ours, eager = found["int8"], found["torch fp32"]
    peers = {name: value for name, value in found.items() if name != "int8"}
    sizes = [weight_bytes(given.bundle / graph_file(DOCUMENT, form)) for form in ("int8", None)]
    return [
        claim("a financial segment in int8, p50, ms, over eager fp32", ours, peers, ours / eager, 0.5),
        claim("a financial segment in int8, p50, ms", ours, {"at most": 8.0}, ours / 8.0, 1.0),
        claim("int8 weights, bytes", sizes[0], {"fp32": sizes[1]}, sizes[0] / sizes[1], 0.26),
    ]


def pages(given: argparse.Namespace) -> list[Claim]:
    """Reports of more and more pages: time by pages, and memory."""
    text = WORK / "page.txt"
    text.parent.mkdir(parents=True, exist_ok=True)
    rows = CorpusReader(given.corpus, "test").table(np.arange(20), ["text"])["text"].to_pylist()
    text.write_text(". ".join(rows))
    contenders = [
        Contender(
            f"{count} pages", "domain_pages.py", sys.executable, (str(given.bundle), str(count), str(text))
        )
        for count in PAGES
    ]
    results = compare(contenders, given.repeats)
    peaks = medians(results, "peak_mib")
    each = {
        name: 1e6 * statistics.median(one["seconds"] / one["tokens"] for one in runs)
        for name, runs in results.items()
    }
    first, last = f"{PAGES[0]} pages", f"{PAGES[-1]} pages"
    more = peaks[last] - peaks[first]
    return [
        claim(
            "a token of 200 pages, microseconds",
            each[last],
            {first: each[first]},
            each[last] / each[first],
            1.25,
        ),
        claim("200 pages, MiB more than 25", more, {"at most": 256.0}, more / 256.0, 1.0),
    ]


def topics(given: argparse.Namespace) -> list[Claim]:
    """Topics of R8's test split beside a linear model of TF-IDF (scikit-learn)."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    def read(split: str) -> tuple[list[str], list[str]]:
        reader = CorpusReader(given.corpus, split)
        table = reader.table(np.arange(len(reader)), ["text", "category"])
        return table["text"].to_pylist(), table["category"].to_pylist()

    linear = make_pipeline(TfidfVectorizer(sublinear_tf=True), LogisticRegression(C=30, max_iter=2000))
    (texts, labels), (more, theirs) = read("train"), read("val")
    linear.fit([*texts, *more], [*labels, *theirs])
    texts, labels = read("test")
    peer = 100 * float(linear.score(texts, labels))
    print(f"  linear TF-IDF: {peer:.1f} % of {len(texts)}", flush=True)
    metrics = json.loads((given.report / "report.json").read_text())["metrics"]
    (ours,) = (100 * one["value"] for one in metrics if one["name"] == "documents right, all")
    beside = claim("R8 topics right, per cent", ours, {"TF-IDF": peer}, ours / peer, 1.0, below=False)
    goal = claim("R8 topics right, per cent of all", ours, {"goal": 91.4}, ours / 91.4, 1.0, below=False)
    return [goal, beside]


def edge(given: argparse.Namespace) -> list[Claim]:
    """Tiles of boards on one core, by how much windows overlap and by form; and memory."""
    tiles = _tiles(WORK / "tiles")
    contenders = [
        Contender(
            name, "domain_edge.py", sys.executable, (str(given.board_bundle), str(tiles), form, overlap)
        )
        for name, form, overlap in (
            ("as served", "", "0.5"),
            ("an eighth overlaps", "", "0.125"),
            ("an eighth overlaps, int8", "int8", "0.125"),
            ("none overlaps, int8", "int8", "0"),
        )
    ]
    results = compare(contenders, given.repeats)
    found, peak = medians(results, "pictures_per_s"), max(medians(results, "peak_mib").values())
    wanted = {"wanted": 15.0}
    return [
        *(
            claim(f"640x640 tiles a second of one core: {name}", rate, wanted, rate / 15.0, 1.0, below=False)
            for name, rate in found.items()
        ),
        claim("the edge's memory, MiB", peak, {"at most": 512.0}, peak / 512.0, 1.0),
    ]


def _tiles(folder: Path) -> Path:
    """A folder of tiles of boards, made once."""
    import io

    from PIL import Image

    from eagleray.pipelines.files import Files
    from eagleray.pipelines.packages import fetch_package
    from eagleray.pipelines.sources.circuit_boards import PACKAGE, CircuitBoardsSpec, list_units, read
    from eagleray.pipelines.spec import Preparation

    if folder.is_dir():
        return folder
    spec = CircuitBoardsSpec(pixels_per_mm=20, variants=1)  # at 10 few boards have 640 pixels
    files = Files(str(fetch_package(PACKAGE, WORK, print)), WORK)
    making = folder.with_suffix(".making")
    making.mkdir(parents=True, exist_ok=True)
    number = 0
    for unit in list_units(spec, files):
        (row,) = read(spec, files, unit, Preparation(), lambda *told: None)
        board = Image.open(io.BytesIO(row["picture"]["content"])).convert("RGB")
        for top in range(0, board.height - TILE + 1, TILE):
            for left in range(0, board.width - TILE + 1, TILE):
                if number < TILES:
                    tile = board.crop((left, top, left + TILE, top + TILE))
                    tile.save(making / f"{number:02}.png")
                    number += 1
    making.rename(folder)
    return folder


def anomalies(given: argparse.Namespace) -> list[Claim]:
    """Defects on boards that were never seen, by what was learned of the same normal tiles."""
    train, test = (CorpusReader(given.boards, split) for split in ("train", "test"))
    normal = normal_rows(train, 256)
    drawn = np.sort(np.random.default_rng(0).permutation(normal)[:NORMAL_TILES])
    every = np.arange(len(test))
    WORK.mkdir(parents=True, exist_ok=True)
    tiles = WORK / "tiles.npz"
    np.savez(tiles, train=train.examples(drawn, None)["image"], test=test.examples(every, None)["image"])
    python = environment("anomalib", ANOMALIB)
    contenders = [
        Contender(name, "domain_anomaly.py", where, (name, str(tiles), str(WORK / f"{name}.npy")))
        for name, where in [("ours", sys.executable), *((peer, python) for peer in PEERS)]
    ]
    compare(contenders, 1)  # what they score is always the same
    marks, groups, how = marks_of(test, every), test.groups_of(every), Bootstrap(2000, 0.95, 0)
    values: dict[str, dict[str, float]] = {}
    for one in contenders:
        maps = np.load(WORK / f"{one.name}.npy")
        some = [row for row in zip(maps, marks, groups, strict=True) if row[1] is not None]
        metrics = told(gather(some), how)
        for metric in metrics:
            print(f"  {one.name}: {shown(metric)}", flush=True)
        values[one.name] = {metric["name"]: 100 * metric["value"] for metric in metrics}
    claims: list[Claim] = []
    for name, value in values["ours"].items():
        peers = {peer: values[peer][name] for peer in PEERS}
        ratio = value / max(*peers.values(), 1e-9)
        claims.append(claim(f"boards, normal only: {name}, per cent", value, peers, ratio, 1.0, below=False))
    return claims


def weight_bytes(path: Path) -> int:
    """Bytes of a graph's constants."""
    return sum(len(one.raw_data) for one in onnx.load(path).graph.initializer)


def claim(
    what: str, ours: float, peers: dict[str, float], ratio: float, target: float, *, below: bool = True
) -> Claim:
    """A claim of this benchmark."""
    return Claim(what, ours, peers, ratio, target, COMMAND, machine(), below)


if __name__ == "__main__":
    main()
