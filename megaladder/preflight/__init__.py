"""Before a run: does the configuration fit model, data and machine (`check`), and what is installed
(`doctor`). Starts nothing."""
