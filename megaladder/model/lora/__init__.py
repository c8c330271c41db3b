"""Low-rank adapters (LoRA, arXiv 2106.09685): trained beside weights that stay as they are."""
