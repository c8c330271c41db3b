"""`watch`: the page of the report over runs that are still going, on this machine alone."""
