"""From tables to what people and machines read: frame to figures to text or file."""
