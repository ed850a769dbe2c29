import json
import shutil

import pytest

from eagleray.actors.training.checkpoint import load_model
from eagleray.workflows.errors import EaglerayError


def test_a_checkpoint_that_lacks_a_weight_is_refused_not_filled_up_at_random(checkpoint_folder, tmp_path):
    folder = shutil.copytree(checkpoint_folder, tmp_path / "checkpoint")
    described = json.loads((folder / "checkpoint.json").read_text())
    described["tasks"].append("language")
    (folder / "checkpoint.json").write_text(json.dumps(described))
    with pytest.raises(EaglerayError, match=r"the checkpoint has no heads\.language"):
        load_model(folder)
