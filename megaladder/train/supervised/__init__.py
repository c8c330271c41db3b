"""What stands around the SFT loop: its data, its log, its checkpoints."""
