"""Small studies that a chapter runs while it is read; what takes longer is a sweep, and is recorded."""
