import math

import pytest
import torch

from eagleray.models.audio import AudioEncoder, AudioStream, AxialAttention
from eagleray.models.layers import key_bias
from eagleray.models.spec import AudioSpec

SPEC = AudioSpec(n_mels=16, max_frames=96, num_convs=3, d_model=16, num_layers=2, num_heads=2)


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return AudioEncoder(SPEC).double().eval()


def clip(length, frames, fill=0.0, seed=1):
    """A clip of `length` valid frames in a buffer of `frames`."""
    generator = torch.Generator().manual_seed(seed)
    mel = torch.randn(1, length, 16, dtype=torch.double, generator=generator)
    padding = torch.full((1, frames - length, 16), fill, dtype=torch.double)
    return torch.cat((mel, padding), dim=1), (torch.arange(frames) < length)[None]


@pytest.mark.parametrize("length", [1, 7, 8, 40, 63])
@pytest.mark.parametrize("fill", [0.0, 1e3, math.nan, math.inf])
def test_padding_never_changes_valid_positions(encoder, length, fill):
    alone, valid = encoder(*clip(length, length))
    padded, mask = encoder(*clip(length, 96, fill))
    assert valid.all()
    assert mask.sum() == math.ceil(length / 8)
    torch.testing.assert_close(padded[mask], alone[valid], atol=1e-12, rtol=0)
    assert padded.isfinite().all()


def test_padding_gets_no_gradient(encoder):
    mel, valid = clip(40, 96)
    mel.requires_grad_()
    hidden, mask = encoder(mel, valid)
    (gradient,) = torch.autograd.grad(hidden[mask].square().sum(), mel)
    assert gradient[valid].any(-1).all()
    assert not gradient[~valid].any()


def test_an_absent_clip_is_finite_whatever_its_bytes(encoder):
    mel = torch.full((1, 96, 16), math.nan, dtype=torch.double)
    hidden, mask = encoder(mel, torch.zeros(1, 96, dtype=torch.bool))
    assert not mask.any()
    assert hidden.isfinite().all()
    hidden.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in encoder.parameters())


@pytest.mark.parametrize("axis", ["time", "frequency"])
def test_axial_attention_stays_on_its_axis(axis):
    layer = AxialAttention(8, 2, axis)
    x = torch.randn(1, 5, 3, 8)
    for t in range(5):
        for s in range(3):
            moved = x.clone()
            moved[0, t, s] += torch.randn(8)
            changed = (layer(moved, None) != layer(x, None)).any(-1)[0]
            expected = torch.zeros(5, 3, dtype=torch.bool)
            expected[(slice(None), s) if axis == "time" else t] = True
            assert torch.equal(changed, expected)


def test_attention_along_time_sees_no_hidden_time():
    layer = AxialAttention(8, 2, "time")
    x, mask = torch.randn(2, 5, 3, 8), torch.tensor([[True] * 3 + [False] * 2, [True] * 5])
    moved = x.clone()
    moved[:, 3:] += 1
    bias = key_bias(mask, x.dtype)
    changed = (layer(moved, bias) != layer(x, bias)).flatten(2).any(-1)
    assert changed.tolist() == [[False] * 3 + [True] * 2, [True] * 5]


def test_axial_attention_equals_attention_on_each_line():
    layer = AxialAttention(8, 2, "frequency").double()
    x = torch.randn(2, 5, 3, 8, dtype=torch.double)
    lines = torch.stack([layer(x[:, t : t + 1], None)[:, 0] for t in range(5)], dim=1)
    torch.testing.assert_close(layer(x, None), lines)
    turned = AxialAttention(8, 2, "time").double()
    turned.load_state_dict(layer.state_dict())
    torch.testing.assert_close(turned(x.transpose(1, 2), None), lines.transpose(1, 2))


def test_convolutions_keep_bands_apart_and_attention_joins_them(encoder):
    mel, valid = clip(96, 96)
    moved = mel.clone()
    moved[:, :, :4] += torch.randn(96, 4, dtype=torch.double)  # the lowest of four bands
    changed = (encoder.embed(moved, valid) != encoder.embed(mel, valid)).flatten(0, 1).any(-1)
    assert changed.all(0).tolist() == [True, False, False, False]
    mask = encoder.mask(valid)
    before, after = (encoder.blocks[0](encoder.embed(m, valid), mask) for m in (mel, moved))
    assert (before != after).any(-1).all()


