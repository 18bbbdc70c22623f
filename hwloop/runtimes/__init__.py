"""What each runtime makes of a graph, on the host."""
