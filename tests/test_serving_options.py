"""What `eagleray serve` is told, and how it says that something can't be."""

import pytest

from eagleray.commands.serving import serving_options
from eagleray.workflows.errors import EaglerayError

FIELDS = {"host": "127.0.0.1", "port": 8000, "tls": None}


def test_any_field_can_be_set():
    options = serving_options(FIELDS, ["limits.max_wait_s=0.2", "autoscaling.max_replicas=3", "apart=true"])
    assert (options.limits.max_wait_s, options.autoscaling.max_replicas, options.apart) == (0.2, 3, True)
    assert options.port == 8000


def test_parts_that_are_apart_hold_one_bundle():
    with pytest.raises(EaglerayError, match="hold one bundle"):
        serving_options(FIELDS, ["apart=true", "beside={a: /somewhere}"])


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("limits.max_wait=0.2", "limits.max_wait: Extra inputs are not permitted"),
        ("port=70000", "port: Input should be less than"),
        ("limits", "this sets nothing: limits"),
        ("limits.=1", r"this sets nothing: limits\.=1"),
        ("port.x=1", r"this sets nothing: port\.x=1"),
        ("grpc_port=8000", "port and grpc_port are both 8000"),
        ("beside={a: somewhere}", "beside: somewhere is another folder for every process"),
        ("beside={a/b: /somewhere}", "beside"),
    ],
)
def test_what_cannot_be_is_named(override, said):
    with pytest.raises(EaglerayError, match=said):
        serving_options(FIELDS, [override])