def test_mask_is_what_forward_gives(encoder):
    mel, valid = clip(50, 96)
    hidden, mask = encoder(mel, valid)
    assert torch.equal(mask, encoder.mask(valid))
    assert mask.shape == hidden.shape[:2]


def test_a_clip_that_is_too_long_is_refused(encoder):
    with pytest.raises(ValueError, match="max_frames is 96"):
        encoder(*clip(97, 97))


STREAMED = SPEC.model_copy(update={"chunk": 3, "left_chunks": 2, "max_frames": 400})


@pytest.mark.parametrize("axes", ["time-frequency", "time"])
@pytest.mark.parametrize("pieces", [[1] * 37, [200, 37], [8, 16, 24, 100, 89], [237]])
@pytest.mark.parametrize("dtype", [torch.double, torch.float])
def test_a_streamed_clip_equals_the_whole(axes, pieces, dtype):
    torch.manual_seed(0)
    encoder = AudioEncoder(STREAMED.model_copy(update={"axes": axes})).to(dtype).eval()
    mel, _ = clip(sum(pieces), sum(pieces))
    mel = mel.to(dtype)
    with torch.no_grad():
        whole, mask = encoder(mel, torch.ones(mel.shape[:2], dtype=torch.bool))
        stream = AudioStream(encoder)
        parts = [stream.push(piece) for piece in mel.split(pieces, dim=1)]
        parts.append(stream.finish())
    assert mask.all()
    streamed = torch.cat(parts, dim=1)
    torch.testing.assert_close(streamed, whole, atol=1e-12 if dtype == torch.double else 1e-5, rtol=0)


def test_a_chunk_comes_out_as_soon_as_its_frames_are_there():
    encoder = AudioEncoder(STREAMED)
    stream, reach = AudioStream(encoder), 2 * 7  # kernels of 5 at strides 1, 2 and 4
    came = [stream.push(torch.randn(1, 1, 16)).shape[1] for _ in range(2 * 8 + reach + 1)]
    assert came == [0] * (2 * 8 + reach) + [3]


def test_chunks_hide_what_is_later_or_long_ago():
    spec = STREAMED.model_copy(update={"num_layers": 1, "left_chunks": 1})
    encoder = AudioEncoder(spec).double().eval()
    hidden = torch.randn(1, 12, 4, 16, dtype=torch.double)
    mask = torch.ones(1, 12, dtype=torch.bool)
    before = encoder.blocks[0](hidden, mask)
    for t in range(12):
        moved = hidden.clone()
        moved[0, t] += 1
        changed = (encoder.blocks[0](moved, mask) != before)[0].flatten(1).any(-1)
        chunk = torch.arange(12) // 3
        assert torch.equal(changed, (chunk == t // 3) | (chunk == t // 3 + 1))


@pytest.mark.parametrize("length", [1, 8, 40, 63])
@pytest.mark.parametrize("fill", [0.0, math.nan])
def test_padding_never_changes_valid_positions_by_chunks(length, fill):
    encoder = AudioEncoder(STREAMED).double().eval()
    alone, valid = encoder(*clip(length, length))
    padded, mask = encoder(*clip(length, 200, fill))
    torch.testing.assert_close(padded[mask], alone[valid], atol=1e-12, rtol=0)
    assert padded.isfinite().all()


def test_only_an_encoder_by_chunks_streams(encoder):
    with pytest.raises(ValueError, match=r"set audio\.chunk"):
        AudioStream(encoder)


def test_time_alone_has_no_attention_along_frequency():
    spec = SPEC.model_copy(update={"axes": "time"})
    block = AudioEncoder(spec).blocks[0]
    hidden = torch.randn(1, 4, 4, 16)
    moved = hidden.clone()
    moved[:, :, 1] += 1
    changed = block(moved, torch.ones(1, 4, dtype=torch.bool)) != block(
        hidden, torch.ones(1, 4, dtype=torch.bool)
    )
    assert changed.flatten(3).any(-1).any(1)[0].tolist() == [False, True, False, False]
