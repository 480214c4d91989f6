"""x_BTD -> y_BTD: one file a model family."""
