"""Volumes are decoded as ITK decodes them, to the same voxels in the same place, and broken ones refused."""

from __future__ import annotations

import contextlib
import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from eagleray.pipelines.media import volumes
from eagleray.pipelines.media.volumes import (
    Volume,
    of_row,
    read_metaimage,
    read_nifti,
    read_nrrd,
    read_series,
)
from eagleray.pipelines.quarantine import Refused

from ..volume_files import ORIGIN, SPACING, ct, encoded, oblique, slices, write_itk, write_series

DTYPES = ("int16", "uint8", "uint16", "int32", "float32", "float64")


def read(path: Path) -> Volume:
    data = path.read_bytes()

    def beside(name: str) -> bytes:
        return (path.parent / name).read_bytes()

    if path.name.endswith((".nii", ".nii.gz")):
        return read_nifti(data)
    return read_nrrd(data, beside) if path.suffix in (".nrrd", ".nhdr") else read_metaimage(data, beside)


def same_as_itk(volume: Volume, image: SimpleITK.Image) -> None:
    assert np.array_equal(volume.voxels, SimpleITK.GetArrayFromImage(image))
    np.testing.assert_allclose(volume.spacing_mm, image.GetSpacing()[::-1], rtol=1e-5)
    np.testing.assert_allclose(volume.origin_mm, image.GetOrigin(), atol=1e-3)
    rows = np.array(image.GetDirection()).reshape(3, 3).T[::-1]
    np.testing.assert_allclose(volume.direction, rows, atol=1e-5)
    place = (4, 2, 3)  # width, height, depth
    point = volume.origin_mm + (np.array(place[::-1]) * volume.spacing_mm) @ volume.direction
    np.testing.assert_allclose(point, image.TransformIndexToPhysicalPoint(place), atol=1e-3)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("ending", ["nii", "nii.gz", "nrrd", "nhdr", "mha", "mhd"])
def test_every_format_is_read_as_itk_reads_it(tmp_path, ending, dtype, compressed):
    path = tmp_path / f"volume.{ending}"
    write_itk(path, ct().astype(dtype), compressed)
    volume = read(path)
    assert volume.voxels.dtype == dtype
    same_as_itk(volume, SimpleITK.ReadImage(str(path)))


def test_big_endian_metaimage_is_read(tmp_path):
    voxels = ct()
    write_itk(tmp_path / "volume.mha", voxels)
    data = (tmp_path / "volume.mha").read_bytes()
    head, _, _ = data.partition(b"ElementDataFile = LOCAL\n")
    head = head.replace(b"BinaryDataByteOrderMSB = False", b"BinaryDataByteOrderMSB = True")
    volume = read_metaimage(
        head + b"ElementDataFile = LOCAL\n" + voxels.astype(">i2").tobytes(), lambda name: b""
    )
    assert np.array_equal(volume.voxels, voxels)


def test_nifti_with_a_slope_is_scaled():
    import nibabel

    voxels = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    data = bytearray(nibabel.Nifti1Image(voxels, np.diag([2, 3, 4, 1])).to_bytes())
    data[112:120] = struct.pack("<ff", 0.5, 10)  # scl_slope, scl_inter
    volume = read_nifti(bytes(data))
    assert volume.voxels.dtype == np.float32
    np.testing.assert_allclose(volume.voxels, voxels.T * 0.5 + 10)
    assert volume.spacing_mm.tolist() == [4, 3, 2]


def test_nifti_2_is_read():
    import nibabel

    voxels = ct((4, 3, 5))
    image = nibabel.Nifti2Image(voxels.T, np.diag([-1, -2, 3, 1]))
    volume = read_nifti(image.to_bytes())
    assert np.array_equal(volume.voxels, voxels)
    assert volume.spacing_mm.tolist() == [3, 2, 1]
    assert volume.direction.tolist() == [[0, 0, 1], [0, 1, 0], [1, 0, 0]]


def test_nrrd_in_another_space_is_turned(tmp_path):
    import nrrd

    voxels = ct((4, 3, 5))
    header = {
        "space": "right-anterior-superior",
        "space directions": np.diag([0.5, 1, 2]),
        "space origin": [1, 2, 3],
    }
    nrrd.write(str(tmp_path / "a.nrrd"), voxels.T, header)
    volume = read(tmp_path / "a.nrrd")
    assert np.array_equal(volume.voxels, voxels)
    assert volume.origin_mm.tolist() == [-1, -2, 3]
    assert volume.direction.tolist() == [[0, 0, 1], [0, -1, 0], [-1, 0, 0]]


