"""The life of a training run: where it starts, what happens around its steps, how it ends."""
