"""One self-contained HTML page over run and eval folders: collect → sections (charts, tables) →
page and CSV. No network, no torch."""
