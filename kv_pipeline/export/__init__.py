"""Getting traces out of the store, in the formats that replay tools read."""
