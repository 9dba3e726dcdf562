"""From folders and tables to samples and splits; public datasets, and simulated radiographs with known truth."""
