"""Graphs run on the fastest that works, and whoever looks is told on what, and why on nothing faster."""

import onnxruntime as ort
import pytest

from eagleray.pipelines.providers import (
    NAMES,
    Gpu,
    Machine,
    choose,
    engine_folder,
    find_tensorrt,
    profile,
    providers_for,
    this_machine,
)

EVERYTHING = tuple(NAMES.values())
ORIN = Machine(EVERYTHING, "1.23.0", Gpu("Orin (nvgpu)", "8.7"), "10.3.0")
SHAPES = {"tokens": ("batch", 128), "token_mask": ("batch", 128)}
DIGEST = "ab" * 32


def machine(*names, gpu=True, tensorrt=True):
    available = (*(NAMES[name] for name in names), NAMES["cpu"])
    return Machine(available, "1.23.0", ORIN.gpu if gpu else None, "10.3.0" if tensorrt else None)


@pytest.mark.parametrize(
    ("wanted", "there", "provider", "why"),
    [
        ("auto", machine("tensorrt", "cuda"), "tensorrt", ""),
        ("auto", machine("cuda"), "cuda", "no TensorRT, since this build of ONNX Runtime is without"),
        ("auto", machine("tensorrt", "cuda", tensorrt=False), "cuda", "no TensorRT, since libnvinfer"),
        ("auto", machine("tensorrt", "cuda", gpu=False), "cpu", "no CUDA, since no NVIDIA GPU answers"),
        ("tensorrt", machine(), "cpu", "no TensorRT, since this build"),
        ("cuda", machine("tensorrt", "cuda"), "cuda", ""),
        ("cpu", machine("tensorrt", "cuda"), "cpu", ""),
    ],
)
def test_the_fastest_that_works_is_chosen_and_the_line_says_why(wanted, there, provider, why):
    found = choose(wanted, there)
    assert found.provider == provider
    assert "\n" not in found.line
    assert why in found.line
    assert bool(why) == ("since" in found.line)


def test_what_this_machine_has_is_what_onnx_runtime_says():
    here = this_machine()
    assert here.available == tuple(ort.get_available_providers())
    found = choose("auto", here)
    fastest = next(name for name in NAMES if NAMES[name] in here.available)
    assert found.provider == fastest or "since" in found.line


def test_no_library_has_no_version():
    assert find_tensorrt(("libc.so.6", "libsuchathing.so.10")) is None


def test_tensorrt_is_told_form_shapes_and_where_engines_lie(tmp_path):
    choice = choose("auto", ORIN, tmp_path, max_rows=8)
    (name, told), *others = providers_for(choice, DIGEST, "int8", SHAPES)
    assert [name, *(name for name, _ in others)] == list(EVERYTHING)
    assert (told["trt_int8_enable"], told["trt_fp16_enable"]) == (True, False)
    assert told["trt_profile_min_shapes"] == "tokens:1x128,token_mask:1x128"
    assert told["trt_profile_max_shapes"] == "tokens:8x128,token_mask:8x128"
    assert told["trt_engine_cache_path"] == str(engine_folder(choice, DIGEST, "int8"))
    assert engine_folder(choice, DIGEST, "int8").is_dir()
    assert dict(providers_for(choice, DIGEST, "float16", SHAPES))[name]["trt_fp16_enable"]
    assert profile({"image": ("batch", 3, 64, 64)}, 2) == "image:2x3x64x64"


def test_an_engine_is_of_one_graph_form_gpu_and_version(tmp_path):
    def folder(digest=DIGEST, form=None, rows=16, **changes):
        there = Machine(**{**ORIN.__dict__, **changes})
        return engine_folder(choose("auto", there, tmp_path, rows), digest, form)

    others = [
        folder("cd" * 32),
        folder(form="int8"),
        folder(rows=4),
        folder(gpu=Gpu("Orin (nvgpu)", "8.9")),
        folder(gpu=Gpu("NVIDIA H100", "9.0")),
        folder(tensorrt="10.4.0"),
        folder(version="1.24.0"),
    ]
    assert folder() == folder()
    assert len({folder(), *others}) == len(others) + 1
    assert all(one.is_relative_to(tmp_path) for one in others)
