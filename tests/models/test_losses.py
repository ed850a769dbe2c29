import torch
from monai.losses import DiceFocalLoss, DiceLoss, FocalLoss

from eagleray.models.losses import classification_nll, dice_focal


def test_a_record_without_a_category_counts_as_nothing():
    logits = torch.randn(3, 4)
    nll = classification_nll(logits, torch.tensor([2, -1, 0]))
    assert nll[1] == 0
    torch.testing.assert_close(nll[0], -logits[0].log_softmax(-1)[2])


def test_dice_and_focal_loss_are_what_they_are_elsewhere_where_all_is_marked():
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(4, 2, 6, 6, generator=generator, dtype=torch.float64)
    marks = torch.randint(0, 3, (4, 6, 6), generator=generator)
    target = torch.stack([marks == 1, marks == 2], dim=1).double()
    expected = DiceFocalLoss(sigmoid=True, gamma=2.0)(logits, target)
    torch.testing.assert_close(dice_focal(logits, marks).mean(), expected, rtol=0, atol=1e-6)


def test_what_is_not_there_is_told_by_the_focal_loss_alone():
    logits = torch.randn(1, 2, 4, 4, dtype=torch.float64)
    marks = torch.ones(1, 4, 4, dtype=torch.int64)
    target = torch.stack([torch.ones(1, 4, 4), torch.zeros(1, 4, 4)], dim=1).double()
    dice = DiceLoss(sigmoid=True)(logits[:, :1], target[:, :1])
    expected = dice + FocalLoss(gamma=2.0)(logits, target)
    torch.testing.assert_close(dice_focal(logits, marks)[0], expected, rtol=0, atol=1e-6)


def test_an_unknown_row_counts_nothing_and_extreme_logits_are_finite():
    logits = torch.tensor([1e4, -1e4]).repeat(8).view(1, 1, 4, 4).repeat(2, 1, 1, 1).requires_grad_()
    marks = torch.stack([torch.full((4, 4), -1), torch.arange(16).view(4, 4) % 2])
    found = dice_focal(logits, marks)
    assert found[0] == 0
    found.sum().backward()
    assert logits.grad.isfinite().all()
    assert not logits.grad[0].any()
