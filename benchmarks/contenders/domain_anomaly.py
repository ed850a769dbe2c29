"""Scores of pictures by what was learned from normal ones: ours, or anomalib's PatchCore or PaDiM.

PatchCore and PaDiM are given the same fixed filters as ours in place of a backbone, or a ResNet-18 at random
weights; there are no pretrained ones here.
"""

from __future__ import annotations

import json
import sys
import time
from types import SimpleNamespace

import numpy as np
import torch

from eagleray.models.anomaly import AnomalyDetector, PatchFeatures

FILTERS_PX, STRIDE, COMPONENTS, PASSES, PATCHES, BATCH = (1.0, 2.0), 2, 16, 10, 64, 20
BANK = 1000
"""Patches that PatchCore remembers."""
LAYERS = ("layer1", "layer2", "layer3")

method, given, output = sys.argv[1], np.load(sys.argv[2]), sys.argv[3]
torch.set_num_threads(2)
torch.set_grad_enabled(False)
torch.manual_seed(0)
train, test = (torch.from_numpy(given[name]) for name in ("train", "test"))
filters = PatchFeatures(None, FILTERS_PX, STRIDE)


class Filters(torch.nn.Module):
    """Those filters, as anomalib's feature extractors answer."""

    def __init__(self) -> None:
        super().__init__()
        self.filters = filters

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"filters": self.filters(image)}


def ours():
    from eagleray.actors.training import mixture

    rng = np.random.default_rng(0)
    grids = [filters(one).flatten(2).transpose(1, 2).numpy() for one in train.split(BATCH)]
    rows = np.concatenate(
        [grid[:, rng.permutation(grid.shape[1])[:PATCHES]].reshape(-1, filters.width) for grid in grids]
    ).astype(np.float64)
    shift, scale = rows.mean(axis=0), rows.std(axis=0)
    rows = (rows - shift) / scale
    start = mixture.seeded(rows, COMPONENTS, 0, "full", 1e-3)
    batches = [rows[at : at + 8192] for at in range(0, len(rows), 8192)]
    found = mixture.fit(lambda: batches, start, PASSES, "full", 1e-3).mixture
    detector = AnomalyDetector(filters, COMPONENTS).eval()
    arrays = (shift, scale, found.weights, found.means, found.covariances)
    detector.density.set_(*(torch.from_numpy(one) for one in arrays))
    return lambda image: SimpleNamespace(anomaly_map=detector(image)[:, None])


def peer(name: str, backbone: str):
    # torchvision's wheel is built for CUDA and registers no operators on this torch; none of them is used
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    from anomalib.models.image.padim.torch_model import PadimModel
    from anomalib.models.image.patchcore.torch_model import PatchcoreModel

    kind = {"patchcore": PatchcoreModel, "padim": PadimModel}[name]
    model = kind(backbone="resnet18", layers=list(LAYERS), pre_trained=False)
    if backbone == "filters":
        model.feature_extractor, model.layers = Filters(), ["filters"]
        model.register_buffer("idx", torch.arange(filters.width))  # PaDiM draws some of a backbone's
    model.train()
    model.feature_extractor.eval()
    for images in train.split(BATCH):
        model(images)
    if name == "patchcore":
        patches = sum(len(one) for one in model.embedding_store)
        model.subsample_embedding(BANK / patches)
    else:
        model.fit()
    return model.eval()


begun = time.perf_counter()
model = ours() if method == "ours" else peer(*method.split("-"))
fitted = time.perf_counter()
maps = torch.cat([model(images).anomaly_map[:, 0] for images in test.split(BATCH)])
np.save(output, maps.numpy())
seconds = {"fit_s": fitted - begun, "ms_per_picture": 1e3 * (time.perf_counter() - fitted) / len(test)}
print(json.dumps(seconds))
