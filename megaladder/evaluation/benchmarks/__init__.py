"""The benchmark registry: entries as data (`registry.yaml`), where rows come from (`source`), how
they become problems (`problems`) and prompts (`prompting`)."""
