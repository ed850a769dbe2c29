"""Forward and backward steps a second of our Swin V2: DTYPE SIZE WINDOW PATCH EMBED DEPTHS HEADS BATCH."""

import sys

from stepping import Shape, measure

from eagleray.models.spec import VisionSpec
from eagleray.models.vision import VisionEncoder

shape = Shape.parse(sys.argv[1:])
spec = VisionSpec(
    image_size=shape.size,
    window_size=shape.window,
    patch_size=shape.patch,
    embed_dim=shape.embed,
    depths=shape.depths,
    num_heads=shape.heads,
)
model = VisionEncoder(spec)
measure(model, model, shape)
