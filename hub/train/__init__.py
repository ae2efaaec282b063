"""Training at the hub: a recipe is one visible loop over torch; a run is tracked; datasets are snapshots with a digest."""
