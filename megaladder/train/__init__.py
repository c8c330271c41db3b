"""The SFT and GRPO loops, one optimizer step, pure losses.

Also the policy for steps whose loss or gradient is not finite.

Importing this package prepares megatron-core for the machine (see `platform.prepare_megatron`).
"""

from megaladder import platform

platform.prepare_megatron()
