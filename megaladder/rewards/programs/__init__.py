"""Generated programs: run in a process that can do nothing but compute, and judged outside it."""
