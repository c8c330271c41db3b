"""Whether two written answers mean the same: typed forms, exact comparison, published rules."""
