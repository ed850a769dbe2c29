"""Features of patches, and their density held to SciPy's."""

import numpy as np
import pytest
import torch
from scipy import ndimage
from scipy.stats import multivariate_normal

from eagleray.models.anomaly import FARTHEST, AnomalyDetector, LocalJet, MixtureDensity, PatchFeatures
from eagleray.models.spec import VisionSpec
from eagleray.models.vision import VisionEncoder

VISION = VisionSpec(image_size=16, embed_dim=8, depths=(1, 1), num_heads=(2, 2), window_size=4)


def picture(size: int = 32) -> torch.Tensor:
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_filters_are_derivatives_of_gaussians():
    image = picture()
    found = LocalJet([1.5], 1)(image)[0].numpy()
    grey = image[0].mean(dim=0).double().numpy()

    def smooth(order):
        return ndimage.gaussian_filter(grey, 1.5, order, mode="mirror", truncate=10 / 3)

    inner = np.s_[6:-6, 6:-6]
    for ours, order, power in (
        (0, (0, 1), 1),
        (1, (1, 0), 1),
        (2, (0, 2), 2),
        (3, (2, 0), 2),
        (4, (1, 1), 2),
    ):
        expected = smooth(order)[inner] * 1.5**power
        np.testing.assert_allclose(found[ours][inner], expected, atol=1e-3)


def test_light_that_is_the_same_everywhere_changes_no_feature():
    jet = LocalJet([1.0, 2.0], 1)
    torch.testing.assert_close(jet(picture() + 0.3), jet(picture()), atol=1e-5, rtol=0)


def test_a_feature_lies_where_its_patch_does():
    image = torch.zeros(1, 3, 32, 32)
    image[..., 21, 9] = 1
    for stride in (1, 2, 4):
        found = LocalJet([1.0], stride)(image)[0].square().sum(dim=0)
        row, column = divmod(int(found.argmax()), found.shape[1])
        assert abs((row + 0.5) * stride - 21.5) <= stride / 2 + 1.5
        assert abs((column + 0.5) * stride - 9.5) <= stride / 2 + 1.5
        assert found.shape == (-(-32 // stride),) * 2


def test_features_are_the_encoders_and_the_filters():
    torch.manual_seed(0)
    vision = VisionEncoder(VISION).eval()
    both = PatchFeatures(vision, [1.0], 4)
    found = both(picture(16))
    assert found.shape == (2, both.width, 4, 4)
    finest = vision.scales(picture(16))[0].transpose(1, 2).unflatten(2, (4, 4))
    torch.testing.assert_close(found[:, :8], finest)
    torch.testing.assert_close(found[:, 24:], LocalJet([1.0], 4)(picture(16)))
    with pytest.raises(ValueError, match="no features"):
        PatchFeatures(None, [], 1)


def random_density(width: int, components: int):
    rng = np.random.default_rng(0)
    roots = rng.normal(size=(components, width, width))
    mixture = {
        "shift": rng.normal(size=width),
        "scale": rng.uniform(0.5, 2, width),
        "weights": rng.dirichlet(np.ones(components)),
        "means": rng.normal(size=(components, width)),
        "covariances": roots @ roots.transpose(0, 2, 1) + 0.1 * np.eye(width),
    }
    density = MixtureDensity(width, components)
    density.set_(*(torch.from_numpy(one) for one in mixture.values()))
    return density, mixture


def test_the_density_is_scipys():
    density, mixture = random_density(5, 3)
    features = torch.randn(2, 5, 4, 4, generator=torch.Generator().manual_seed(1))
    x = (features.movedim(1, -1).double().numpy() - mixture["shift"]) / mixture["scale"]
    parts = zip(mixture["weights"], mixture["means"], mixture["covariances"], strict=True)
    expected = -np.log(sum(w * multivariate_normal.pdf(x, m, c) for w, m, c in parts))
    np.testing.assert_allclose(density(features).numpy(), expected, rtol=1e-4, atol=1e-4)


def test_what_is_beyond_all_bounds_is_far_and_finite():
    density, _ = random_density(5, 3)
    found = density(torch.full((1, 5, 1, 1), 1e30))
    assert FARTHEST / 2 - 100 < float(found) < FARTHEST / 2 + 100


def test_a_score_is_a_half_at_the_threshold_and_orders_as_nats_do():
    torch.manual_seed(0)
    detector = AnomalyDetector(PatchFeatures(None, [1.0], 1), 1).eval()
    nats = detector(picture())
    detector.threshold.fill_(float(nats.median()))
    detector.spread.fill_(3.0)
    scores = detector.scores(picture())[:, 0]
    assert torch.equal(scores >= 0.5, nats >= nats.median())
    order = nats.flatten().argsort()
    assert (scores.flatten()[order].diff() >= 0).all()
    assert nats.shape == (2, 32, 32)
