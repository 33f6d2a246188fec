"""Where problems come from: countdown.py, kk_logic.py and tree.py generate, math.py and benchmarks.py load."""
