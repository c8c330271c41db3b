"""What is minimised: token weightings of SFT, policy losses and advantages of GRPO. Pure functions
of tensors."""
