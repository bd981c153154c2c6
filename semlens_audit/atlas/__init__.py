"""What a model has learned, looked up in its index: search, labels, descriptions, comparisons; nothing here decides a check."""
