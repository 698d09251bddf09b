"""Code that the notebooks share: their parameters, their steps, Colab and live pictures."""
