"""DoLL: a committee of classifiers, explained, becomes masks to learn segmentation from."""
