"""What is in a trace file, and who can read it."""
