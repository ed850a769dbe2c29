import math

import pytest
import torch

from eagleray.models.spec import VisionSpec
from eagleray.models.vision import (
    FeaturePyramid,
    PatchMerging,
    PositionBias,
    SwinBlock,
    VisionEncoder,
    log_offsets,
    unit_vectors,
)

MAPS = [
    pytest.param(8, 4, 0, id="windows"),
    pytest.param(8, 4, 2, id="shifted"),
    pytest.param(7, 4, 0, id="padded"),
    pytest.param(7, 4, 2, id="padded and shifted"),
    pytest.param(9, 3, 1, id="odd window"),
    pytest.param(4, 4, 0, id="one window"),
    pytest.param(3, 3, 0, id="as small as a window"),
]


def block(resolution, window, shift):
    torch.manual_seed(0)
    return SwinBlock(8, 2, resolution, window, shift, 2.0)


def same_window(resolution, window, shift):
    """Which pairs of positions stand in one window, by the geometry of the picture alone."""
    band = (torch.arange(resolution) + (window - shift if shift else 0)) // window
    row, column = band.repeat_interleave(resolution), band.repeat(resolution)
    return (row[:, None] == row[None, :]) & (column[:, None] == column[None, :])


@pytest.mark.parametrize(("resolution", "window", "shift"), MAPS)
def test_attention_reaches_exactly_its_window(resolution, window, shift):
    layer = block(resolution, window, shift)
    x = torch.randn(1, resolution**2, 8)
    with torch.no_grad():
        moved = x + torch.eye(resolution**2)[:, :, None] * torch.randn(8)  # row p: only position p moved
        changed = (layer(moved) != layer(x)).any(-1)
    assert torch.equal(changed, same_window(resolution, window, shift))


@pytest.mark.parametrize(("resolution", "window", "shift"), MAPS)
def test_no_gradient_crosses_a_window(resolution, window, shift):
    layer = block(resolution, window, shift)
    x = torch.randn(1, resolution**2, 8, requires_grad=True)
    position = resolution**2 // 2
    (gradient,) = torch.autograd.grad(layer(x)[0, position].square().sum(), x)
    assert torch.equal(gradient[0].any(-1), same_window(resolution, window, shift)[position])


def test_attention_is_of_angles_not_of_lengths():
    layer = block(8, 4, 2).attention
    x = torch.randn(1, 64, 8)
    before = layer(x)
    with torch.no_grad():
        layer.query.weight *= 7
        layer.query.bias *= 7
        layer.key.weight *= 0.3
    torch.testing.assert_close(layer(x), before)


def test_temperature_is_bounded():
    layer = block(4, 4, 0).attention
    x = torch.randn(1, 16, 8)
    with torch.no_grad():
        layer.logit_scale.weight.fill_(math.log(100))
        at_bound = layer(x)
        layer.logit_scale.weight.fill_(50.0)
        assert torch.equal(layer(x), at_bound)


def test_position_bias_knows_only_the_offset():
    bias = PositionBias(4, 3)().detach()
    seen = {}
    for i in range(16):
        for j in range(16):
            offset = (i // 4 - j // 4, i % 4 - j % 4)
            assert torch.equal(bias[:, i, j], seen.setdefault(offset, bias[:, i, j]))
    assert len(seen) == 49
    assert len({tuple(value.tolist()) for value in seen.values()}) == 49


def test_position_bias_is_the_same_for_the_same_log_offset_in_any_window():
    small, large = PositionBias(3, 2), PositionBias(5, 2)
    large.load_state_dict(small.state_dict())
    # half and whole of a window's extent: 1 and 2 steps of 2, as 2 and 4 steps of 4
    ours, theirs = small().view(2, 3, 3, 3, 3), large().view(2, 5, 5, 5, 5)
    torch.testing.assert_close(ours, theirs[:, ::2, ::2, ::2, ::2])


def test_a_larger_window_keeps_the_bias_of_the_offsets_it_was_trained_with():
    small, large = PositionBias(4, 2), PositionBias(7, 2, pretrained_window=4)
    large.load_state_dict(small.state_dict())
    theirs = large().view(2, 7, 7, 7, 7)[:, :4, :4, :4, :4]
    torch.testing.assert_close(small().view(2, 4, 4, 4, 4), theirs)


def test_position_bias_stays_between_0_and_16():
    layer = PositionBias(4, 2)
    with torch.no_grad():
        layer.per_head.weight.mul_(1e6)
    assert layer().min() == 0
    assert layer().max() == 16


@pytest.mark.parametrize("window", [2, 7, 8, 16])
def test_log_offsets_are_odd_monotone_and_span_the_same(window):
    offsets = log_offsets(window, window)
    along = offsets[: 2 * window - 1, 1]
    torch.testing.assert_close(offsets, -offsets.flip(0))
    assert (along.diff() > 0).all()
    assert along[-1].item() == pytest.approx(math.log2(9) / 3)


def test_a_block_whose_norms_are_zero_is_the_identity():
    layer = block(8, 4, 2)
    for norm in (layer.norm_attention, layer.norm_mlp):
        torch.nn.init.zeros_(norm.weight)
    x = torch.randn(2, 64, 8)
    assert torch.equal(layer(x), x)


@pytest.mark.parametrize("resolution", [4, 5])
def test_merging_joins_each_2_by_2_positions(resolution):
    layer = PatchMerging(8, resolution)
    x = torch.randn(1, resolution**2, 8)
    moved = x + torch.eye(resolution**2)[:, :, None] * torch.randn(8)
    side = (resolution + 1) // 2
    assert layer(x).shape == (1, side**2, 16)
    for position, changed in enumerate((layer(moved) != layer(x)).any(-1)):
        row, column = divmod(position, resolution)
        assert changed.nonzero().flatten().tolist() == [row // 2 * side + column // 2]


def test_merging_lays_channels_as_the_authors_do():
    x = torch.arange(4.0).view(1, 4, 1)
    layer = PatchMerging(1, 2)
    given = []
    layer.reduction.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0].flatten().tolist()))
    layer(x)
    assert given == [[0, 2, 1, 3]]  # top left, bottom left, top right, bottom right


