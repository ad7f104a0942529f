"""What `compare` measures: rows, each of cubenet beside the least that its work could cost."""
