import torch

from eagleray.models.losses import classification_nll


def test_a_record_without_a_category_counts_as_nothing():
    logits = torch.randn(3, 4)
    nll = classification_nll(logits, torch.tensor([2, -1, 0]))
    assert nll[1] == 0
    torch.testing.assert_close(nll[0], -logits[0].log_softmax(-1)[2])
