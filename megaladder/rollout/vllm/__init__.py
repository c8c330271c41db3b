"""What vLLM's child process says to vLLM."""
