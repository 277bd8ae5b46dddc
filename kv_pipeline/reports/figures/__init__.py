"""Frame to chart: each module declares figures over named frames; nothing here reads a store or writes a file."""
