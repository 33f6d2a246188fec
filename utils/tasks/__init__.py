"""Where problems come from: countdown, kk_logic and tree generate them, competition_math and benchmarks load them."""
