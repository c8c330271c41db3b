"""Generated reasoning data: pure seeded generators, an independent checker, and the verbs `data
make arithmetic|countdown`."""
