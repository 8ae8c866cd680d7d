"""Any namespace, and what the others fall back to."""
