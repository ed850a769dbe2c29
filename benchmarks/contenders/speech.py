"""What every contender but Eagleray does to a recording: the same as Eagleray, with the same libraries."""

import numpy as np
import soundfile
import soxr

from eagleray.pipelines.media.audio import log_mel
from eagleray.pipelines.spec import Preparation

PREPARATION = Preparation()


def decode(path):
    """A file → its log-mel spectrogram (F, M) float16 at 16 kHz."""
    wave, rate = soundfile.read(path, dtype="float32", always_2d=True)
    mono = wave.mean(axis=1)
    if rate != PREPARATION.sample_rate:
        mono = soxr.resample(mono, rate, PREPARATION.sample_rate)
    return log_mel(mono, PREPARATION).astype(np.float16)
