"""What was measured with this library: runs, their table and pictures, and the weights that ship. Part of a checkout."""
