"""Commit-marked, integrity-checked checkpoints on megatron-core's dist_checkpointing."""
