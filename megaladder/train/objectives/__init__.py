"""The objectives: SFT's token weightings, GRPO's policy losses and advantages.

Pure functions of tensors.
"""
