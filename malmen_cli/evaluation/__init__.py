"""How well an edited model does what was asked of it."""