@pytest.mark.parametrize("turned", [False, True])
def test_a_series_is_read_as_itk_reads_it(tmp_path, turned):
    direction = oblique() if turned else None
    voxels = ct()
    paths = write_series(tmp_path, slices(voxels, direction=direction))
    volume = read_series([(path.name, path.read_bytes()) for path in paths])
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(SimpleITK.ImageSeriesReader.GetGDCMSeriesFileNames(str(tmp_path)))
    image = reader.Execute()
    assert np.array_equal(volume.voxels, voxels)
    assert volume.voxels.dtype == np.int16
    same_as_itk(volume, image)


def test_a_series_of_one_slice_takes_its_thickness():
    volume = read_series([("a", encoded(slices(ct((1, 4, 5)))[0]))])
    assert volume.voxels.shape == (1, 4, 5)
    np.testing.assert_allclose(volume.spacing_mm, SPACING)


def test_fractions_of_hounsfield_units_are_real_numbers():
    datasets = slices(ct((3, 4, 5)))
    for one in datasets:
        one.RescaleSlope = 0.5
    volume = read_series([(str(i), encoded(one)) for i, one in enumerate(datasets)])
    assert volume.voxels.dtype == np.float32
    np.testing.assert_allclose(volume.voxels, (ct((3, 4, 5)) + 1024.0) * 0.5 - 1024)


def test_a_row_of_a_corpus_holds_a_volume_to_the_bit(tmp_path):
    write_itk(tmp_path / "a.mha", ct().astype(np.float64))
    volume = read(tmp_path / "a.mha")
    back = of_row(volume.row("a.mha"))
    assert back.voxels.dtype == volume.voxels.dtype
    assert back.voxels.tobytes() == volume.voxels.tobytes()
    for name in ("spacing_mm", "origin_mm", "direction"):
        assert np.array_equal(getattr(back, name), getattr(volume, name))


def test_points_are_inside_up_to_half_a_voxel_from_the_outermost_centres(tmp_path):
    write_itk(tmp_path / "a.mha", ct())
    volume = read(tmp_path / "a.mha")
    for place, inside in (
        ((-0.4, 0, 0), True),
        ((-0.6, 0, 0), False),
        ((5.4, 7.4, 8.4), True),
        ((5, 7, 8.6), False),
    ):
        point = volume.origin_mm + (np.array(place) * volume.spacing_mm) @ volume.direction
        assert volume.holds(point.tolist()) is inside


# ── what is broken ─────────────────────────────────────────────────────────────────────────────────


def reason_of(decode) -> str:
    with pytest.raises(Refused) as caught:
        decode()
    assert caught.value.message
    return caught.value.reason


def series_reason(change) -> str:
    datasets = slices(ct())
    changed = change(datasets) or datasets
    return reason_of(lambda: read_series([(f"{i}.dcm", encoded(one)) for i, one in enumerate(changed)]))


def _set(number: int, **fields):
    def change(datasets):
        for name, value in fields.items():
            setattr(datasets[number], name, value)

    return change


def _all(**fields):
    def change(datasets):
        for one in datasets:
            for name, value in fields.items():
                setattr(one, name, value)

    return change


def _tilted(datasets):
    for number, one in enumerate(datasets):
        one.ImagePositionPatient = [ORIGIN[0], ORIGIN[1] + 0.6 * number, ORIGIN[2] + 2.5 * number]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_all(PixelSpacing=[0, 0.7]), "wrong-spacing"),
        (_all(PixelSpacing=[-0.7, 0.7]), "wrong-spacing"),
        (_all(PixelSpacing=[7000, 7000]), "wrong-spacing"),
        (_set(2, PixelSpacing=[0.9, 0.7]), "mixed-geometry"),
        (_set(2, ImageOrientationPatient=[0, 1, 0, 1, 0, 0]), "mixed-geometry"),
        (lambda datasets: datasets[:2] + datasets[3:], "uneven-slices"),
        (lambda datasets: [*datasets, datasets[3]], "duplicate-slice"),
        (_tilted, "sheared-axes"),
        (_set(1, ImagePositionPatient=None), "no-geometry"),
        (_set(1, PixelData=b"\0\0"), "truncated-volume"),
        (_set(1, SamplesPerPixel=3), "not-three-dimensional"),
        (_set(1, NumberOfFrames=2), "not-three-dimensional"),
    ],
)
def test_a_broken_series_is_refused_with_its_reason(change, reason):
    assert series_reason(change) == reason


