"""What the notebooks share: their parameters, their steps, Colab, live pictures."""
