"""From a source model and data to a signed-ready package: variants, reference data, golden vectors, model card."""
