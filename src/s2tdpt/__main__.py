"""`python -m s2tdpt …`, and `torchrun … -m s2tdpt train …` for several devices."""

from s2tdpt.cli import main

main()
