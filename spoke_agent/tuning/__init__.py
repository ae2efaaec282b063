"""Fitting a model to a site: features, recipe, schedule, the whole-model fit, and when an adapter is used or withdrawn."""
