"""From budgets to plans: exact solver, Optuna on the predictor, swaps, and verification beside the uniform plan."""
