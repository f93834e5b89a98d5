"""What ``tools/benchmark.py`` measures: reading images, and the model beside what it stands on."""
