"""Every mesh of up to eight workers, under every schedule, computes what one process does."""

from itertools import product
from typing import get_args

import pytest

from eagleray.actors.training.certificate import Training, mesh_of
from eagleray.actors.training.certifying import certify
from eagleray.actors.training.spec import ObjectiveSpec, ParallelSpec, TrainingSpec
from eagleray.models.spec import ModelSpec

SCHEDULES = get_args(ParallelSpec.model_fields["schedule"].annotation)
MESHES = [
    ParallelSpec(data=data, tensor=tensor, pipeline=pipeline, schedule=schedule)
    for data, tensor, pipeline in product(range(1, 9), repeat=3)
    if data * tensor * pipeline <= 8
    for schedule in (SCHEDULES if pipeline > 1 else SCHEDULES[:1])
]


@pytest.mark.nightly
@pytest.mark.parametrize("mesh", MESHES, ids=mesh_of)
def test_every_mesh_computes_what_one_process_does(mesh):
    tiny, heads = ModelSpec(), mesh.tensor
    assert tiny.vision
    assert tiny.text
    assert tiny.audio
    assert tiny.decoder
    tower = {"num_layers": 1, "num_heads": heads, "dropout": 0.2}
    model = tiny.model_copy(
        update={
            "vision": tiny.vision.model_copy(
                update={"depths": (1, 2), "num_heads": (heads, 2 * heads), "drop_path": 0.4}
            ),
            "text": tiny.text.model_copy(update=tower),
            "audio": tiny.audio.model_copy(update={**tower, "num_convs": 2}),
            "decoder": tiny.decoder.model_copy(update={**tower, "tied": True}),
        }
    )
    objective = ObjectiveSpec(contrastive=1.0, caption=0.25, classification=0.3)
    found = certify(Training(TrainingSpec(kind="pretrain", objective=objective, parallel=mesh), model))
    assert all(finding.holds for finding in found), found
