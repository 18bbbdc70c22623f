"""One file per compression method."""
