"""The exported graphs of the encoders give what torch gives, at any batch size."""

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch import nn

from eagleray.models.audio import AudioEncoder
from eagleray.models.spec import AudioSpec, TextSpec, VisionSpec
from eagleray.models.text import TextEncoder
from eagleray.models.vision import VisionEncoder


class Hidden(nn.Module):
    """An encoder's hidden states alone."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, *inputs):
        hidden = self.encoder(*inputs)
        return hidden if isinstance(hidden, torch.Tensor) else hidden[0]


def vision(batch):
    return (torch.randn(batch, 3, 30, 30),)


def text(batch):
    return (torch.randint(0, 50, (batch, 12)),)


def audio(batch):
    return torch.randn(batch, 64, 16), torch.arange(64) < torch.randint(0, 64, (batch, 1))


ENCODERS = {
    "vision": (lambda: VisionEncoder(VisionSpec(image_size=30, window_size=3)), vision),
    "text": (lambda: TextEncoder(TextSpec(d_model=32, max_tokens=12), 50), text),
    "audio": (lambda: AudioEncoder(AudioSpec(n_mels=16, max_frames=64, d_model=32)), audio),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ENCODERS)
def test_onnx_equals_torch_at_any_batch_size(name, tmp_path):
    torch.manual_seed(0)
    build, draw = ENCODERS[name]
    module, path = Hidden(build()).eval(), tmp_path / "encoder.onnx"
    batch = torch.export.Dim("batch", min=1)
    torch.onnx.export(
        module,
        draw(2),
        path,
        dynamo=True,
        dynamic_shapes=(({0: batch},) * len(draw(1)),),
        verbose=False,
    )
    session = ort.InferenceSession(path)
    for rows in (1, 2, 5):
        inputs = draw(rows)
        feed = {node.name: x.numpy() for node, x in zip(session.get_inputs(), inputs, strict=True)}
        with torch.no_grad():
            expected = module(*inputs).numpy()
        np.testing.assert_allclose(session.run(None, feed)[0], expected, atol=1e-4)
