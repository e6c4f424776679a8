"""Storage, file formats and the commit: everything that touches bytes outside this process."""
