import torch
from monai.losses import DiceFocalLoss, FocalLoss

from eagleray.models.losses import KIND_WEIGHT, classification_nll, dice_focal, marks_loss


def test_a_record_without_a_category_counts_as_nothing():
    logits = torch.randn(3, 4)
    nll = classification_nll(logits, torch.tensor([2, -1, 0]))
    assert nll[1] == 0
    torch.testing.assert_close(nll[0], -logits[0].log_softmax(-1)[2])


def test_dice_and_focal_loss_are_what_they_are_elsewhere_where_all_is_marked():
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(4, 6, 6, generator=generator, dtype=torch.float64)
    marked = torch.randint(0, 2, (4, 6, 6), generator=generator) > 0
    expected = DiceFocalLoss(sigmoid=True, gamma=2.0)(logits[:, None], marked[:, None].double())
    torch.testing.assert_close(dice_focal(logits, marked).mean(), expected, rtol=0, atol=1e-6)


def test_where_nothing_is_there_the_focal_loss_alone_tells():
    logits, marked = torch.randn(1, 4, 4, dtype=torch.float64), torch.zeros(1, 4, 4, dtype=torch.bool)
    expected = FocalLoss(gamma=2.0)(logits[:, None], marked[:, None].double())
    torch.testing.assert_close(dice_focal(logits, marked)[0], expected.double(), rtol=0, atol=1e-6)


def test_what_it_is_counts_where_something_is_marked_only():
    logits = torch.randn(2, 4, 4, 4, dtype=torch.float64)
    marks = torch.zeros(2, 4, 4, dtype=torch.int64)
    marks[0, 1, 1], marks[0, 2, 3] = 1, 3
    kinds = [-logits[0, 1:, y, x].log_softmax(0)[k] for y, x, k in ((1, 1, 0), (2, 3, 2))]
    expected = dice_focal(logits[:, 0], marks > 0, focal_weight=3.0)
    expected[0] += KIND_WEIGHT * sum(kinds) / 2
    torch.testing.assert_close(marks_loss(logits, marks, 3.0), expected)
    alone = marks_loss(logits[:, :1], marks, 3.0)
    torch.testing.assert_close(alone, dice_focal(logits[:, 0], marks > 0, focal_weight=3.0))


def test_an_unknown_row_counts_nothing_and_extreme_logits_are_finite():
    logits = torch.tensor([1e4, -1e4]).repeat(8).view(1, 1, 4, 4).repeat(2, 1, 1, 1).requires_grad_()
    marks = torch.stack([torch.full((4, 4), -1), torch.arange(16).view(4, 4) % 2])
    found = marks_loss(logits, marks)
    assert found[0] == 0
    found.sum().backward()
    assert logits.grad.isfinite().all()
    assert not logits.grad[0].any()
