"""Conversations → token ids and loss masks: tokenizer, chat templates, samples."""
