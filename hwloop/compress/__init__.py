"""Network and candidate in, checked graph out; each compression method is a file in ``methods``."""
