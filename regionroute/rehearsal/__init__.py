"""Runs every stage of the project at true size on random weights, see `regionroute rehearse`."""
