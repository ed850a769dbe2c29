"""A volume from one file, whatever its format."""

import io
import zipfile

import numpy as np
import pytest

from eagleray.pipelines.media.opening import open_volume
from eagleray.pipelines.quarantine import Refused

from ..volume_files import SPACING, ct, encoded, slices, write_itk


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.nrrd", "a.mha"])
def test_a_file_is_known_by_its_content(tmp_path, name):
    voxels = ct()
    write_itk(tmp_path / name, voxels)
    found = open_volume((tmp_path / name).read_bytes())
    assert np.array_equal(found.voxels, voxels)
    np.testing.assert_allclose(found.spacing_mm, SPACING, rtol=1e-5)


def test_a_zip_of_slices_is_a_series_whatever_else_an_archive_program_adds():
    voxels = ct()
    files = {f"scan/{number}.dcm": encoded(one) for number, one in enumerate(slices(voxels))}
    found = open_volume(zipped({"scan/": b"", "__MACOSX/scan/._0.dcm": b"x", **files}))
    assert np.array_equal(found.voxels, voxels)


def test_what_is_no_volume_is_refused(monkeypatch):
    one = encoded(slices(ct())[0])
    for content, reason in [
        (b"PK\x03\x04 broken", "corrupt-zip"),
        (b"", "not-a-volume"),
        (b"NRRD0004\n\n", None),
        (b"ObjectType = Image\nNDims = 3\nElementDataFile = a.raw\n", None),
        (one[:200], None),
        (zipped({"a.txt": b"no slice"}), None),
    ]:
        with pytest.raises(Refused) as refused:
            open_volume(content)
        assert reason is None or refused.value.reason == reason
    monkeypatch.setattr("eagleray.pipelines.media.opening.MAX_SLICES", 3)
    with pytest.raises(Refused) as refused:
        open_volume(zipped({f"{number}.dcm": one for number in range(4)}))
    assert refused.value.reason == "volume-too-large"
