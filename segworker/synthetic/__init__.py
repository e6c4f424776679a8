"""Seeded scenes with exact truth, models that read it back perfectly or noisily, and pictures of them."""
