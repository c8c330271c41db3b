"""How large an evaluation must be: problems and samples for an effect."""
