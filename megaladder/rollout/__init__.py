"""Generation: one engine protocol, a deterministic fake, one vLLM wrapper; shared by GRPO and
benchmarks. Imports no torch, no vLLM."""
