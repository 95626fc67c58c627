"""A model changed from outside: other layers in the places of its own, with the same parameters."""
