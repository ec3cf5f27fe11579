"""From a trained network to a function, a release, and other formats."""
