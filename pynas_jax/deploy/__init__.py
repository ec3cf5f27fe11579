"""From a checkpoint to one jitted function, and its timing."""
