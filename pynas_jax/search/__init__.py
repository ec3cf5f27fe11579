"""Search: gradient search of one stage, and of the scheme around it."""
