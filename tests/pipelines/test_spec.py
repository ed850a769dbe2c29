"""Settings, and what a plan loads."""

from __future__ import annotations

import subprocess
import sys

import pytest
from pydantic import ValidationError

from eagleray.pipelines.spec import Preparation
from eagleray.pipelines.stages.preprocess import PreprocessSpec


def test_a_stage_file_loads_neither_ray_nor_torch_nor_arrow():
    code = (
        "import sys; from eagleray.workflows.stage import discover_kinds; "
        "discover_kinds(['eagleray.pipelines.stages']);"
        "print([m for m in ('ray', 'torch', 'pyarrow', 'PIL', 'tokenizers') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_a_stored_picture_smaller_than_the_models_is_refused():
    with pytest.raises(ValidationError, match="stored_image_size 32 is smaller than image_size 64"):
        Preparation(stored_image_size=32)


def test_languages_are_listed_once_each_the_reference_first():
    assert Preparation(caption_languages=("en", "fr"), speech_languages=("fr", "es")).languages == (
        "en",
        "fr",
        "es",
    )


@pytest.mark.parametrize(
    "source", [{"kind": "tuxpant"}, {"kind": "tuxpaint", "pth": "x"}, {"kind": "tuxpaint", "digest": "12"}]
)
def test_an_unknown_source_key_or_digest_is_refused(source):
    with pytest.raises(ValidationError):
        PreprocessSpec.model_validate({"source": source})


def test_a_relative_folder_is_made_absolute_where_it_is_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    spec = PreprocessSpec.model_validate({"source": {"kind": "tuxpaint", "path": "stamps"}})
    assert spec.source.path == str(tmp_path / "stamps")
