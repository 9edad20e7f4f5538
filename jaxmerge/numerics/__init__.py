"""Numbers that merges stand on: decompositions, order statistics, random draws, measures."""
