"""One run in stages, from a trained network to the files that ship."""
