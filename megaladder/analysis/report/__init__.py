"""One self-contained HTML page over run and eval folders.

Collect → sections (charts, tables) → page and CSV. No network, no torch."""
