"""The same of transformers' Swinv2, without its stochastic depth, which ours does not have."""

import sys

from stepping import Shape, measure
from transformers import Swinv2Config, Swinv2Model

shape = Shape.parse(sys.argv[1:])
config = Swinv2Config(
    image_size=shape.size,
    window_size=shape.window,
    patch_size=shape.patch,
    embed_dim=shape.embed,
    depths=list(shape.depths),
    num_heads=list(shape.heads),
    drop_path_rate=0.0,
)
model = Swinv2Model(config, add_pooling_layer=False)
measure(model, lambda image: model(image).last_hidden_state, shape)