def test_unit_vectors_have_the_gradient_that_autograd_finds():
    x = torch.randn(3, 5, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(unit_vectors, x)
    torch.testing.assert_close(unit_vectors(x), torch.nn.functional.normalize(x, dim=-1))
    assert not unit_vectors(torch.zeros(2, 4, requires_grad=True)).any()


@pytest.mark.parametrize("image_size", [64, 62, 50])
def test_scales_halve_the_side_and_double_the_channels(image_size):
    spec = VisionSpec(image_size=image_size, window_size=3)
    encoder = VisionEncoder(spec)
    x = encoder.embed(torch.randn(2, 3, image_size, image_size))
    side, channels = math.ceil(image_size / 4), 32
    for layer in encoder.blocks:
        x = layer(x)
        if isinstance(layer, PatchMerging):
            side, channels = math.ceil(side / 2), 2 * channels
        assert x.shape == (2, side**2, channels)
        assert x.isfinite().all()
    assert encoder.width == channels


def test_a_picture_of_another_size_is_refused():
    with pytest.raises(ValueError, match="image_size is 64"):
        VisionEncoder(VisionSpec())(torch.zeros(1, 3, 32, 64))


def test_pictures_of_a_batch_do_not_meet():
    encoder = VisionEncoder(VisionSpec(image_size=32, window_size=4, depths=(2,), num_heads=(2,))).double()
    images = torch.randn(3, 3, 32, 32, dtype=torch.double)
    torch.testing.assert_close(encoder(images)[1:2], encoder(images[1:2]))


def test_tables_are_no_part_of_a_checkpoint():
    encoder = VisionEncoder(VisionSpec(window_size=4))
    assert set(encoder.state_dict()) == {name for name, _ in encoder.named_parameters()}


@pytest.mark.parametrize("image_size", [32, 36])
def test_a_new_pyramid_changes_nothing_and_a_trained_one_reads_every_scale(image_size):
    plain = VisionSpec(image_size=image_size, window_size=4)
    torch.manual_seed(0)
    encoder = VisionEncoder(plain.model_copy(update={"pyramid_width": 8})).double()
    without = VisionEncoder(plain).double()
    without.load_state_dict(encoder.state_dict(), strict=False)
    images = torch.randn(2, 3, image_size, image_size, dtype=torch.double)
    assert torch.equal(encoder(images), without(images))
    torch.nn.init.normal_(encoder.pyramid.fuse.weight)
    scales = [scale.detach().requires_grad_() for scale in encoder.scales(images)]
    top = encoder.norm(scales[-1]).detach()
    fused, finest = encoder.pyramid(scales, top)
    assert finest.shape[-1] == encoder.resolutions[0]
    assert fused.shape == without(images).shape
    for gradient in torch.autograd.grad(fused.square().sum(), scales):
        assert gradient.any(dim=-1).all()


def test_the_pyramid_brings_coarse_scales_to_the_place_where_they_lie():
    pyramid = FeaturePyramid((4, 8), (6, 3), 5)
    scales = [torch.zeros(1, 36, 4), torch.zeros(1, 9, 8)]
    before = pyramid.levels(scales)
    scales[1][0, 4] = torch.randn(8)  # the middle of 3 × 3
    changed = (pyramid.levels(scales)[0] != before[0])[0].any(0)
    assert [level.shape for level in before] == [(1, 5, 6, 6), (1, 5, 3, 3)]
    inside = torch.zeros(6, 6, dtype=torch.bool)
    inside[1:5, 1:5] = True  # 2 × 2 positions, and one around them that smoothing reaches
    assert torch.equal(changed, inside)


def test_every_sixth_block_of_huge_normalises_its_main_branch():
    spec = VisionSpec(variant="swinv2-huge")
    assert spec.norm_main_every == 6
    few = spec.model_copy(update={"embed_dim": 8, "num_heads": (1, 1, 1, 1), "image_size": 64})
    blocks = [block for block in VisionEncoder(few).blocks if isinstance(block, SwinBlock)]
    assert [i for i, block in enumerate(blocks) if block.norm_main is not None] == [9, 15, 21]
    x = torch.randn(1, blocks[9].resolution ** 2, 32)
    torch.testing.assert_close(blocks[9](x).mean(-1), torch.zeros(1, x.shape[1]), atol=1e-5, rtol=0)