def test_a_slice_without_pixels_is_refused():
    datasets = slices(ct())
    del datasets[4].PixelData
    assert series_reason(lambda _: datasets) == "no-pixels"


def test_a_compression_without_a_decoder_is_named():
    datasets = slices(ct((1, 4, 4)))
    datasets[0].file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.90"
    from pydicom.encaps import encapsulate

    datasets[0].PixelData = encapsulate([b"\xff\x4f\xff\x51" + b"\0" * 60])
    datasets[0]["PixelData"].VR = "OB"
    datasets[0]["PixelData"].is_undefined_length = True
    assert series_reason(lambda _: datasets) in ("unsupported-encoding", "corrupt-volume")


def test_what_is_no_dicom_is_refused():
    assert reason_of(lambda: read_series([("a", b"hello" * 100)])) == "not-a-volume"


@pytest.mark.parametrize("ending", ["nii", "nii.gz", "nrrd", "mha"])
class TestBrokenFiles:
    def data(self, tmp_path: Path, ending: str, voxels=None, compressed=False) -> bytes:
        path = tmp_path / f"a.{ending}"
        write_itk(path, ct() if voxels is None else voxels, compressed)
        return path.read_bytes()

    def decode(self, ending: str, data: bytes, **options) -> Volume:
        if ending.startswith("nii"):
            return read_nifti(data, **options)
        return (read_nrrd if ending == "nrrd" else read_metaimage)(data, lambda name: b"", **options)

    def test_cut_short(self, tmp_path, ending):
        data = self.data(tmp_path, ending)
        reason = reason_of(lambda: self.decode(ending, data[:-40]))
        assert reason == "truncated-volume"

    def test_another_format(self, tmp_path, ending):
        png = b"\x89PNG\r\n\x1a\n" + b"\0" * 400
        assert reason_of(lambda: self.decode(ending, png)) == "not-a-volume"

    def test_nan(self, tmp_path, ending):
        voxels = ct().astype(np.float32)
        voxels[1, 2, 3] = np.nan
        data = self.data(tmp_path, ending, voxels)
        assert reason_of(lambda: self.decode(ending, data)) == "nan-voxels"

    def test_too_large(self, tmp_path, ending):
        data = self.data(tmp_path, ending)
        assert reason_of(lambda: self.decode(ending, data, max_voxels=100)) == "volume-too-large"

    def test_four_dimensions(self, tmp_path, ending):
        image = SimpleITK.GetImageFromArray(np.zeros((2, 3, 4, 5), np.int16), isVector=False)
        path = tmp_path / f"four.{ending}"
        SimpleITK.WriteImage(image, str(path))
        assert reason_of(lambda: self.decode(ending, path.read_bytes())) == "not-three-dimensional"


def test_wrong_spacing_in_files_is_refused(tmp_path):
    write_itk(tmp_path / "a.mha", ct())
    data = (tmp_path / "a.mha").read_bytes()
    broken = data.replace(b"ElementSpacing = 0.", b"ElementSpacing = -0.")
    assert broken != data
    assert reason_of(lambda: read_metaimage(broken, lambda name: b"")) == "wrong-spacing"
    write_itk(tmp_path / "a.nii", ct())
    data = bytearray((tmp_path / "a.nii").read_bytes())
    data[80:84] = struct.pack("<f", 0.0)  # pixdim[1]
    assert reason_of(lambda: read_nifti(bytes(data))) == "wrong-spacing"


def test_a_bomb_is_inflated_no_further_than_its_header_says(tmp_path):
    write_itk(tmp_path / "a.nii", ct())
    bomb = gzip.compress((tmp_path / "a.nii").read_bytes() + b"\0" * 200_000_000)
    assert len(bomb) < 1_000_000
    assert read_nifti(bomb).voxels.shape == (6, 8, 9)
    assert len(volumes._inflate(bomb, 1000)) == 1000


@pytest.mark.parametrize("ending", ["nii", "nii.gz", "nrrd", "mha"])
def test_no_garbled_file_raises_anything_else(tmp_path, ending):
    path = tmp_path / f"a.{ending}"
    write_itk(path, ct())
    whole = path.read_bytes()
    draw = np.random.default_rng(0)
    for _ in range(150):
        data = bytearray(whole)
        for place in draw.integers(0, min(len(data), 400), 4):
            data[place] = draw.integers(0, 256)
        with contextlib.suppress(Refused):
            TestBrokenFiles().decode(ending, bytes(data))
