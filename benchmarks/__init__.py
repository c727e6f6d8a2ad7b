"""One command for each figure of speed: `python -m benchmarks.train_step`, …; benchmarks/README.md lists them."""
