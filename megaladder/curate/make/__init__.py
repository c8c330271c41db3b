"""Generated reasoning data.

Pure seeded generators, an independent checker, and the verbs `data make arithmetic|countdown`."""
