"""What a tuned model changed against its base: KL, token ranks, PCA of hidden states.

Only `score` imports torch, when it is called."""
