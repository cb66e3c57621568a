"""What is deployed: the detectors and their parts."""
