"""Several steps as one: committees of classifiers and what is made from them."""
