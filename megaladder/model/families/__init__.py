"""Model families as data: what transformers reads from a config.json, and what the tensors are
called."""
