"""A tiny corpus made by the real preprocessing, a tiny real model, and the bundle of both."""

from __future__ import annotations

from eagleray.models.spec import AudioSpec, DecoderSpec, ModelSpec, TextSpec, VisionSpec
from eagleray.pipelines.spec import Preparation

NUM_PICTURES = 12
PREPARATION = Preparation(
    image_size=32, stored_image_size=36, n_mels=16, max_frames=64, max_tokens=16, vocab_size=300
)
MODEL = ModelSpec(
    vision=VisionSpec(image_size=32, window_size=4, embed_dim=16, depths=(2, 2), num_heads=(2, 4)),
    audio=AudioSpec(n_mels=16, max_frames=64, d_model=16, num_layers=1, num_heads=2),
    text=TextSpec(d_model=32, num_layers=2, num_heads=4, max_tokens=16),
    decoder=DecoderSpec(d_model=32, num_layers=1, num_heads=4),
    embed_dim=16,
)
