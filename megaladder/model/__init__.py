"""HF config → megatron-core GPTModel; hidden states → vocabulary-parallel log-probs."""
