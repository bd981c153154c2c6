"""Which components of a layer are split in two, and where: circuits are computed, divided, and the division held to what it is for."""
