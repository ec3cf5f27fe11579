"""Pure network parts: operators, gates, patches, cells and scale networks."""
