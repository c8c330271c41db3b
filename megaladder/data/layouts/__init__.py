"""What rows mean: the published layouts, and how a row becomes an example, a problem or samples."""
