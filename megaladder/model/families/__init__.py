"""Model families as data.

What transformers reads from a config.json, and what the tensors are called."""
