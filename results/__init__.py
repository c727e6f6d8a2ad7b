"""Part of a checkout: what was measured of runs, its tables and pictures, and how weights are made ready to ship."""
