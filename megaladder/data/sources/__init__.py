"""Where rows come from: files, folders of shards, globs, lists of them, hub data sets."""
