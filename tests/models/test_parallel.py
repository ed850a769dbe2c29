"""Split by the naming convention or sharded block by block, every part computes what it computed whole."""

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from eagleray.actors.training.group import run_group
from eagleray.actors.training.team import Team
from eagleray.actors.training.tensor import Layout, divide_over, split_model
from eagleray.models.audio import AudioEncoder
from eagleray.models.decoding import JointDecoder
from eagleray.models.spec import AudioSpec, DecoderSpec, TextSpec, VisionSpec
from eagleray.models.text import TextEncoder
from eagleray.models.vision import VisionEncoder

VISION = VisionSpec(image_size=28, window_size=4, embed_dim=8, depths=(2, 2), num_heads=(2, 4))
TOKENS = 21  # which two workers don't divide, so that each has all logits
LENGTH, HEARD = 7, 9  # nor do they divide these, nor 7 × 7 patches
AUDIO = AudioSpec(n_mels=8, max_frames=36, num_convs=2, d_model=8, num_layers=2, num_heads=2)


class Parts(nn.Module):
    """Every encoder and the decoder, on fixed inputs."""

    def __init__(self):
        super().__init__()
        self.vision = VisionEncoder(VISION)
        self.text = TextEncoder(TextSpec(d_model=8, num_layers=2, num_heads=2, memory_length=4), TOKENS)
        self.audio = AudioEncoder(AUDIO)
        widths = {"image": self.vision.width, "speech": self.audio.width}
        self.decoder = JointDecoder(DecoderSpec(d_model=8, num_layers=2, num_heads=2), TOKENS, widths)

    def forward(self, remembers):
        generator = torch.Generator().manual_seed(5)
        images = torch.randn(2, 3, 28, 28, generator=generator).double()
        mel = torch.randn(2, 36, 8, generator=generator).double()
        tokens = torch.randint(0, TOKENS, (2, LENGTH), generator=generator)
        image = self.vision(images)
        speech, mask = self.audio(mel, torch.arange(36) < torch.tensor([[20], [36]]))
        memory = self.text(tokens)[1] if remembers else None
        text, _ = self.text(tokens.flip(1), memory)
        everywhere = torch.ones(image.shape[:2], dtype=torch.bool)
        weights = torch.tensor([[0.5, 0.0, 0.5], [1.0, 0.0, 0.0]]).double()
        memories = {"image": (image, everywhere), "speech": (speech, mask)}
        return image, speech, text, self.decoder(tokens, memories, weights)


def build():
    torch.manual_seed(0)
    return Parts().double()


def step(model, remembers, finish=lambda: None):
    """Outputs, and all gradients by name, whole."""
    outputs = model(remembers)
    sum(out.square().mean() for out in outputs).backward()
    finish()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    whole = {n: g.full_tensor() if isinstance(g, DTensor) else g for n, g in gradients.items()}
    return outputs, whole


def compare(rank, layout):
    remembers = layout == "data"  # a text that is trained on is whole
    expected, gradients = step(build(), remembers)
    model, finish = build(), lambda: None
    mesh = init_device_mesh(
        "cpu", (1, 2) if layout == "tensor" else (2, 1), mesh_dim_names=("data", "tensor")
    )
    if layout == "tensor":
        over = mesh["tensor"]
        (sharing,) = split_model(model, Layout(Team(over.get_group()), divide_over(over)), {})
        sharing.see({"text": LENGTH, "audio": HEARD, "decoder": LENGTH})
        finish = sharing.sum_gradients
        assert model.vision.blocks[0].attention.logit_scale.weight.to_local().shape[0] == 1
    else:
        for tower in model.children():
            for block in tower.blocks:
                fully_shard(block, mesh=mesh["data"])
        fully_shard(model, mesh=mesh["data"])
    actual, sharded = step(model, remembers, finish)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)
    assert sharded.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(
            sharded[name], gradient, rtol=1e-9, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("layout", ["tensor", "data"])
def test_split_equals_whole_forward_and_backward(layout):
    run_group(compare, 2, layout)
